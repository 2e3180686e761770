"""Tests run the lessons in the smallest preset and with nobody's pieces; a learner's kernel never reads this file."""

import os
import tempfile

os.environ.setdefault("QATLIB_PRESET", "smoke")
NOBODY = tempfile.TemporaryDirectory()  # removed at the end
os.environ["QATCOURSE_MINE"] = NOBODY.name
