"""What names a training: its rows and the models that go in, by content."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from stages.content_ids import canonical_json, weights_hash
from stages.errors import MissingFileError

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl


def data_sha256(rows: pl.DataFrame) -> str:
    """Return the SHA-256 over every value of every row, in their order."""
    digest = hashlib.sha256()
    for row in rows.iter_rows():
        digest.update(canonical_json(row).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def named_weights_hash(name: str, folder: Path) -> str:
    """Return the weights hash of the model in ``folder``, which an error calls ``name``.

    Raises:
        MissingFileError: the folder holds no model.
    """
    try:
        return weights_hash(folder)
    except FileNotFoundError as error:
        raise MissingFileError(
            f"the {name} holds no model: {error}",
            expected="a folder with config.json, safetensors and a tokenizer",
        ) from None
