"""The whole path in one command: train, compare, export, execute the lessons.  `python -m qatcourse.run --preset quick`"""

import datetime
import os
import sys
import tempfile
from pathlib import Path

import papermill
from papermill.exceptions import PapermillExecutionError

from qatcourse.labs import compare
from qatcourse.pose.data import load
from qatcourse.pose.train import configure
from qatlib.export.check import size
from qatlib.files import cannot_write, prepare_folder
from qatlib.wording import Parser, command, folder, sentence

LESSONS = ("05_train_pose_tiny", "07_export_int8")


def execute(lesson: str, folder: Path, parameters: dict) -> Path:
    """Run one lesson with papermill into `folder`; the path of the executed notebook.

    Raises FileNotFoundError without the lesson, ValueError for a parameter that it does not have, RuntimeError naming the
    executed notebook where one of its cells fails, OSError where the executed notebook cannot be written.
    """
    source = Path("notebooks") / f"{lesson}.ipynb"
    if not source.is_file():
        raise FileNotFoundError(f"no lesson at {source}; run this command in the top folder of the project")
    known = papermill.inspect_notebook(str(source))
    if unknown := set(parameters) - set(known):
        raise ValueError(f"{source} has no parameters {sorted(unknown)}; it knows {sorted(known)}")
    target = folder / source.name
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{lesson} -> {os.path.relpath(target)}", file=sys.stderr)
    try:
        quiet = {"log_output": False, "extra_arguments": ["--log-level=CRITICAL"], "stderr_file": sys.stderr}
        papermill.execute_notebook(str(source), str(target), parameters, cwd="notebooks", kernel_name="python3", **quiet)
    except PapermillExecutionError as problem:
        said = f"{problem.ename}: {problem.evalue}".splitlines()[0]
        raise RuntimeError(f"cell {problem.exec_count} of {lesson} failed ({said}); read it in {target}") from problem
    except OSError as problem:
        raise cannot_write(target, problem) from problem
    return target


def run(data: str, preset: str, weight_bits: int, seed: int, out: Path) -> list[Path]:
    """Execute the training and the export lesson; what they wrote into `out`. Settings are checked before anything starts.

    The environment variable QATLIB_PRESET goes before `preset`, here and in the lessons. Raises as `configure`, `load` and
    `execute` do, and OSError where `out` cannot be written.
    """
    if (forced := os.environ.get("QATLIB_PRESET", preset)) != preset:
        print(f"QATLIB_PRESET={forced} is set: it goes before the preset {preset!r}; unset it to choose yourself", file=sys.stderr)
        preset = forced
    config = configure(preset, data=data, weight_bits=weight_bits, seed=seed)
    load(config.data, "test", 1, progress=False)
    out = prepare_folder(out).resolve()  # for good it is made by the first lesson
    settings = {"data": data, "preset": preset, "weight_bits": weight_bits, "seed": seed, "out": str(out)}
    with tempfile.TemporaryDirectory() as nobody:  # the lessons run as for a learner who has no pieces yet
        os.environ["QATCOURSE_MINE"] = nobody
        for lesson, parameters in zip(LESSONS, (settings, {"run": str(out)})):
            execute(lesson, out, parameters)
    return sorted(path for path in out.iterdir() if not path.name.startswith("."))


@command("run")
def main(arguments: list[str] | None = None) -> int:
    """0: done, the table and the paths are printed last. 1: a lesson's cell failed. 2: unusable settings; nothing was started."""
    parser = Parser(prog="python -m qatcourse.run", description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="figures", help="'figures' or 'lsp:/path'")
    parser.add_argument("--preset", default="quick", help="quick or full; the environment variable QATLIB_PRESET goes before it")
    parser.add_argument("--weight-bits", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=folder)
    options = vars(parser.parse_args(arguments))
    out = Path(options.pop("out") or Path("runs") / datetime.datetime.now().strftime("%Y-%m-%d_%H%M%S"))
    if options["data"].startswith("lsp:"):
        options["data"] = "lsp:" + os.path.abspath(os.path.expanduser(options["data"][4:]))
    os.environ["QATLIB_EPOCHS"] = "1"  # trainings in the lessons tell of every epoch on standard error, which is passed on
    try:
        paths = run(**options, out=out)
    except RuntimeError as problem:
        print(f"run: {sentence(problem)}", file=sys.stderr)
        return 1
    print("\n" + compare.table(compare.read(out)) + "\n")
    for path in paths:
        print(f"{size(path):>11,} bytes  {os.path.relpath(path)}{'/' if path.is_dir() else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
