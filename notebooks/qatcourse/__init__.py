"""The course beside `qatlib`: checks of exercises, experiments, the pose task, pictures, sweeps, and what keeps it all true."""

import os
from importlib.util import find_spec
from pathlib import Path

from qatlib.wording import SHORT_SPIN, need

for _package in ("matplotlib", "papermill", "ipywidgets", "pandas", "PIL", "scipy"):
    if find_spec(_package) is None:
        raise need(_package, "course")
for _variable, _value in SHORT_SPIN.items():
    os.environ.setdefault(_variable, _value)  # read when torch is imported
ROOT = Path(__file__).resolve().parents[2]  # of a checkout
_OWN = Path(__file__).resolve().parent / "data"  # of a wheel, wherever that was unpacked
IN_CHECKOUT = not _OWN.is_dir()
DATA = ROOT / "data" if IN_CHECKOUT else _OWN
