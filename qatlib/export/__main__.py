"""python -m qatlib.export all CHECKPOINT FOLDER: write every form.   python -m qatlib.export check FOLDER: prove them equal."""

import argparse
import sys

from qatlib.command_line import folder, interruptible


class Parser(argparse.ArgumentParser):
    """Errors are one sentence on standard error, exit code 2."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}\n")


def parser() -> Parser:
    top = Parser(prog="python -m qatlib.export", description="One trained network for every engine, the same integers.")
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser)
    every = commands.add_parser("all", help="write the compact file, ONNX, C and the synthesis inputs")
    every.add_argument("checkpoint", help="a checkpoint of train_pose_tiny after QAT, or model_8bit.pth")
    every.add_argument("folder", type=folder, help="where to write; replaced as a whole if an export is there")
    check = commands.add_parser("check", help="run all engines of a folder on the same pictures")
    check.add_argument("folder")
    check.add_argument("-n", type=int, default=256, help="pictures to compare (default 256)")
    return top


@interruptible("qatlib.export")
def main(arguments: list[str] | None = None) -> int:
    """0: done and equal, 1: outputs differ, 2: it could not be done, or files are missing (one sentence says why)."""
    options = parser().parse_args(arguments)
    from qatlib.export.check import check_folder, export_all, table

    try:
        if options.command == "all":
            print(table(export_all(options.checkpoint, options.folder)))
            return 0
        results = check_folder(options.folder, options.n)
    except (ValueError, TypeError, OSError, OverflowError) as problem:
        print(f"qatlib.export: {problem}", file=sys.stderr)
        return 2
    print(*results, sep="\n")
    differing = sum(result.differing for result in results)
    print(f"{differing} differing outputs in {len([r for r in results if r.pictures])} engines")
    if differing:
        return 1
    return 2 if any(result.missing for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
