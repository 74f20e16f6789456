"""The errors of every room: what was found, what was expected, where, and what to do."""

from __future__ import annotations


class PrefmillError(Exception):
    """An error that a user can act on; ``str()`` gives the full sentence.

    Each subclass is also a standard exception, so ``except ValueError`` works as expected.
    """

    def __init__(
        self, found: str, *, expected: str = "", where: str = "", remedy: str = ""
    ) -> None:
        parts = [found.rstrip(".") + "."]
        if expected:
            parts.append(f"Expected {expected.rstrip('.')}.")
        if where:
            parts.append(f"Where: {where}.")
        if remedy:
            parts.append(f"To mend it: {remedy.rstrip('.')}.")
        super().__init__(" ".join(parts))
        self.found, self.expected, self.where, self.remedy = found, expected, where, remedy

    def __reduce__(self) -> tuple[object, ...]:
        """Pickling support: Prefect sends exceptions between processes."""
        return (_rebuild, (type(self), self.found, self.expected, self.where, self.remedy))


def _rebuild(
    kind: type[PrefmillError], found: str, expected: str, where: str, remedy: str
) -> PrefmillError:
    return kind(found, expected=expected, where=where, remedy=remedy)


class ConfigError(PrefmillError, ValueError):
    """A configuration that cannot be used."""


class DataError(PrefmillError, ValueError):
    """Rows, files or columns that cannot be used."""


class MissingFileError(PrefmillError, FileNotFoundError):
    """A file or folder that is named but not there."""


class UnknownIdError(PrefmillError, LookupError):
    """An id (run, pair, prompt, ...) that the workspace does not hold."""


class ModelError(PrefmillError, RuntimeError):
    """A model or tokenizer that cannot be used for what was asked."""


class WorkspaceError(PrefmillError, OSError):
    """A workspace that cannot be read or written."""


class ValidationError(PrefmillError, ValueError):
    """A table broke a ``must`` expectation at a boundary between stages."""


class EndpointError(PrefmillError, ConnectionError):
    """A server that can't be used for this run: every further request would fail as well."""


class UnreachableError(EndpointError):
    """No server answers now: the same may succeed a little later."""


class BudgetError(PrefmillError, RuntimeError):
    """A run that reached its limit of tokens or cost and stopped between two requests."""


def nearest(name: str, known: list[str], limit: int = 3) -> str:
    """Return ``"; nearest known: a, b"`` for the known names close to ``name``, or ``""``."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=limit, cutoff=0.4)
    return f"; nearest known: {', '.join(close)}" if close else ""
