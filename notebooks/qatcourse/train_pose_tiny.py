"""Train PoseTiny: float first, then quantization-aware.  `python -m qatcourse.train_pose_tiny --preset quick --weight-bits 8`"""

import argparse
import sys
from pathlib import Path

from qatcourse.pose.parallel import Team, join, leave
from qatcourse.pose.train import PRESETS, configure, train
from qatlib.wording import Parser, command, folder


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m qatcourse.train_pose_tiny", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=list(PRESETS), default="quick")
    parser.add_argument("--weight-bits", type=int, default=8, help="1, 2, 4 or 8")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--start-epoch", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default="figures", help="'figures' (drawn) or 'lsp:/path' (photographs)")
    parser.add_argument("--n-train", type=int)
    parser.add_argument("--n-test", type=int)
    parser.add_argument("--out", type=folder, default="runs/train_pose_tiny")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out, if there is one")
    return parser.parse_args(arguments)


@command("train_pose_tiny", "before the end of the first epoch there is nothing new to keep")
def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code (2: the problem is one sentence on standard error, 130: interrupted)."""
    options = vars(parse(arguments))
    out, resume, team = Path(options.pop("out")), options.pop("resume"), Team()
    try:
        team = join()
        result = train(configure(**options), out, resume, team=team)
    finally:
        leave(team)
    if team.first:
        values = ", ".join(f"{name} {value:.3f}" for name, value in result.metrics.items())
        where = out / ("checkpoint.pth" if result.interrupted else "final.pth")
        print(f"trained {len(result.history)} epochs at {result.config.weight_bits} bits: {values}; checkpoint {where}")
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
