"""Pairs as Argilla takes them (argilla 2.x): one comparison a record, the label as a suggestion."""

from __future__ import annotations

import json

import polars as pl

RESPONSES = ("response_1", "response_2")
NUMBERS = ("chosen_score", "rejected_score", "margin")

GUIDELINES = (
    "Which response answers the prompt better? The suggestion is the label of the dataset; "
    "responses are in an order that says nothing about it."
)


def argilla_records(rows: pl.DataFrame) -> pl.DataFrame:
    """Return one record a row: `id` (the pair's), `fields`, `metadata`, `suggestions`.

    The chosen answer is the first response where the pair id's last character has an even code:
    half of all pairs, so that a place is no hint.
    """
    even = pl.col("pair_id").str.slice(-1).str.to_integer(base=16, strict=False) % 2 == 0
    chosen_first = even.fill_null(value=False)
    texts = [pl.col(side).list.first().struct.field("content") for side in ("chosen", "rejected")]
    first, second = (
        pl.when(chosen_first).then(of_even).otherwise(of_odd)
        for of_even, of_odd in (texts, texts[::-1])
    )
    label = pl.when(chosen_first).then(pl.lit(RESPONSES[0])).otherwise(pl.lit(RESPONSES[1]))
    suggestion = pl.struct(
        label.alias("value"), pl.col("scorer").alias("agent"), pl.col("confidence").alias("score")
    )
    return rows.select(
        pl.col("pair_id").alias("id"),
        pl.struct("prompt", first.alias(RESPONSES[0]), second.alias(RESPONSES[1])).alias("fields"),
        pl.struct(NUMBERS).alias("metadata"),
        pl.struct(suggestion.alias("preference")).alias("suggestions"),
    )


def argilla_settings() -> bytes:
    """Return the settings of the records' dataset, as `argilla.Settings.from_json` reads them."""
    fields = [
        {
            "name": name,
            "title": name.replace("_", " ").capitalize(),
            "required": name == "prompt",
            # Rendered Markdown would hide what a model really wrote, and fetch its images.
            "settings": {"type": kind, "use_markdown": False},
        }
        for name, kind in [("prompt", "chat"), *((name, "text") for name in RESPONSES)]
    ]
    options = [
        {"value": name, "text": name.replace("_", " ").capitalize(), "description": None}
        for name in (*RESPONSES, "tie")
    ]
    preference = {
        "name": "preference",
        "title": "Preference",
        "required": True,
        "settings": {"type": "label_selection", "options": options},
    }
    metadata = [
        {
            "name": name,
            "title": name.replace("_", " ").capitalize(),
            "visible_for_annotators": False,
            "settings": {"type": "float"},
        }
        for name in NUMBERS
    ]
    settings = {
        "guidelines": GUIDELINES,
        "fields": fields,
        "questions": [preference],
        "metadata": metadata,
        "vectors": [],
        "allow_extra_metadata": False,
    }
    return (json.dumps(settings, indent=2) + "\n").encode()
