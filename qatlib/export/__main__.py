"""`python -m qatlib.export all CHECKPOINT FOLDER` writes every form; `python -m qatlib.export check FOLDER` proves them equal.

A checkpoint needs its network: --network MODULE:CLASS, where importing MODULE runs it.
"""

import sys
from pathlib import Path

from qatlib.wording import Parser, command, folder


def parser() -> Parser:
    from qatlib.export import network

    top = Parser(prog="python -m qatlib.export", description="One trained network for every engine, the same integers.")
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser)
    every = commands.add_parser("all", help="write the compact file, ONNX, C for computer and Cortex-M4, and the synthesis inputs")
    every.add_argument("checkpoint", help="a checkpoint after QAT (with --network), or model_8bit.pth")
    every.add_argument("folder", type=folder, help="where to write; replaced as a whole if an export is there")
    every.add_argument("--input-shape", metavar="C,H,W", help="of one input; needless where the class has input_shape")
    check = commands.add_parser("check", help="run all engines of a folder on the same pictures")
    check.add_argument("folder")
    check.add_argument("-n", type=int, default=256, help="pictures to compare (default 256)")
    for parser in (every, check):
        network.add_options(parser)
    return top


@command("qatlib.export")
def main(arguments: list[str] | None = None) -> int:
    """0: done and equal, 1: outputs differ, 2: it could not be done, or files are missing (one sentence says why)."""
    options = parser().parse_args(arguments)
    from qatlib.export import network
    from qatlib.export.check import check_folder, export_all, from_checkpoint, table
    from qatlib.files import load

    every = options.command == "all"
    path = Path(options.checkpoint) if every else Path(options.folder, "checkpoint.pth")
    net = network.of_options(options, load(path) if every or path.is_file() else {})
    if every:
        shape = options.input_shape and network.shape(options.input_shape)
        print(table(export_all(from_checkpoint(options.checkpoint, net, shape), options.folder, input_shape=shape)))
        return 0
    results = check_folder(options.folder, options.n, net)
    print(*results, sep="\n")
    differing = sum(result.differing for result in results)
    print(f"{differing} differing outputs in {len([r for r in results if r.pictures])} engines")
    if differing:
        return 1
    return 2 if any(result.missing for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
