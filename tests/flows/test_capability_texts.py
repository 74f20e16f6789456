import json

import pytest

from flows.capability_texts import read_texts, text_evaluations
from flows.configuration import BUNDLED_MODEL, EvaluationConfig
from flows.models import policy_in
from stages.errors import DataError
from stages.log_probability import LogProbability
from stages.tables import EVALUATIONS

ASKED = {"role": "user", "content": "Add 150 + 352."}


def conversation(answer):
    return [ASKED, {"role": "assistant", "content": answer}]


def written(folder, *rows):
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_loss_of_a_policy_on_texts_against_itself(tmp_path):
    known, unlikely = conversation("Ones 2, tens 10."), conversation("Boats hide the station.")
    too_long = conversation("Ones 2, tens 10. " * 200)
    texts = written(tmp_path, *({"messages": m} for m in (known, too_long, unlikely)))
    policy = policy_in(BUNDLED_MODEL, "bundled")
    found = text_evaluations(EvaluationConfig(texts=texts), policy, policy)
    EVALUATIONS.to_arrow(found.with_columns(round_id=found["metric"]))
    (row,) = found.to_dicts()
    assert (row["metric"], row["decoding"]) == ("text_nats_per_token", "read")
    assert (row["prompts"], row["difference"], row["low"], row["high"]) == (2, 0.0, 0.0, 0.0)
    each = [-score for score, *_ in LogProbability(BUNDLED_MODEL).score([known, unlikely])]
    assert each[0] < each[1]
    assert row["before"] == pytest.approx(sum(each) / 2, abs=1e-5)


def test_without_a_file_there_is_nothing_to_tell():
    policy = policy_in(BUNDLED_MODEL, "bundled")
    assert text_evaluations(EvaluationConfig(), policy, policy).is_empty()


def test_texts_too_long_for_the_model_are_an_error(tmp_path):
    texts = written(tmp_path, {"messages": conversation("word " * 2000)})
    policy = policy_in(BUNDLED_MODEL, "bundled")
    with pytest.raises(DataError, match="no text fits"):
        text_evaluations(EvaluationConfig(texts=texts), policy, policy)


@pytest.mark.parametrize(
    "row", [{"messages": [ASKED]}, {"messages": []}, {"text": "x"}, {"messages": [{"role": "x"}]}]
)
def test_a_row_that_no_assistant_ends_is_named(tmp_path, row):
    texts = written(tmp_path, {"messages": conversation("3")}, row)
    with pytest.raises(DataError, match=r"texts.jsonl, row 2"):
        read_texts(texts)
