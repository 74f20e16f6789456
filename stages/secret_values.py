"""Keys and passwords: what looks like one, and how a text is shown without it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from stages.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

HIDDEN = "***"
LOOKS_SECRET = re.compile(
    r"""
      (?<![A-Za-z0-9]) (?:
          sk-[A-Za-z0-9_-]{16,}                             # OpenAI, Anthropic and their like
        | hf_[A-Za-z0-9]{16,}                               # Hugging Face
        | (?:ghp|gho|ghu|ghs|ghr|github_pat)_[A-Za-z0-9_]{16,}
        | (?:AKIA|ASIA)[A-Z0-9]{16}                         # AWS
        | AIza[A-Za-z0-9_-]{30,}                            # Google
        | xox[abposr]-[A-Za-z0-9-]{10,}                     # Slack
        | (?:gsk|xai|nvapi|pnu|r8)[_-][A-Za-z0-9_-]{16,}    # Groq, xAI, NVIDIA, Prefect, Replicate
        | eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*   # a JSON web token
      )
      | (?<=://) [^/\s@:]* : [^/\s@]+ (?=@)                 # user:password@ in an address
      | (?<=hooks\.slack\.com/services/) [A-Za-z0-9/]{10,}
    """,
    re.VERBOSE,
)
SECRET_NAME = re.compile(
    r"(?:^|_)(?:api_?key|password|passwd|secret_key|client_secret|access_token|auth_token)$",
    re.IGNORECASE,
)
"""Of a setting that holds the secret itself, not the name of the variable that does."""


def without_secrets(text: str) -> str:
    """Return ``text`` with ``***`` in place of all that looks like a key or a password."""
    return LOOKS_SECRET.sub(HIDDEN, text)


def refuse_secrets(values: dict[str, Any], where: str) -> None:
    """Return if no value of a configuration looks like a key.

    Raises:
        ConfigError: naming the settings, not what they hold.
    """
    found = sorted(set(_secret_paths(values, "")))
    if found:
        raise ConfigError(
            f"{', '.join(found)} holds what looks like a key or a password",
            expected="no secret in a configuration: it is stored with every run",
            where=where,
            remedy="put it into an environment variable and name that in `api_key_variable`, or "
            "into a Secret block of Prefect's and name that in `api_key_secret`; and make a new "
            "key if this file was shared",
        )


def _secret_paths(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            below = f"{path}.{key}" if path else str(key)
            if isinstance(inner, str) and inner and SECRET_NAME.search(str(key).replace("-", "_")):
                yield below
            yield from _secret_paths(inner, below)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _secret_paths(inner, f"{path}[{index}]")
    elif isinstance(value, str) and LOOKS_SECRET.search(value):
        yield path
