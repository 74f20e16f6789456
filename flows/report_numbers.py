"""Numbers and times as the report writes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

NARROW_SPACE = "\u202f"


def count(value: float | None) -> str:
    """Return ``1,234``."""
    return "none" if value is None else f"{value:,.0f}"


def number(value: float | None) -> str:
    """Return three significant digits; from a thousand on, the whole number."""
    if value is None:
        return "none"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"  # noqa: PLR2004
    return text.replace("-", "\u2212")


def percent(value: Any) -> str:
    """Return a share as ``12.3 %``."""
    return "none" if value is None else f"{100 * value:.1f}{NARROW_SPACE}%"


def signed(value: float, digits: int) -> str:
    """Return a change with its sign."""
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def seconds(value: float) -> str:
    """Return a time as ``4.2 s``, ``3 min 02 s`` or ``1 h 05 min``."""
    if value < 60:  # noqa: PLR2004
        return f"{value:.1f}{NARROW_SPACE}s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def moment(value: object) -> str:
    """Return a time in UTC to the minute."""
    if not isinstance(value, datetime):
        return str(value or "")
    universal = value.astimezone(UTC) if value.tzinfo else value
    return f"{universal:%Y-%m-%d %H:%M} UTC"


def duration(run: dict[str, Any]) -> str:
    """Return how long a run took; nothing while that is not known."""
    start, end = run.get("started_at"), run.get("ended_at")
    if not (isinstance(start, datetime) and isinstance(end, datetime)):
        return ""
    return seconds(max(0.0, (end - start).total_seconds()))  # a clock may have jumped
