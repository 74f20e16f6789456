"""The servers of one model and how they are asked."""

from __future__ import annotations

import os
from typing import Self

import pydantic

from stages.configuration import Config
from stages.errors import ConfigError


class EndpointConfig(Config):
    """Servers of one model and how they are asked; none of it decides what they answer."""

    base_urls: tuple[str, ...] = ()
    """One or more servers of the same model, e.g. `http://127.0.0.1:8000/v1`."""
    api_key_variable: str | None = None
    """Name of the environment variable that holds the key; a key never stands in a config."""
    api_key_secret: str | None = None
    """Name of the Secret block of Prefect's that holds the key, where a Prefect server is up."""
    maximum_in_flight: pydantic.PositiveInt = 256
    """Requests at once over all servers; fewer when a server answers 429, 503 or not in time."""
    requests_per_minute: pydantic.PositiveInt | None = None
    """Over all servers; null is no limit."""
    tokens_per_minute: pydantic.PositiveInt | None = None
    """Of prompts and completions, over all servers; null is no limit."""
    timeout_seconds: pydantic.PositiveFloat = 300.0
    """Of one request."""
    attempts: pydantic.PositiveInt = 6
    """Of one request, with a backoff that doubles from 1 s; `Retry-After` is honoured."""
    give_up_after_seconds: pydantic.PositiveFloat = 120.0
    """No server usable for so long: the run stops and can be resumed."""
    wait_for_name: bool = False
    """Wait for a host name that does not exist yet as for a server that is down, where names come
    with what they name (containers); false: the run stops at once, as after a typing error."""

    @pydantic.field_validator("base_urls")
    @classmethod
    def _http(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        from urllib.parse import urlsplit

        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ValueError(f"{url!r} is not an http:// or https:// address")
            if parts.username or parts.password:
                raise ValueError("a key belongs into the environment, not into an address")
        if len({url.rstrip("/") for url in urls}) < len(urls):
            raise ValueError("an address is named twice")
        return tuple(url.rstrip("/") for url in urls)

    @pydantic.model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.api_key_variable and self.api_key_secret:
            raise ValueError("`api_key_variable` and `api_key_secret` are two keys: leave one out")
        return self

    @property
    def has_key(self) -> bool:
        """Whether the servers want a key: they may want money, too."""
        return bool(self.api_key_variable or self.api_key_secret)

    def api_key(self) -> str | None:
        """Return the key, or None where the servers need none.

        Raises:
            ConfigError: the environment variable is not set, or the Secret block cannot be read.
        """
        if self.api_key_secret:
            from stages.secret_blocks import read_secret

            return read_secret(self.api_key_secret)
        if self.api_key_variable is None:
            return None
        if key := os.environ.get(self.api_key_variable, "").strip():
            return key
        raise ConfigError(
            f"the environment variable {self.api_key_variable} is not set",
            expected="the key of the endpoint in it",
            where=f"api_key_variable of {self.base_urls[0]}",
            remedy=f"export {self.api_key_variable}=...",
        )
