"""The dataset card: its counts by hand, and names from data that stay text."""

import logging

import datasets
import polars as pl
import pytest
import yaml

from stages.dataset_card import DatasetFacts, dataset_card, dataset_facts, escaped
from stages.export import preference_rows
from stages.export_formats import FORMATS, TRL_COLUMNS
from stages.tables import DECISIONS, SCORER_HEALTH
from tests.stages.rows import candidates, pairs, prompts, table_of
from tests.stages.test_export import TEXTS, built
from tests.stages.written import encode

HEALTH = {
    "scorer": "judge",
    "measure": "tie_rate",
    "value": 0.125,
    "count": 8,
    "limit": 0.5,
    "passed": True,
}


def ruling(pair, name, position, *, kept):
    reason = None if kept else f"bad_{name}"
    return {"pair_id": pair, "filter": name, "position": position, "kept": kept, "reason": reason}


def facts(licence=None, source="web"):
    """Return the facts of 3 train prompts, 1 held-out and 1 gold one, with a pair each."""
    splits = ["train", "train", "train", "heldout", "gold"]
    ids = [str(i) for i in range(5)]
    tables = {
        "prompts": prompts(
            *(
                {"prompt_id": i, "split": split, "source": source}
                for i, split in zip(ids, splits, strict=True)
            )
        ),
        "candidates": candidates(
            *({"prompt_id": i, "candidate_id": f"{i}{n}"} for i in ids for n in range(4))
        ),
        "pairs": pairs(
            *(
                {"pair_id": f"pair_{i}", "prompt_id": i, "scorer": "judge", "strategy": "best"}
                for i in ids[:4]
            )
        ),
        "decisions": table_of(
            DECISIONS,
            [
                ruling("pair_0", "margin", 0, kept=True),
                # Dropped by both: counted for the first in the configured order.
                ruling("pair_1", "length", 1, kept=False),
                ruling("pair_1", "margin", 0, kept=False),
            ],
        ),
        "scorer_health": table_of(SCORER_HEALTH, [HEALTH]),
    }
    return dataset_facts({name: table.lazy() for name, table in tables.items()}, licence)


def header(card):
    return yaml.safe_load(card.decode().split("---\n")[1])


def test_counts_by_hand():
    found = facts()
    assert list(found.steps.iter_rows()) == [
        ("prompts", 3, 1),
        ("candidates", 12, 4),
        ("pairs", 3, 1),
        ("kept pairs", 2, 1),
    ]
    assert list(found.origins.iter_rows()) == [("web", "best", "judge", 2, 1)]
    assert list(found.drops.iter_rows()) == [("margin", "bad_margin", 1)]


def test_the_card_states_them_and_the_licence():
    card = dataset_card(facts("cc-by-4.0"))
    top = header(card)
    assert (top["license"], top["size_categories"]) == ("cc-by-4.0", ["n<1K"])
    text = card.decode()
    assert "| web | best | judge | 2 | 1 |" in text
    assert "| margin | bad\\_margin | 1 |" in text
    assert "| judge | tie\\_rate | 0.125 | 8 | 0.5 | yes |" in text
    assert "license" not in header(dataset_card(facts()))


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        "a | b",
        "two\nlines\r\n\n# heading",
        "[link](https://example.org)",
        "https://example.org",
        "---\nlicense: mit\n---",
        "`code` *bold* ~~x~~ &amp; \\",
        "\u2028separator\u202e",
        "x" * 200,
    ],
)
def test_a_name_from_data_is_text_in_one_cell(name):
    card = dataset_card(facts(source=name))
    assert header(card) == header(dataset_card(facts()))
    rows = [line for line in card.decode().split("\n") if "| best | judge |" in line]
    assert rows == [f"| {escaped(name)} | best | judge | 2 | 1 |"]
    # Every character that Markdown or HTML could read is escaped: none stands alone.
    plain = escaped(name).replace("\\\\", "")
    for mark in "<>|[]()`*_~&:#!-.":
        assert plain.count(mark) == plain.count("\\" + mark)
    assert len(escaped(name)) < 200


@pytest.mark.parametrize("heldout", [(1, 4), ()])
def test_load_dataset_reads_the_folder_back(tmp_path, heldout, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("datasets"), "propagate", True)
    datasets.disable_progress_bars()
    tables = built([*TEXTS, "long " * 200_000], heldout=heldout)
    rows = {
        hub: preference_rows(*tables, split)
        for split, hub in (("train", "train"), ("heldout", "test"))
    }
    for split, hub in (("train", "train"), ("heldout", "test")):
        path = tmp_path / FORMATS["hf_dataset"].name_of(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(rows[hub], "hf_dataset"))
    counts = {hub: of.height for hub, of in rows.items()}
    steps = pl.DataFrame([{"step": "kept pairs", **counts}])
    empty = facts()
    card = dataset_card(DatasetFacts(steps, empty.origins, empty.drops, empty.health, None))
    (tmp_path / "hf_dataset" / "README.md").write_bytes(card)
    loaded = datasets.load_dataset(str(tmp_path / "hf_dataset"), cache_dir=str(tmp_path / "cache"))
    assert "dataset card" not in caplog.text  # it warns of what it can't take from the header
    assert set(loaded) == ({"train", "test"} if heldout else {"train"})
    for hub in loaded:
        of = rows[hub]
        assert list(loaded[hub]) == of.select(TRL_COLUMNS).to_dicts()
        stated = datasets.Features._from_yaml_list(header(card)["dataset_info"]["features"])
        assert loaded[hub].features == stated
