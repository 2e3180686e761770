"""Checks of lesson 00: what one more bit does, reading the map, adding up minutes."""

from qatcourse.checks import Exercise, NotYet, judged, row
from qatcourse.keeper.lessons import LESSONS

_MINUTES = {"00": 10, "01": 45, "02": 40, "03": 45, "04": 45, "05": 45, "06": 45, "07": 40, "11": 35}  # any will do
_LAST = LESSONS[-1].number


def _before(number: str) -> list[str]:
    """The lessons that come before `number` on the map, the first one first, without itself."""
    needed = {number}
    for lesson in reversed(LESSONS):
        if lesson.number in needed:
            needed |= set(lesson.needs)
    return sorted(needed - {number})


_WAY = _before("07")


check_levels = Exercise(
    "my_levels(bits): how many different codes so many bits can tell apart.",
    lambda bits: 2**bits,
    [(f"{bits} bits", bits) for bits in (3, 1, 4, 8)],
    (lambda _, bits: 2 * bits, "each further bit doubles the number; it does not add two."),
    (lambda _, bits: bits**2, "that is bits · bits. It is the 2 that is multiplied: by itself, once for each bit."),
    (lambda right, _: right - 1, "that is the largest unsigned code; 0 is a code, too."),
    (lambda right, _: right / 2, "that is one half of the codes; the negative ones count as well."),
    (lambda right, _: 2 * right, "one doubling too many: 1 bit tells two codes apart."),
    (lambda _, bits: bits, "that is the number of bits. How many different words can they spell?"),
    (lambda _, bits: 2 ^ bits, "in Python ^ is not a power (it compares bits); write **."),
    right=[lambda bits: 1 << bits, lambda bits: [2.0**bits]],
)


@judged(
    "my_path", value=True, praise="That is the way. Lesson 06 can wait until you need the doctor.",
    wrong=[
        ([], "write a list"), (None, "write a list"), ("05", "write a list"), (["00", "01"], "something is missing"),
        (_WAY[:-1], "follow the arrow into 07 backwards"), ([*_WAY[:2], *_WAY[3:]], "follow the arrow into 03 backwards"),
        ([*_WAY, "06"], "no arrow leads"), ([*_WAY, "07"], "07 itself"), (_WAY[::-1], "another order"),
        ([*_WAY, "05"], "one twice"), ([*_WAY, "77"], "no lesson '77'"), ([0.5], "no lesson '0.5'"),
    ],
    right=[tuple(_WAY), [int(number) for number in _WAY], [str(int(number)) for number in _WAY]],
)  # fmt: skip
def check_path(my_path):
    """`my_path`: numbers of the lessons to work through before lesson 07, in order, as text: ["00", ...]."""
    if not isinstance(my_path, (list, tuple)) or not my_path:
        raise NotYet('is empty or no list; write a list of lesson numbers, such as ["00", "01"].')
    got, known = [str(number).rjust(2, "0") for number in my_path], {lesson.number for lesson in LESSONS}
    if unknown := [number for number in got if number not in known]:
        raise NotYet(f"names a lesson that is not there: there is no lesson {unknown[0]!r}; they are numbered 00 to {_LAST}.")
    ok = got == _WAY
    yield row("before 07", ", ".join(_WAY) if ok else f"{len(_WAY)} lessons", ", ".join(got), ok), None if ok else _astray(got)


def _astray(got: list[str]) -> str:
    extra, lacking = [n for n in got if n not in _WAY], [n for n in _WAY if n not in got]
    if "07" in extra:
        return "07 itself is where you want to get; list only what comes before."
    if extra:
        return f"{extra[0]} is not needed: no arrow leads from it to 07."
    if lacking:
        after = next(lesson.number for lesson in LESSONS if lacking[-1] in lesson.needs and lesson.number in [*_WAY, "07"])
        return f"something is missing: follow the arrow into {after} backwards."
    return "the right lessons in another order, or one twice."


check_minutes = Exercise(
    "my_minutes(minutes, numbers): the minutes of the lessons `numbers`, added up; `minutes` is {number: minutes}.",
    lambda minutes, numbers: sum(minutes[number] for number in numbers),
    [(", ".join(numbers), _MINUTES, numbers) for numbers in (["00", "01"], _WAY, ["11"])],
    (lambda _, minutes, numbers: sum(minutes.values()), "that is the sum of all lessons; add only the chosen ones."),
    (lambda _, minutes, numbers: len(numbers), "you counted the lessons; look up the minutes of each."),
    (lambda _, minutes, numbers: sum(int(n) for n in numbers), "you added the lessons' numbers; look up minutes[number] first."),
    (lambda _, minutes, numbers: minutes[numbers[0]], "that is the first lesson alone; go through all of them."),
    (lambda _, minutes, numbers: minutes[numbers[-1]], "that is the last lesson alone: add to the sum, do not replace it."),
    (lambda right, *_: right / 60, "these are hours; leave them in minutes."),
    right=[lambda minutes, numbers: float(sum(map(minutes.get, numbers)))],
)  # fmt: skip
