"""YAML that users write, read so that no key is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from stages.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses two equal keys in a mapping, of which the usual one takes one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                raise yaml.MarkedYAMLError(
                    "in a mapping", node.start_mark, f"the key {key.value!r} twice", key.start_mark
                )
            seen.add((key.tag, str(key.value)))
        return node

    def construct_scalar(self, node: Any) -> Any:
        value: Any = super().construct_scalar(node)
        if isinstance(value, str):
            try:
                # JSON writes an emoji as two escapes, which YAML reads as two halves.
                return value.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeError:
                raise yaml.MarkedYAMLError(
                    problem="half a character", problem_mark=node.start_mark
                ) from None
        return value

    def construct_document(self, node: yaml.Node) -> Any:
        self.deep_construct = True  # so that an alias within its own anchor is an error
        return super().construct_document(node)


def read_yaml_file(path: Path, remedy: str = "") -> Any:
    """Return what a file of one YAML document holds.

    Raises:
        ConfigError: it is no YAML, has a key twice in one mapping, or a value that is none.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a safe one
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: the 31st of June
        raise ConfigError(f"not YAML: {error}", where=str(path), remedy=remedy) from None
