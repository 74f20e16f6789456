"""What the log of a vLLM server says of its end."""

from __future__ import annotations

import re

MAX_CAUSE = 500
"""Characters of a cause that are shown."""
LOG_PREFIX = re.compile(r"^(\(\w+ pid=\d+\) )?([A-Z]+ \d\d-\d\d [\d:]+ \[[^]]*\] )?")
EXCEPTION = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception): .|\S+: error: ")
SECONDHAND = re.compile(r"See (?:root cause|stack trace)", re.IGNORECASE)
"""How a process of vLLM's says that another one knows the cause."""


def failure_cause(log: str) -> str:
    """Return the last exception that a server's log names first-hand, or ``""``.

    Lines that are indented under it belong to it; what is no printable text is left out.
    """
    cause: list[str] = []
    within = False
    for raw in log.splitlines():
        line = LOG_PREFIX.sub("", raw)
        if EXCEPTION.match(line) and not SECONDHAND.search(line):
            cause, within = [line], True
        elif within and line.startswith("  "):
            cause.append(line.strip())
        else:
            within = False
    text = "".join(c for c in " ".join(cause) if c.isprintable())
    return text[:MAX_CAUSE]
