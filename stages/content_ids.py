"""Ids and hashes that come from content, so that the same row has the same id in every run."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ID_HEX_DIGITS = 20
"""80 bits: under one collision in 10^9 workspaces of 10 million rows."""


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def canonical_json(value: object) -> str:
    """Return ``value`` as JSON with sorted keys and no spaces: equal values give equal text."""
    return _CANONICAL.encode(value)


def content_hash(value: object) -> str:
    """Return the first 20 hex digits of the SHA-256 of ``value``'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:ID_HEX_DIGITS]


def content_ids(frame: pl.DataFrame, prefix: str, columns: Sequence[str]) -> pl.Series:
    """Return one id per row, ``prefix_`` and 20 hex digits, hashed from ``columns``.

    The hashed text joins each value with its byte length, so that ("ab", "c") and ("a", "bc")
    differ, and marks nulls. Columns must be strings or integers: a float's text is not stable.
    """
    parts: list[pl.Expr] = []
    for column in columns:
        if frame.schema[column].is_float():
            raise TypeError(f"column {column!r} is a float; ids are hashed from text and integers")
        text = pl.col(column).cast(pl.String)
        tagged = pl.concat_str([text.str.len_bytes().cast(pl.String), pl.lit(":"), text])
        parts.append(tagged.fill_null("~"))
    joined = frame.select(pl.concat_str(parts, separator="|")).to_series()
    # hashlib over a list takes 0.7 s per million rows; Polars' own hash changes with its version.
    digits = [hashlib.sha256(text.encode()).hexdigest()[:ID_HEX_DIGITS] for text in joined]
    return pl.Series(f"{prefix}_id", [f"{prefix}_{d}" for d in digits], dtype=pl.String)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_hash(folder: Path) -> str:
    """Return 20 hex digits naming the model in ``folder``: every weight file and its config.

    Two folders with the same bytes have the same hash, wherever they lie. Raises
    ``FileNotFoundError`` when the folder holds no ``config.json`` or no weights.
    """
    config = folder / "config.json"
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    if not config.is_file() or not weights:
        raise FileNotFoundError(f"{folder} holds no config.json with *.safetensors or *.bin")
    return content_hash({path.name: file_sha256(path) for path in [config, *weights]})


MODEL_SUFFIXES = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"}

RECORDS_OF_MAKING = {"manifest.json", "training.json"}


def folder_hash(folder: Path) -> str:
    """Return 20 hex digits over every model file in ``folder``: weights, tokenizer, template.

    Records of how the model was made (`manifest.json`, `training.json`, metrics) don't count.
    """
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in MODEL_SUFFIXES and path.name not in RECORDS_OF_MAKING
    )
    return content_hash({path.name: file_sha256(path) for path in files})
