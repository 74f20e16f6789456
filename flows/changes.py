"""A configuration with every key left out: what a form lays over a configuration file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from flows.configuration import PipelineConfig
from stages.configuration import Config

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


def changes_to(model: type[Config], left_out: frozenset[str] = frozenset()) -> type[Config]:
    """Return ``model`` with every field optional, at any depth of sections; null changes nothing.

    Descriptions and bounds stay. What several fields must have in common is not checked: that is
    for the configuration which the changes are laid over. A list is changed as a whole.
    """
    fields: dict[str, Any] = {
        name: (_optional(field), pydantic.Field(None, description=field.description))
        for name, field in model.model_fields.items()
        if name not in left_out
    }
    return pydantic.create_model(
        f"{model.__name__}Changes", __base__=Config, __doc__=model.__doc__, **fields
    )


def _optional(field: FieldInfo) -> Any:
    annotation: Any = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, Config):
        annotation = changes_to(annotation)
    if field.metadata:
        annotation = Annotated[(annotation, *field.metadata)]
    return annotation | None


# The name says whose runs and whose promoted policy these are: another name is another file. The
# others are filled in when a run starts.
LEFT_OUT = frozenset({"name", "earlier_rounds", "initial_policy", "average_policy"})

PipelineChanges: Any = changes_to(PipelineConfig, LEFT_OUT)
"""Keys of a pipeline's configuration, each of which may be left out."""


def unforced(overrides: dict[str, Any]) -> dict[str, Any]:
    """Return ``overrides`` of a stored configuration, whose `gate.force` is off unless they set it.

    A run that was forced does not force those that take its settings.
    """
    return {**overrides, "gate": {"force": False, **(overrides.get("gate") or {})}}


def as_overrides(changes: Config | None) -> dict[str, Any]:
    """Return the keys that ``changes`` names, to be laid over a configuration file's."""
    return changes.model_dump(mode="json", exclude_none=True) if changes else {}
