"""What verifiers share: a verdict, and safe ways to look at text that nobody has checked.

A completion is untrusted and can have a megabyte. So every pattern here and in the verifiers takes
time in proportion to the text: no quantifier can give back what another could take.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple, NoReturn

SHOWN_CHARACTERS = 80
MAX_DIGITS = 400
"""Longer integers are read as floats: Python refuses to read more than 4,300 digits."""

# Everything that would break a line, a terminal or UTF-8: control, format and lone surrogates.
_NOT_SHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_FENCE = re.compile(r"^[ \t]{0,3}(```|~~~)[ \t]*([A-Za-z0-9_+-]{0,30})[ \t]*\r?$", re.MULTILINE)


class Verdict(NamedTuple):
    """A score in [0, 1], exactly 1.0 on success, or None where nothing can be said."""

    score: float | None
    raw: str
    """One line: what failed, or "ok"."""


OK = Verdict(1.0, "ok")


def share(problems: list[str], checks: int) -> Verdict:
    """Return the share of checks met and every problem, or `OK`."""
    if not problems:
        return OK
    met = checks - len(problems)
    return Verdict(met / checks, one_line(f"{met} of {checks}: {'; '.join(problems)}", 500))


def one_line(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """Return at most ``limit`` characters of untrusted text as one printable line."""
    # Cut before cleaning: the rest of a megabyte is not looked at.
    line = " ".join(_NOT_SHOWN.sub(" ", text[: 4 * limit]).split())
    return line if len(line) <= limit and len(text) <= 4 * limit else line[: limit - 3] + "..."


def strict_json(text: str) -> Any:
    """Return the value of JSON text; NaN and Infinity are no JSON.

    Raises:
        ValueError: the text is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text, parse_int=_integer, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _integer(digits: str) -> float:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def without_fence(text: str) -> str:
    """Return the body of a text that is one fenced block, or the text."""
    stripped = text.strip()
    fences = list(_FENCE.finditer(stripped))
    whole = len(fences) == 2 and fences[0].start() == 0 and fences[1].end() == len(stripped)  # noqa: PLR2004
    return stripped[fences[0].end() : fences[1].start()] if whole else stripped


def code_block(text: str) -> str:
    """Return the first fenced block, up to the end if it is cut, or the text without a fence."""
    opened = _FENCE.search(text)
    if opened is None:
        return text
    for closed in _FENCE.finditer(text, opened.end()):
        if closed[1] == opened[1] and not closed[2]:
            return text[opened.end() : closed.start()]
    return text[opened.end() :]
