"""Exports for other trainers, each read again by what its target uses, or by its published schema.

LLaMA-Factory and axolotl pin other versions of datasets and TRL than prefmill, so they are not
installed: their files are checked against the schemas that they document.
"""

import json
from typing import get_args

import datasets
import jsonschema
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import DataError
from stages.export import Format, export_row, file_names, preference_rows
from stages.export_formats import (
    COMPANIONS,
    FORMATS,
    SHAREGPT_ROLES,
    UNPAIRED,
    pair_lines,
    require_allowed,
)
from stages.prompt_records import ROLES
from stages.tables import EXPORT_FORMATS
from tests.stages.test_export import TEXTS, built
from tests.stages.written import companion, encode

LONG = "long " * 200_000  # 1 MB


def text_of(role):
    """Return the schema of an object with a role and a text that isn't empty."""
    return {
        "type": "object",
        "properties": {"role": {"enum": role}, "content": {"type": "string", "minLength": 1}},
        "required": ["role", "content"],
        "additionalProperties": False,
    }


def turn_of(sender):
    """Return the same in ShareGPT's words."""
    text = {"type": "string", "minLength": 1}
    return {
        "type": "object",
        "properties": {"from": {"enum": sender}, "value": text},
        "required": ["from", "value"],
        "additionalProperties": False,
    }


def record(**properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


# OpenAI's API reference, "fine-tuning: preference input" (an output is one assistant message), its
# guide (text only; both outputs follow the last message) and Azure's (roles of an output).
ONE_ANSWER = {"type": "array", "minItems": 1, "maxItems": 1, "items": text_of(["assistant"])}
OPENAI = record(
    input=record(
        messages={
            "type": "array",
            "minItems": 1,
            "items": text_of(["system", "developer", "user", "assistant"]),
        }
    ),
    preferred_output=ONE_ANSWER,
    non_preferred_output=ONE_ANSWER,
)
# LLaMA-Factory's data/README.md, "Sharegpt Format", "Preference Dataset".
LLAMA_FACTORY = record(
    conversations={
        "type": "array",
        "minItems": 1,
        "items": turn_of(["system", "human", "gpt", "observation"]),
    },
    chosen=turn_of(["gpt"]),
    rejected=turn_of(["gpt"]),
    pair_id={"type": "string"},
)
# axolotl's docs/rlhf.qmd, `chat_template.default`.
AXOLOTL = record(
    messages={
        "type": "array",
        "minItems": 1,
        "items": text_of(["system", "user", "assistant", "tool"]),
    },
    chosen=text_of(["assistant"]),
    rejected=text_of(["assistant"]),
    pair_id={"type": "string"},
)
SCHEMAS = {"openai_jsonl": OPENAI, "llama_factory_json": LLAMA_FACTORY, "axolotl_jsonl": AXOLOTL}


def preference(texts, **more):
    return preference_rows(*built(texts, **more), "train")


def asking(*roles, chosen="Yes.", rejected="No.", pair_id="pair_a"):
    """Return one pair after turns of these roles."""
    prompt = [{"role": role, "content": f"turn {i}"} for i, role in enumerate(roles)]
    row = {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "pair_id": pair_id,
        "chosen_score": 1.0,
        "rejected_score": 0.0,
        "margin": 1.0,
        "confidence": None,
        "length_weight": None,
        "prompt_id": "p",
        "scorer": "rules",
        "chosen_candidate_id": "c",
        "rejected_candidate_id": "r",
    }
    return pl.DataFrame([row], schema=preference(["x"]).schema)


def read(rows, name):
    """Return a text file's records, one a line."""
    content = encode(rows, name).decode()
    if name == "llama_factory_json":
        return json.loads(content)
    return [json.loads(line) for line in content.removesuffix("\n").split("\n")]


def texts_in(name, found):
    """Return the last question, the preferred answer and the other one of a record."""
    if name == "openai_jsonl":
        answers = (found["preferred_output"][0], found["non_preferred_output"][0])
        return [m["content"] for m in (found["input"]["messages"][-1], *answers)]
    if name == "llama_factory_json":
        turns = (found["conversations"][-1], found["chosen"], found["rejected"])
        return [turn["value"] for turn in turns]
    return [m["content"] for m in (found["messages"][-1], found["chosen"], found["rejected"])]


def loaded(tmp_path, rows, name, split="train"):
    """Return what `datasets`, which TRL, LLaMA-Factory and axolotl all read with, makes of it."""
    datasets.disable_progress_bars()
    path = tmp_path / FORMATS[name].name_of(split)
    path.write_bytes(encode(rows, name))
    cache = str(tmp_path / "cache")
    return datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)


def test_the_formats_are_the_same_in_the_configuration_the_table_and_here():
    assert set(FORMATS) == set(get_args(Format))
    assert set(EXPORT_FORMATS) == {*FORMATS, *(beside.name for beside in COMPANIONS.values())}


def test_the_names_of_all_files_differ():
    names = file_names(get_args(Format))
    assert len(names) == len(set(names)) == 2 * len(get_args(Format)) + 3
    assert file_names(["trl_jsonl", "trl_jsonl"]) == ["train.jsonl", "heldout.jsonl"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_record_meets_the_published_schema_and_keeps_every_text(tmp_path, name):
    texts = [*TEXTS, LONG]
    rows = preference(texts)
    require_allowed(rows, name)
    records = read(rows, name)
    for found in records:
        jsonschema.validate(found, SCHEMAS[name])
    expected = [[text, f"chosen: {text}", f"rejected: {text}"] for text in texts]
    assert [texts_in(name, found) for found in records] == expected
    assert [texts_in(name, found) for found in loaded(tmp_path, rows, name)] == expected


def test_records_by_hand():
    rows = asking("system", "user", "assistant", "user")
    (openai,), (sharegpt,) = read(rows, "openai_jsonl"), read(rows, "llama_factory_json")
    (axolotl,) = read(rows, "axolotl_jsonl")
    messages = [
        {"role": "system", "content": "turn 0"},
        {"role": "user", "content": "turn 1"},
        {"role": "assistant", "content": "turn 2"},
        {"role": "user", "content": "turn 3"},
    ]
    yes, no = ({"role": "assistant", "content": text} for text in ("Yes.", "No."))
    assert openai == {
        "input": {"messages": messages},
        "preferred_output": [yes],
        "non_preferred_output": [no],
    }
    assert axolotl == {"messages": messages, "chosen": yes, "rejected": no, "pair_id": "pair_a"}
    assert sharegpt == {
        "conversations": [
            {"from": "system", "value": "turn 0"},
            {"from": "human", "value": "turn 1"},
            {"from": "gpt", "value": "turn 2"},
            {"from": "human", "value": "turn 3"},
        ],
        "chosen": {"from": "gpt", "value": "Yes."},
        "rejected": {"from": "gpt", "value": "No."},
        "pair_id": "pair_a",
    }


def test_dataset_info_describes_the_files_of_both_splits():
    train, heldout, info = file_names(["llama_factory_json"])
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    same = {"formatting": "sharegpt", "ranking": True, "columns": columns}
    assert info == "dataset_info.json"
    assert json.loads(companion("llama_factory_json")) == {
        "prefmill_train": {"file_name": train, **same},
        "prefmill_heldout": {"file_name": heldout, **same},
    }


@settings(max_examples=40)
@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=4))
def test_any_text_comes_back_and_equal_rows_give_equal_bytes(answers):
    rows = pl.concat(
        asking("user", chosen=chosen, rejected=rejected, pair_id=f"pair_{i}")
        for i, (chosen, rejected) in enumerate(answers)
    )
    for name in SCHEMAS:
        assert encode(rows, name) == encode(rows.clone(), name)
        assert [tuple(texts_in(name, found)[1:]) for found in read(rows, name)] == answers
        lines = encode(rows, name).removesuffix(b"\n").split(b"\n")
        assert len(lines) == len(answers)


BAD = [
    ("openai_jsonl", ("user", "tool", "user"), "system, user and assistant"),
    ("openai_jsonl", ("user", "assistant"), "whose last is the user's"),
    ("openai_jsonl", (), "whose last is the user's"),
    ("axolotl_jsonl", ("user", "assistant"), "whose last is the user's"),
    ("axolotl_jsonl", ("critic", "user"), "system, user, assistant and tool"),
    ("llama_factory_json", ("user", "user"), "in turn"),
    ("llama_factory_json", ("user", "system", "user"), "at most one system"),
    ("llama_factory_json", ("assistant", "user"), "in turn"),
    ("llama_factory_json", ("user", "assistant", "tool"), "the last the user's"),
    ("llama_factory_json", ("system",), "the last the user's"),
]


@pytest.mark.parametrize(("name", "roles", "constraint"), BAD)
def test_a_prompt_that_the_target_would_not_take_is_named(name, roles, constraint):
    rows = pl.concat([asking("user", pair_id="pair_0"), asking(*roles, pair_id="pair_bad")])
    with pytest.raises(DataError) as caught:
        require_allowed(rows, name)
    assert "'pair_bad'" in str(caught.value)
    assert name in str(caught.value)
    assert constraint in str(caught.value)


GOOD = [
    ("openai_jsonl", ("system", "user", "assistant", "user")),
    ("axolotl_jsonl", ("system", "user", "assistant", "tool", "assistant", "user")),
    ("llama_factory_json", ("system", "user", "assistant", "tool", "assistant", "user")),
    *(("trl_jsonl", roles) for roles in [("tool",), ("user", "assistant")]),
]


@pytest.mark.parametrize(("name", "roles"), GOOD)
def test_a_prompt_that_the_target_takes_is_written(name, roles):
    rows = asking(*roles)
    require_allowed(rows, name)
    assert encode(rows, name)


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_empty_completion_is_refused_with_its_side(name, side, text):
    rows = pl.concat([asking("user", pair_id=f"pair_{i}", **{side: text}) for i in range(3)])
    with pytest.raises(DataError, match=f"'pair_0'.*2 more.*{name}.*{side} must be more") as caught:
        require_allowed(rows, name)
    assert "export.formats" in caught.value.remedy


@pytest.mark.parametrize("text", ["message", "[", "dummy_m", "s"])
def test_axolotl_would_cut_an_answer_at_its_own_dummy_message(text):
    # Its chat_template.default renders the dummy and the answer, then cuts at find(answer).
    rendered = f"<user>[[dummy_message]]<assistant>{text}"
    assert rendered[rendered.find(text) :] != text
    with pytest.raises(DataError, match="rejected must not occur in"):
        require_allowed(asking("user", rejected=text), "axolotl_jsonl")
    require_allowed(asking("user", rejected=text + "!"), "axolotl_jsonl")
    require_allowed(asking("user", rejected=text), "openai_jsonl")


def test_every_role_of_a_prompt_has_a_name_in_sharegpt():
    assert set(SHAREGPT_ROLES) == set(ROLES)


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {UNPAIRED, "hf_dataset"}))
def test_the_recorded_line_of_a_pair_is_the_line_it_is_at(name):
    rows = preference(TEXTS, heldout=(2,))
    content, lines = encode(rows, name), pair_lines(rows)
    assert lines["pair_id"].to_list() == rows["pair_id"].to_list()
    if name == "trl_parquet":
        written = [str(row) for row in pl.read_parquet(content).to_dicts()]
    else:
        written = [json.loads(line.strip("[],")) for line in content.decode().split("\n")[:-1]]
        written = [json.dumps(found, ensure_ascii=False) for found in written]
    for line, chosen in zip(lines["line"], rows["chosen"].to_list(), strict=True):
        text = chosen[0]["content"]
        encoded = repr(text) if name == "trl_parquet" else json.dumps(text, ensure_ascii=False)
        assert encoded in written[line - 1]


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_split_without_pairs_gives_no_records(name):
    rows = preference(["x"]).clear()
    require_allowed(rows, name)
    content = encode(rows, name)
    assert content == (b"[]\n" if name == "llama_factory_json" else b"")


@pytest.mark.parametrize("name", ["trl_jsonl", "trl_unpaired_jsonl"])
def test_trl_renders_an_exported_row_with_the_bundled_models_template(tmp_path, name):
    from transformers import AutoTokenizer
    from trl.data_utils import is_conversational, maybe_apply_chat_template, maybe_extract_prompt

    from flows.models import BUNDLED_MODEL

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    example = loaded(tmp_path, asking("system", "user"), name)[0]
    assert is_conversational(example)
    text = maybe_apply_chat_template(maybe_extract_prompt(example), tokenizer)
    answers = ["chosen", "rejected"] if name == "trl_jsonl" else ["completion"]
    assert "turn 1" in text["prompt"]
    for answer, expected in zip(answers, ("Yes.", "No."), strict=False):
        assert text[answer].startswith(expected)


def test_rounds_train_on_trls_preference_files_only():
    from flows.training_round import training_export

    described = {name: export_row(name, "train", name, 1, "0") for name in FORMATS}
    assert training_export(pl.concat(described.values()))["format"] == "trl_jsonl"
    without = [row for name, row in described.items() if name != "trl_jsonl"]
    assert training_export(pl.concat(without))["format"] == "trl_parquet"
    others = [row for name, row in described.items() if name not in {"trl_jsonl", "trl_parquet"}]
    with pytest.raises(DataError, match="trl_jsonl or trl_parquet"):
        training_export(pl.concat(others))
