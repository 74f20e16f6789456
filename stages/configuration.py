"""The base of every stage's configuration, and readable errors for bad ones."""

from __future__ import annotations

from typing import Any, Self

import pydantic

from stages.content_ids import content_hash
from stages.errors import ConfigError, nearest


class Config(pydantic.BaseModel):
    """A frozen, typed configuration; unknown keys are refused."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def checked(cls, values: dict[str, Any], where: str = "") -> Self:
        """Return the configuration for ``values``.

        Raises:
            ConfigError: naming every problem; for an unknown key also the nearest known one.
        """
        try:
            return cls.model_validate(values)
        except pydantic.ValidationError as error:
            raise ConfigError(
                "; ".join(_sentence(cls, item) for item in error.errors()),
                where=where or cls.__name__,
                remedy="correct the keys named above; configs/refresh.yaml shows every key",
            ) from None

    def fingerprint(self) -> str:
        """Return 20 hex digits that change when any resolved value changes."""
        return content_hash(self.model_dump(mode="json"))


def _sentence(root: type[Config], item: Any) -> str:
    """Return one problem of a pydantic error as ``path: what is wrong (found ...)``."""
    location = [part for part in item["loc"] if not _is_union_tag(part)]
    path = ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        known = _known_keys(root, location[:-1])
        return f"unknown key {path!r}{nearest(str(location[-1]), known) or _listing(known)}"
    if item["type"] == "missing":
        return f"missing key {path!r}"
    return f"{path}: {item['msg']} (found {item['input']!r})"


def _is_union_tag(part: object) -> bool:
    return isinstance(part, str) and part.startswith("kind=")


def _listing(known: list[str]) -> str:
    return f"; known here: {', '.join(known)}" if known else ""


def _known_keys(root: type[pydantic.BaseModel], path: list[Any]) -> list[str]:
    """Return the keys allowed at ``path`` below ``root``, over every alternative of a union."""
    models: list[type[pydantic.BaseModel]] = [root]
    for part in path:
        if isinstance(part, int):
            continue
        found: list[type[pydantic.BaseModel]] = []
        for model in models:
            if part in model.model_fields:
                found += _models_in(model.model_fields[part].annotation)
        models = found or models
    return sorted({key for model in models for key in model.model_fields})


def _models_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    from typing import get_args

    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]
