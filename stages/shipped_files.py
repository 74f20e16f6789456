"""YAML files that prefmill ships, called by their names, and the user's own, by their paths."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypeVar

from stages.configuration import Config
from stages.errors import ConfigError, MissingFileError, nearest
from stages.yaml_files import read_yaml_file

C = TypeVar("C", bound=Config)


class ShippedFiles(NamedTuple):
    """Files of one kind: what one is called, where they lie, and what to do about a wrong one."""

    what: str
    folder: Path
    correct: str
    """What to do where the named one isn't there."""
    guide: str
    """Where one reads how to write one."""

    def load(self, name: str, kind: type[C]) -> C:
        """Return the file called ``name``, or the YAML file of that path, as a ``kind``.

        Raises:
            MissingFileError: there is no such file; names those that are shipped.
            ConfigError: it is no YAML, or no ``kind`` (names every problem).
        """
        is_path = Path(name).suffix in {".yaml", ".yml"} or Path(name).name != name
        path = Path(name) if is_path else self.folder / f"{name}.yaml"
        if not path.is_file():
            shipped = sorted(file.stem for file in self.folder.glob("*.yaml"))
            raise MissingFileError(
                f"{self.what} {name!r} is not there{nearest(name, shipped)}",
                expected=f"one of {', '.join(shipped)}, or the path of a YAML file",
                where=str(path),
                remedy=self.correct,
            )
        values = read_yaml_file(path, self.guide)
        try:
            return kind.checked(values if isinstance(values, dict) else {})
        except ConfigError as error:
            raise ConfigError(error.found, where=str(path), remedy=self.guide) from None
