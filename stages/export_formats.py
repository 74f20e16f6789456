"""The file formats of trainers: what each one's loader takes, and what it would not take."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from stages.argilla_records import argilla_records, argilla_settings
from stages.dataset_card import HUB_SPLITS, DatasetFacts, dataset_card
from stages.errors import DataError
from stages.export_writers import ArrayWriter, LinesWriter, ParquetWriter, RowWriter, Sink
from stages.tables import MESSAGES, SPLITS
from stages.unpaired import has_text

if TYPE_CHECKING:
    from collections.abc import Callable

    Shape = Callable[[pl.DataFrame], pl.DataFrame]
    Facts = Callable[[], DatasetFacts]

TRL_SCHEMA = pa.schema(
    [
        *((name, MESSAGES) for name in ("prompt", "chosen", "rejected")),
        ("pair_id", pa.string()),
        *((name, pa.float64()) for name in ("chosen_score", "rejected_score", "margin")),
        *((name, pa.float64()) for name in ("confidence", "length_weight")),
    ]
)

TRL_COLUMNS = tuple(TRL_SCHEMA.names)

UNPAIRED = "trl_unpaired_jsonl"
"""The format whose rows are answers, not pairs."""

SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}

AXOLOTL_DUMMY_MESSAGE = "[[dummy_message]]"
"""What `chat_template.default` puts before an answer; it then cuts at the answer's first place."""

COMPLETIONS = {role: pl.col(role).list.first().struct.field("content") for role in TRL_COLUMNS[1:3]}


@dataclass(frozen=True)
class FileFormat:
    """One target's file of each split, and the pairs that its loader would not take."""

    file_name: str
    """Names of all formats differ. `{split}` stands for the split, `{hub_split}` for its name on
    the Hugging Face hub."""
    writer: Callable[[Sink], RowWriter]
    roles: str = ""
    """A regular expression of the prompt's roles, joined by commas; empty takes any."""
    order: str = ""
    """The same in words."""
    completions: tuple[tuple[str, Callable[[pl.Expr], pl.Expr]], ...] = ()
    """What both completions must be: in words, and whether a text is."""
    texts: tuple[tuple[str, Callable[[pl.Expr], pl.Expr]], ...] = ()
    """The same of every text, the prompt's messages too."""

    def name_of(self, split: str) -> str:
        """Return the name of a split's file, with forward slashes."""
        return self.file_name.format(split=split, hub_split=HUB_SPLITS[split])


@dataclass(frozen=True)
class Companion:
    """One file beside a format's files that says what they are."""

    name: str
    """In `exports.format`; there it is of split `train` and holds no pairs."""
    file_name: str
    content: Callable[[Facts], bytes]
    """Asks for the facts only if it states them: they take a look at all tables."""


def require_allowed(rows: pl.DataFrame, format_name: str) -> None:
    """Check rows of TRL's preference format against the constraints of another target.

    Raises:
        DataError: the target would refuse, skip or garble a pair; names the first such pair, the
            constraint and the format.
    """
    for constraint, holds in _constraints(FORMATS[format_name]):
        broken = rows.filter(~holds.fill_null(value=False))["pair_id"]
        if len(broken):
            more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
            raise DataError(
                f"pair {broken[0]!r}{more} can't be exported as {format_name}",
                expected=constraint,
                remedy=f"filter such pairs or prompts, or take {format_name} out of export.formats",
            )


def _constraints(target: FileFormat) -> list[tuple[str, pl.Expr]]:
    constraints = []
    if target.roles:
        roles = pl.col("prompt").list.eval(pl.element().struct.field("role")).list.join(",")
        constraints.append((target.order, roles.str.contains(f"^(?:{target.roles})$")))
    for words, holds in (*target.completions, *target.texts):
        constraints += [(f"{role} {words}", holds(text)) for role, text in COMPLETIONS.items()]
    for words, holds in target.texts:
        each = pl.col("prompt").list.eval(holds(pl.element().struct.field("content")))
        constraints.append((f"every message of the prompt {words}", each.list.all()))
    return constraints


def pair_lines(rows: pl.DataFrame) -> pl.DataFrame:
    """Return `pair_id` and `line`, from 1, of every pair in a file of pairs."""
    return rows.select("pair_id", line=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))


def _trl(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(TRL_COLUMNS)


def _openai(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows without a `pair_id`: OpenAI publishes no other key than these three."""
    return rows.select(
        pl.struct(messages="prompt").alias("input"),
        preferred_output="chosen",
        non_preferred_output="rejected",
    )


def _axolotl(rows: pl.DataFrame) -> pl.DataFrame:
    answers = [pl.col(role).list.first() for role in COMPLETIONS]
    return rows.select(pl.col("prompt").alias("messages"), *answers, "pair_id")


def _sharegpt(rows: pl.DataFrame) -> pl.DataFrame:
    role, content = (pl.element().struct.field(name) for name in ("role", "content"))
    named = role.replace_strict(SHAREGPT_ROLES, return_dtype=pl.String)
    turns = pl.col("prompt").list.eval(pl.struct(named.alias("from"), content.alias("value")))
    answers = [
        pl.struct(pl.lit("gpt").alias("from"), text.alias("value")).alias(side)
        for side, text in COMPLETIONS.items()
    ]
    return rows.select(turns.alias("conversations"), *answers, "pair_id")


def _llama_factory_info(_: Facts) -> bytes:
    """Return the `dataset_info.json` of both splits: `prefmill_train` and `prefmill_heldout`."""
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    entries: dict[str, dict[str, Any]] = {
        f"prefmill_{split}": {
            "file_name": FORMATS["llama_factory_json"].name_of(split),
            "formatting": "sharegpt",
            "ranking": True,
            "columns": columns,
        }
        for split in SPLITS
    }
    return (json.dumps(entries, indent=2) + "\n").encode()


def _lines(shape: Shape) -> Callable[[Sink], RowWriter]:
    return lambda sink: LinesWriter(sink, shape)


def _array(shape: Shape) -> Callable[[Sink], RowWriter]:
    return lambda sink: ArrayWriter(sink, shape)


def _parquet(sink: Sink) -> RowWriter:
    return ParquetWriter(sink, TRL_SCHEMA)


def _unlike_dummy(text: pl.Expr) -> pl.Expr:
    return ~pl.lit(AXOLOTL_DUMMY_MESSAGE).str.contains(text, literal=True)


def _without_nul(text: pl.Expr) -> pl.Expr:
    return ~text.str.contains("\0", literal=True)


HAS_TEXT = ("must be more than white space", has_text)
UNLIKE_DUMMY = (f"must not occur in {AXOLOTL_DUMMY_MESSAGE!r}: axolotl cuts there", _unlike_dummy)
WITHOUT_NUL = ("must hold no NUL character: Argilla's database takes none", _without_nul)

FORMATS: dict[str, FileFormat] = {
    "trl_jsonl": FileFormat("{split}.jsonl", _lines(_trl)),
    "trl_parquet": FileFormat("{split}.parquet", _parquet),
    UNPAIRED: FileFormat("{split}.unpaired.jsonl", _lines(lambda answers: answers)),
    "openai_jsonl": FileFormat(
        "{split}.openai.jsonl",
        _lines(_openai),
        "(?:(?:system|user|assistant),)*user",
        # A tool message needs the id of the call that it answers, which prompts don't hold.
        "a prompt of system, user and assistant messages whose last is the user's",
        (HAS_TEXT,),
    ),
    "llama_factory_json": FileFormat(
        "{split}.llama_factory.json",
        _array(_sharegpt),
        "(?:system,)?(?:(?:user|tool),assistant,)*user",
        "a prompt of at most one system message, then user (or tool) and assistant in turn, "
        "the last the user's",
        (HAS_TEXT,),
    ),
    "axolotl_jsonl": FileFormat(
        "{split}.axolotl.jsonl",
        _lines(_axolotl),
        "(?:(?:system|user|assistant|tool),)*user",
        "a prompt of system, user, assistant and tool messages whose last is the user's",
        (HAS_TEXT, UNLIKE_DUMMY),
    ),
    "argilla_json": FileFormat(
        "{split}.argilla.json", _array(argilla_records), texts=(WITHOUT_NUL,)
    ),
    "hf_dataset": FileFormat("hf_dataset/data/{hub_split}-00000-of-00001.parquet", _parquet),
}
"""Every format that `export.formats` can name."""

COMPANIONS = {
    "llama_factory_json": Companion("llama_factory_info", "dataset_info.json", _llama_factory_info),
    "argilla_json": Companion(
        "argilla_settings", "argilla_settings.json", lambda _: argilla_settings()
    ),
    "hf_dataset": Companion(
        "hf_dataset_card", "hf_dataset/README.md", lambda facts: dataset_card(facts())
    ),
}
"""The file that a format has besides, by the format's name."""
