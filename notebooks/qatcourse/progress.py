"""Which exercises this learner has passed: `python -m qatcourse.progress`; lesson 00 shows the same rows.

They are read from `progress.json` beside the learner's lessons, where every check that passes in a notebook writes its exercise.
"""

import sys

from qatcourse import mine
from qatcourse.checks import exercises
from qatcourse.keeper.lessons import LESSONS
from qatlib.wording import Parser, columns, command


def standing(number: str, passed: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """(all exercises of a lesson in its order, those that are open), by what `mine.passed` gives."""
    names = list(exercises(number))
    return names, [name for name in names if name not in passed.get(number, [])]


def rows() -> list[dict]:
    """One row a lesson: how many of its exercises are passed, and which are open."""
    done = mine.passed()
    found = [(lesson, *standing(lesson.number, done)) for lesson in LESSONS]
    return [
        {
            "lesson": f"{one.number} {one.title}",
            "passed": f"{len(names) - len(still)} of {len(names)}",
            "open": ", ".join(still) or "-",
        }
        for one, names, still in found
    ]


def summary(rows: list[dict]) -> str:
    """All `rows` in one sentence, with what comes next."""
    passed, every = (sum(int(row["passed"].split(" of ")[i]) for row in rows) for i in (0, 1))
    following = (f"next is {row['open'].split(', ')[0]} in lesson {row['lesson']}" for row in rows if row["open"] != "-")
    return f"{passed} of {every} exercises passed; {next(following, 'all done')}."


@command("progress")
def main(arguments: list[str] | None = None) -> int:
    Parser(prog="python -m qatcourse.progress", description=__doc__.splitlines()[0]).parse_args(arguments)
    found = rows()
    print(columns([tuple(found[0]), *(row.values() for row in found)]), summary(found), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
