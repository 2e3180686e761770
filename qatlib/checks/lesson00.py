"""Checks of lesson 00: reading the map, adding up minutes, and what one more bit does."""

from qatlib.checks import Report, compare, failed
from qatlib.lessons import LESSONS

_KNOWN = {lesson.number: lesson for lesson in LESSONS}


def _before(number: str) -> list[str]:
    """The lessons that come before `number` on the map, the first one first, without itself."""
    needed = {number}
    for lesson in reversed(LESSONS):
        if lesson.number in needed:
            needed |= set(lesson.needs)
    return sorted(needed - {number})


def check_path(my_path) -> Report:
    """`my_path`: numbers of the lessons to work through before lesson 07, in order, as text: ["00", ...]."""
    name, want = "my_path", _before("07")
    if not isinstance(my_path, (list, tuple)) or not my_path:
        return failed(name, 'not yet: write a list of lesson numbers, such as ["00", "01"].')
    got = [f"{number:02d}" if isinstance(number, int) else str(number) for number in my_path]
    if unknown := [number for number in got if number not in _KNOWN]:
        return failed(name, f"not yet: there is no lesson {unknown[0]!r}; they are numbered 00 to 11.")
    rows = [{"case": "before 07", "expected": ", ".join(want), "got": ", ".join(got), "ok": "yes" if got == want else "no"}]
    if got == want:
        return Report(name, True, "That is the way. Lesson 06 can wait until you need the doctor.", rows)
    extra, lacking = [n for n in got if n not in want], [n for n in want if n not in got]
    if "07" in extra:
        said = "07 itself is where you want to get; list only what comes before."
    elif extra:
        said = f"{extra[0]} is not needed: no arrow leads from it to 07."
    elif lacking:
        after = next(lesson.number for lesson in LESSONS if lacking[-1] in lesson.needs and lesson.number in [*want, "07"])
        said = f"something is missing: follow the arrow into {after} backwards."
    else:
        said = "the right lessons in another order, or one twice."
    return Report(name, False, f"not yet: {said}", [{**rows[0], "expected": f"{len(want)} lessons"}])


def check_minutes(my_minutes) -> Report:
    """`my_minutes(minutes, numbers)`: the minutes of the lessons `numbers`, added up; `minutes` is {number: minutes}."""
    every = {lesson.number: lesson.minutes for lesson in LESSONS}

    def expected(minutes, numbers):
        return sum(minutes[number] for number in numbers)

    def advice(case, want, got):
        if got == sum(every.values()):
            return "that is the sum of all lessons; add only the chosen ones."
        if got == len(case[1]):
            return "you counted the lessons; look up the minutes of each."
        return None

    cases = [(every, ["00", "01"]), (every, _before("07")), (every, ["11"]), (every, [])]
    labels = [", ".join(numbers) or "none" for _, numbers in cases]
    return compare("my_minutes", my_minutes, expected, cases, advice, labels=labels)


def check_levels(my_levels) -> Report:
    """`my_levels(bits)`: how many different codes so many bits can tell apart."""

    def advice(case, want, got):
        bits = case[0]
        if got == 2 * bits:
            return "each further bit doubles the number; it does not add two."
        if got == want - 1:
            return "that is the largest unsigned code; 0 is a code, too."
        if got == want / 2:
            return "that is one half of the codes; the negative ones count as well."
        return None

    cases = [(bits,) for bits in (2, 1, 4, 8)]
    labels = [f"{bits} bits" for (bits,) in cases]
    return compare("my_levels", my_levels, lambda bits: 2**bits, cases, advice, labels=labels)
