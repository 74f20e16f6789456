import json

import polars as pl
import pytest
from click.testing import CliRunner

from flows.cli import cli
from flows.configuration import BUNDLED_MODEL
from flows.train_file import answer_rows, preference_rows
from lineage.query import query
from lineage.workspace import Workspace
from stages.content_ids import weights_hash
from stages.errors import DataError, MissingFileError

ASKED = [{"role": "user", "content": "2 + 2?"}]
ROWS = {"prompt": ["2 + 2?", "3 + 3?"], "chosen": ["4", "6"], "rejected": ["5", "7"]}


def said(*texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


def write_lines(path, columns):
    rows = zip(*columns.values(), strict=True)
    path.write_text(
        "".join(f"{json.dumps(dict(zip(columns, row, strict=True)))}\n" for row in rows)
    )


def test_texts_and_messages_in_either_format_are_the_same_rows(tmp_path):
    prompts = [ASKED, [{"role": "user", "content": "3 + 3?"}]]
    messages = {"prompt": prompts, "chosen": said("4", "6"), "rejected": said("5", "7")}
    pl.DataFrame(ROWS).write_ndjson(tmp_path / "texts.jsonl")
    pl.DataFrame(messages).write_parquet(tmp_path / "messages.parquet")
    texts, structs = (preference_rows(tmp_path / n) for n in ("texts.jsonl", "messages.parquet"))
    assert texts.equals(structs)
    assert texts.columns == ["pair_id", "prompt", "chosen", "rejected"]
    assert texts.row(0)[1:] == (ASKED, "4", "5")
    assert texts["pair_id"].n_unique() == 2


def test_ids_and_confidence_are_kept_and_the_rest_is_not(tmp_path):
    pl.DataFrame(
        {**ROWS, "pair_id": ["a", "b"], "confidence": [0.9, 0.6], "x": [1, 2]}
    ).write_ndjson(tmp_path / "rows.jsonl")
    rows = preference_rows(tmp_path / "rows.jsonl")
    assert rows.drop("prompt").rows() == [("a", "4", "5", 0.9), ("b", "6", "7", 0.6)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"rejected": None},
            r"lacks the columns \['rejected'\].* with the columns \['prompt', 'ch",
        ),
        ({"chosen": [ASKED + said("4")[0], said("6")[0]]}, "1 of 2 values of `chosen` are not one"),
        ({"prompt": [1, 2]}, "`prompt` holds a value of type int in line 1. Expected a text, or a"),
        ({"prompt": ["2 + 2?", ASKED]}, "a text in line 1, and a list of messages in line 2"),
        (
            {"prompt": [[{"role": "user", "content": [{"type": "text"}]}], ASKED]},
            "a list that is none of messages whose role and content are texts in line 1",
        ),
    ],
)
def test_other_shapes_are_named(columns, message, tmp_path):
    rows = {name: values for name, values in {**ROWS, **columns}.items() if values}
    write_lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=message):
        preference_rows(tmp_path / "rows.jsonl")


def test_a_file_that_is_none_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"rows\.jsonl' is not there"):
        preference_rows(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text("not JSON")
    with pytest.raises(DataError, match=r"broken JSON.*rows\.jsonl, line 1, column 1"):
        preference_rows(tmp_path / "rows.jsonl")
    (tmp_path / "rows.parquet").write_text("not Parquet")
    with pytest.raises(DataError, match="cannot be read"):
        preference_rows(tmp_path / "rows.parquet")


def test_a_column_that_only_late_lines_have_is_read(tmp_path):
    first = [json.dumps({"prompt": f"{n}?", "chosen": "a", "rejected": "b"}) for n in range(200)]
    last = {"prompt": "x", "chosen": "a", "rejected": "b", "confidence": 0.9, "prefix": "Step 1."}
    (tmp_path / "rows.jsonl").write_text("\n".join([*first, json.dumps(last)]))
    rows = preference_rows(tmp_path / "rows.jsonl")
    assert rows.select("confidence", "prefix").rows() == [(None, None)] * 200 + [(0.9, "Step 1.")]


def test_ids_are_texts_and_weights_numbers(tmp_path):
    odd = {"pair_id": [1, 2], "confidence": ["0.5", "high"]}
    write_lines(tmp_path / "rows.jsonl", {**ROWS, **odd})
    rows = preference_rows(tmp_path / "rows.jsonl")
    assert rows.select("pair_id", "confidence").rows() == [("1", 0.5), ("2", None)]


def test_a_missing_prompt_stays_missing(tmp_path):
    write_lines(tmp_path / "rows.jsonl", {**ROWS, "prompt": [None, "3 + 3?"]})
    assert preference_rows(tmp_path / "rows.jsonl")["prompt"].null_count() == 1


def test_the_command_trains_the_bundled_policy(tmp_path):
    from trainer.model_folder import published

    pl.DataFrame(ROWS).write_ndjson(tmp_path / "rows.jsonl")
    (tmp_path / "quick.yaml").write_text(
        "name: quick\ntraining: {max_length_tokens: 64, batch_size: 2, stopping: {kl_samples: 0}}\n"
    )
    arguments = ["train-file", tmp_path / "rows.jsonl", "-c", tmp_path / "quick.yaml"]
    arguments += ["--output", tmp_path / "model", "-w", tmp_path / "workspace"]
    for _ in range(2):  # the second finds it made
        outcome = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert outcome.exit_code == 0, outcome.output
        assert outcome.stdout.strip() == str(tmp_path / "model")
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    assert published(tmp_path / "model", manifest["fingerprint"]).pairs == 2
    (row,) = query(Workspace(tmp_path / "workspace"), "FROM trainings").to_dicts()
    assert (row["objective"], row["rows"], row["steps"]) == ("preferences", 2, 1)
    assert row["reference_weights_hash"] == row["base_weights_hash"] == weights_hash(BUNDLED_MODEL)
    assert row["result_weights_hash"] == manifest["weights_hash"]


def test_steps_are_kept_under_either_name(tmp_path):
    for name in ("prefix", "initial_reason_steps"):
        steps = {name: ["Step 1: add.\n", None]}
        pl.DataFrame({**ROWS, **steps}).write_ndjson(tmp_path / f"{name}.jsonl")
    ours, theirs = (preference_rows(path) for path in sorted(tmp_path.iterdir(), reverse=True))
    assert ours.equals(theirs)
    assert ours["prefix"].to_list() == ["Step 1: add.\n", None]
    pl.DataFrame(ROWS).write_ndjson(tmp_path / "whole.jsonl")
    assert set(preference_rows(tmp_path / "whole.jsonl")["pair_id"]).isdisjoint(ours["pair_id"])


def test_labelled_answers_and_pairs_are_the_same_answers(tmp_path):
    pl.DataFrame(ROWS).write_ndjson(tmp_path / "pairs.jsonl")
    answers = {
        "prompt": ROWS["prompt"] * 2,
        "completion": said("4", "6", "5", "7"),
        "label": [True, True, False, False],
    }
    pl.DataFrame(answers).write_parquet(tmp_path / "answers.parquet")
    pairs, labelled = (answer_rows(tmp_path / name) for name in ("pairs.jsonl", "answers.parquet"))
    assert pairs.drop("answer_id").equals(labelled.drop("answer_id"))
    assert labelled.row(3)[2:] == ("7", False)
    assert pairs["answer_id"].n_unique() == labelled["answer_id"].n_unique() == 4


def test_a_file_of_the_other_kind_is_named(tmp_path):
    pl.DataFrame({"prompt": ["a"], "completion": ["b"], "label": [True]}).write_ndjson(
        tmp_path / "answers.jsonl"
    )
    with pytest.raises(DataError, match="train on labelled answers by `loss_type: kto`"):
        preference_rows(tmp_path / "answers.jsonl")
    pl.DataFrame({**ROWS, "prefix": ["x", "y"]}).write_ndjson(tmp_path / "steps.jsonl")
    with pytest.raises(DataError, match="they are steps"):
        answer_rows(tmp_path / "steps.jsonl")


@pytest.mark.parametrize("labels", [[1.0, 0.0], [1, 0], ["yes", "no"], [[True], [False]]])
def test_labels_that_are_not_true_or_false_are_named(tmp_path, labels):
    path = tmp_path / "labelled.jsonl"
    pl.DataFrame({"prompt": ["a"] * 2, "completion": ["b", "c"], "label": labels}).write_ndjson(
        path
    )
    with pytest.raises(DataError, match=r"`label` holds .*Expected true of good answers") as found:
        answer_rows(path)
    assert found.value.where == str(path)
