"""The number that an answer gives, read exactly, or the reason why it cannot be read."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Literal

from stages.answer_text import MAX_DIGITS, one_line

Percent = Literal["missing", "hundredths", "sign_ignored"]
Take = Literal["marked_or_last", "marked", "last"]

# A run of digits with what may stand between digits. Letters, "_" and "." before it make it a part
# of a name (x2, H2O); `_VALUE` decides whether the run is one number (12:30 and 1.2.3 are not).
_RUN = re.compile(
    r"(?<![A-Za-z0-9_.])(?P<sign>[+-]?)(?P<money>[$€£]?)"
    r"(?P<run>\.?[0-9](?:[0-9]|[.,/:](?=[0-9]))*+(?:[eE][+-]?+[0-9]++(?![0-9A-Za-z]))?+)"
    r"(?P<percent>\s?%)?"
)
_VALUE = re.compile(
    r"(?P<whole>[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)?(?P<decimals>\.[0-9]+)?(?:[eE](?P<exponent>[+-]?[0-9]+))?"
    r"(?:/(?P<denominator>[0-9]+))?"
)
_REWRITTEN: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile("[\u2212\u2013\ufe63\uff0d]"), "-"),
    (re.compile(r"(?<=[0-9])(?:\{,\}|\\,|[\u00a0\u202f\u2009])(?=[0-9]{3})"), ","),
    (re.compile(r"(?<=[0-9])\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}"), r" \1/\2"),
    (re.compile(r"\\[dt]?frac\{([+-]?[0-9]+)\}\{([0-9]+)\}"), r"\1/\2"),
    (re.compile(r"(?<=[0-9]) ?/ ?(?=[0-9])"), "/"),
    (re.compile(r" ?(?:[\u00d7\u00b7x*]|\\times|\\cdot) ?10\^\{([+-]?[0-9]+)\}"), r"e\1"),
    (re.compile(r" ?(?:[\u00d7\u00b7x*]|\\times|\\cdot) ?10\^([+-]?[0-9]+)"), r"e\1"),
    (re.compile(r"\\([%$])"), r"\1"),
)  # fmt: skip
# A run after one of these is a part of something: an exponent, an operand, a group of digits.
_OPENED = re.compile(
    r"(?:[/:,+-]|\^\{?|[0-9)]\*\*|\\[dt]?frac\{(?:[^{}]*\}\{)?"
    r"|(?<![0-9])[0-9]{1,3}(?P<gap>[ '\u2019]))$"
)
_GROUP = re.compile(r"[0-9]{3}(?![0-9])")
_BOX = "\\boxed{"
_HASHES = "####"


class UnreadableNumberError(ValueError):
    """The answer has a number that can be read in more than one way, or in none."""


def answered_number(text: str, take: Take, percent: Percent) -> Fraction | None:
    r"""Return the number that an answer ends with or marks, or None without one.

    A mark is ``\boxed{...}``, then ``####``. Thousands may be grouped by commas; 3/4, 1 3/4 and
    2.5e3 are numbers.

    Raises:
        UnreadableNumberError: the number can be read in several ways (12:30, 1,23, 2^10, 5 %).
    """
    marked = _marked(text) if take != "last" else None
    if marked is None:
        return None if take == "marked" else _number(text, percent, first=False)
    after_hashes, part = marked
    return _number(part, percent, first=after_hashes)


def _marked(text: str) -> tuple[bool, str] | None:
    """Return what stands in the last box or, then with True, after the last ####.

    That is the first line there with a digit: what has #### may be a heading.
    """
    start = text.rfind(_BOX)
    if start >= 0:
        depth, begin = 1, start + len(_BOX)
        for place in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                return False, text[begin:place]
        return False, text[begin:]
    start = text.rfind(_HASHES)
    if start < 0:
        return None
    lines = text[start + len(_HASHES) :].splitlines()
    return True, next((line for line in lines if re.search("[0-9]", line)), "")


def _number(text: str, percent: Percent, *, first: bool) -> Fraction | None:
    """Return the first or last number of ``text``."""
    for pattern, plain in _REWRITTEN:
        text = pattern.sub(plain, text)
    before = chosen = None
    for match in _RUN.finditer(text):
        mixed = chosen is not None and _are_mixed(chosen, match)
        if first and chosen is not None and not mixed:
            break
        before, chosen = chosen if mixed else None, match
    if chosen is None:
        return None
    if _is_part(text, chosen) or (first and _is_grouped(text, chosen)):
        shown = text[max(0, chosen.start() - 10) : chosen.end()]
        raise UnreadableNumberError(f"cannot read {one_line(shown, 40)!r} as one number")
    value = _value(chosen["run"])
    negative = chosen["sign"] == "-"
    if before is not None:
        value += _value(before["run"])
        negative = before["sign"] == "-"
    # In 10-5 the sign is an operator.
    start = (before or chosen).start()
    if negative and start and (text[start - 1].isalnum() or text[start - 1] in ")]}-"):
        shown = text[max(0, start - 10) : chosen.end()]
        raise UnreadableNumberError(f"cannot tell a sign from a minus in {one_line(shown, 40)!r}")
    if chosen["percent"]:
        value = _of_percent(value, chosen.group(), percent)
    return -value if negative else value


def _is_part(text: str, run: re.Match[str]) -> bool:
    """Return whether something that stands before a run makes it a part of more than a number."""
    opened = _OPENED.search(text, max(0, run.start() - 40), run.start())
    if opened is None:
        return False
    return opened["gap"] is None or _GROUP.match(run["run"]) is not None


def _is_grouped(text: str, run: re.Match[str]) -> bool:
    """Return whether groups of three digits follow a run, as in 12 000."""
    return re.match(r"[ '\u2019][0-9]{3}(?![0-9])", text[run.end() : run.end() + 5]) is not None


def _are_mixed(whole: re.Match[str], part: re.Match[str]) -> bool:
    """Return whether two neighbouring runs are one number, like 1 3/4."""
    return (
        part.start() == whole.end() + 1
        and part.string[whole.end()] == " "
        and whole["run"].isdecimal()
        and not (part["sign"] or part["money"] or whole["percent"])
        and re.fullmatch(r"[0-9]+/[0-9]+", part["run"]) is not None
    )


def _value(run: str) -> Fraction:
    parts = _VALUE.fullmatch(run) if len(run) <= MAX_DIGITS else None
    if parts is None or not (parts["whole"] or parts["decimals"]):
        raise UnreadableNumberError(f"cannot read {one_line(run, 40)!r} as one number")
    exponent, denominator = int(parts["exponent"] or 0), int(parts["denominator"] or 1)
    if abs(exponent) > MAX_DIGITS or not denominator:
        what = "a division by zero" if not denominator else "an exponent that is too large"
        raise UnreadableNumberError(f"{what} in {one_line(run, 40)!r}")
    digits = (parts["whole"] or "0").replace(",", "") + (parts["decimals"] or "")
    return Fraction(digits) * Fraction(10) ** exponent / denominator


def _of_percent(value: Fraction, shown: str, percent: Percent) -> Fraction:
    if percent == "missing":
        raise UnreadableNumberError(
            f"{one_line(shown, 40)!r} is a percentage, and the ground truth's `percent` doesn't "
            "say how to read it"
        )
    return value / 100 if percent == "hundredths" else value
