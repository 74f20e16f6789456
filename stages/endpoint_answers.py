"""What an HTTP answer other than 200 means for the request, and for the run."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Literal, NamedTuple

from stages.answer_text import one_line

MESSAGE_LENGTH = 300
"""Characters of a server's message that are shown."""
WRONG_KEY = (401, 403)


class Failure(NamedTuple):
    """Why an attempt came to nothing."""

    reason: str
    kind: Literal["unreachable", "busy", "failed", "rejected", "fatal"]
    retry_after_seconds: float | None = None


def may_pass(status: int) -> bool:
    """Return whether a server refuses for now: it is loading, busy or down behind its balancer."""
    return status in {408, 409, 425, 429} or status >= 500  # noqa: PLR2004 - HTTP statuses


def refusal(status: int, headers: Any, raw: bytes) -> Failure:
    """Return what a status other than 200 means."""
    wait = _retry_after(headers)
    message, code = _message(raw)
    if status == 429 and code == "insufficient_quota":  # noqa: PLR2004 - waiting won't help
        return Failure(f"the account has no quota left: {message}", "fatal")
    if status == 429 or (status == 503 and wait is not None):  # noqa: PLR2004 - HTTP statuses
        return Failure(f"http_{status}", "busy", wait)
    if may_pass(status):
        return Failure(f"http_{status}", "failed", wait)
    if status in {400, 413, 422}:
        return Failure(f"rejected: {message}", "rejected")
    what = "the key is refused" if status in WRONG_KEY else "the request is refused"
    return Failure(f"{what} (HTTP {status}: {message})", "fatal")


def _message(raw: bytes) -> tuple[str, str]:
    """Return the message and the code in an error's body: what a server wrote, cut."""
    import orjson

    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError:
        found = raw.decode("utf-8", "replace")
    code = ""
    if isinstance(found, dict):
        inner = found.get("error", found)
        code = str(inner.get("code", "")) if isinstance(inner, dict) else ""
        found = (inner.get("message") or inner) if isinstance(inner, dict) else inner
    return one_line(str(found), MESSAGE_LENGTH), code


def _retry_after(headers: Any) -> float | None:
    """Return the seconds that `Retry-After` asks for: a number, or a date (RFC 9110, 10.2.3)."""
    from email.utils import parsedate_to_datetime

    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        with contextlib.suppress(ValueError):
            seconds = float(text) / unit
            if 0 <= seconds < float("inf"):
                return seconds
        with contextlib.suppress(ValueError):
            return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return None
