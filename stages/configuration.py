"""The base of every stage's configuration, and readable errors for bad ones."""

from __future__ import annotations

from typing import Any, Literal, Self, get_args, get_origin

import pydantic
import pydantic_core

from stages.errors import ConfigError, nearest
from stages.secret_values import refuse_secrets, without_secrets


class Config(pydantic.BaseModel):
    """A frozen, typed configuration; unknown keys are refused."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def checked(cls, values: dict[str, Any], where: str = "") -> Self:
        """Return the configuration for ``values``.

        Raises:
            ConfigError: naming every problem; for an unknown key also the nearest known one; or
                the settings that hold what looks like a key.
        """
        refuse_secrets(values, where or cls.__name__)
        try:
            return cls.model_validate(values)
        except pydantic.ValidationError as error:
            raise ConfigError(
                "; ".join(_sentence(cls, item) for item in error.errors()),
                where=where or cls.__name__,
                remedy="correct the keys named above; configs/refresh.yaml shows every key",
            ) from None

    def deciding(self) -> dict[str, Any]:
        """Return the resolved values as JSON, without those marked OPERATIONAL at any depth.

        They name an output: two configurations that agree in them share what was made.
        """
        plain = self.model_dump(mode="json")
        return {
            name: _deciding(getattr(self, name), plain[name])
            for name, field in type(self).model_fields.items()
            if OPERATIONAL not in field.metadata
        }


OPERATIONAL = "operational"
"""In a field's `Annotated`: it says how a result is got (timeouts, prices), not what it is."""


def _deciding(value: Any, plain: Any) -> Any:
    """Return ``plain``, the JSON of ``value``, without the operational fields inside."""
    if isinstance(value, Config):
        return value.deciding()
    if isinstance(value, tuple):
        return [_deciding(item, below) for item, below in zip(value, plain, strict=True)]
    return plain


def _not_empty(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise pydantic_core.PydanticCustomError("empty", "at least one is needed")
    return values


NOT_EMPTY = pydantic.AfterValidator(_not_empty)
"""For a list in a configuration. Pydantic's `min_length` also complains when an item is wrong."""


def _sentence(root: type[Config], item: Any) -> str:
    """Return one problem of a pydantic error as ``path: what is wrong (found ...)``."""
    path, _ = _followed(root, item["loc"])
    if item["type"] == "extra_forbidden":
        _, known = _followed(root, item["loc"][:-1])
        return f"unknown key {path!r}{nearest(str(item['loc'][-1]), known) or _listing(known)}"
    if item["type"] == "missing":
        return f"missing key {path!r}"
    problem = item["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    sentence = f"{path}: {without_secrets(problem)}" if path else without_secrets(problem)
    if item["type"] == "value_error" and isinstance(item["input"], dict):
        return sentence  # a whole section, of which the problem names the keys
    # Hidden before it is cut: a part of a key is no longer known as one.
    found = without_secrets(repr(item["input"]))
    return f"{sentence} (found {found:.80})"


def _listing(known: list[str]) -> str:
    return f"; known here: {', '.join(known)}" if known else ""


def _followed(root: type[pydantic.BaseModel], location: tuple[Any, ...]) -> tuple[str, list[str]]:
    """Return ``location`` as a user writes it (``prompts.sources[0]``) and the keys known there.

    Pydantic puts the tag (`kind`, `engine`) that chose among a union's models into the location: it
    narrows the keys known, but is no part of the path.
    """
    path, models = "", [root]
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif len(models) > 1 and (tagged := [m for m in models if part in (tag_of(m) or ())[1:]]):
            models = tagged
        else:
            path += f".{part}"
            fields = [m.model_fields[part] for m in models if part in m.model_fields]
            models = [model for field in fields for model in _models_in(field.annotation)]
    return path.lstrip("."), sorted({key for model in models for key in model.model_fields})


def tag_of(model: type[pydantic.BaseModel]) -> tuple[str, str] | None:
    """Return what chooses ``model`` within a union: its field with one possible value, and that."""
    for name, field in model.model_fields.items():
        values = get_args(field.annotation)
        if get_origin(field.annotation) is Literal and len(values) == 1:
            return name, values[0]
    return None


def _models_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]
