"""Checks of lesson 00: reading the map, adding up minutes, and what one more bit does."""

from qatcourse.checks import Exercise, Report, row
from qatcourse.keeper.lessons import LESSONS

_MINUTES = {lesson.number: lesson.minutes for lesson in LESSONS}


def _before(number: str) -> list[str]:
    """The lessons that come before `number` on the map, the first one first, without itself."""
    needed = {number}
    for lesson in reversed(LESSONS):
        if lesson.number in needed:
            needed |= set(lesson.needs)
    return sorted(needed - {number})


def check_path(my_path) -> Report:
    """`my_path`: numbers of the lessons to work through before lesson 07, in order, as text: ["00", ...]."""
    want = _before("07")
    if not isinstance(my_path, (list, tuple)) or not my_path:
        return Report("my_path", False, 'not yet: write a list of lesson numbers, such as ["00", "01"].')
    got = [f"{number:02d}" if isinstance(number, int) else str(number) for number in my_path]
    if unknown := [number for number in got if number not in _MINUTES]:
        return Report("my_path", False, f"not yet: there is no lesson {unknown[0]!r}; they are numbered 00 to 11.")
    ok = got == want
    said = "That is the way. Lesson 06 can wait until you need the doctor." if ok else f"not yet: {_astray(got, want)}"
    return Report("my_path", ok, said, [row("before 07", ", ".join(want) if ok else f"{len(want)} lessons", ", ".join(got), ok)])


def _astray(got: list[str], want: list[str]) -> str:
    extra, lacking = [n for n in got if n not in want], [n for n in want if n not in got]
    if "07" in extra:
        return "07 itself is where you want to get; list only what comes before."
    if extra:
        return f"{extra[0]} is not needed: no arrow leads from it to 07."
    if lacking:
        after = next(lesson.number for lesson in LESSONS if lacking[-1] in lesson.needs and lesson.number in [*want, "07"])
        return f"something is missing: follow the arrow into {after} backwards."
    return "the right lessons in another order, or one twice."


check_minutes = Exercise(
    "my_minutes(minutes, numbers): the minutes of the lessons `numbers`, added up; `minutes` is {number: minutes}.",
    lambda minutes, numbers: sum(minutes[number] for number in numbers),
    [(", ".join(numbers) or "none", _MINUTES, numbers) for numbers in (["00", "01"], _before("07"), ["11"], [])],
    (lambda _, minutes, numbers: sum(minutes.values()), "that is the sum of all lessons; add only the chosen ones."),
    (lambda _, minutes, numbers: len(numbers), "you counted the lessons; look up the minutes of each."),
)

check_levels = Exercise(
    "my_levels(bits): how many different codes so many bits can tell apart.",
    lambda bits: 2**bits,
    [(f"{bits} bits", bits) for bits in (2, 1, 4, 8)],
    (lambda _, bits: 2 * bits, "each further bit doubles the number; it does not add two."),
    (lambda right, _: right - 1, "that is the largest unsigned code; 0 is a code, too."),
    (lambda right, _: right / 2, "that is one half of the codes; the negative ones count as well."),
)
