"""What can't work is found before the first paid request; a forecast pays for nothing unasked."""

from __future__ import annotations

import polars as pl
import pytest

from flows.configuration import BUNDLED_MODEL, EvaluationConfig, resolve
from flows.forecast import SAMPLED_PROMPTS, forecast, total
from flows.generators import ready_generators
from flows.models import find_policy
from flows.preflight import require_usable
from flows.scorers import opened
from flows.stage_runner import RunContext, StageSpec, StageWriter
from lineage.workspace import Dataset, Workspace
from stages.budget import Budget
from stages.errors import ConfigError, EndpointError, MissingFileError, ModelError
from stages.prompt_sampling import sample
from tests.stub_server import Stub

PRICES = {"prompt_per_million_tokens": 2.0, "completion_per_million_tokens": 10.0}


@pytest.fixture(scope="module")
def stub():
    with Stub() as server:
        yield server


def openai(stub, **changes):
    endpoint = {"base_urls": [stub.url], "attempts": 1, "give_up_after_seconds": 0.2}
    endpoint |= changes.pop("endpoint", {})
    return {"engine": "openai", "model": "stub-model", "endpoint": endpoint, **changes}


def judge(stub, **changes):
    endpoint = {"base_urls": [stub.url], "give_up_after_seconds": 0.2}
    plain = {"kind": "judge", "name": "judge", "model": "stub-model", "rubric": "pairwise"}
    return {**plain, "endpoint": endpoint, **changes}


def configured(generators, scorers=({"kind": "rules"},), train=20, **generation):
    values = {
        "name": "checked",
        "prompts": {"sources": [{"kind": "bundled", "train": train, "heldout": 5}]},
        "generation": {
            "generators": list(generators),
            "samples_per_prompt": 3,
            "heldout_samples_per_prompt": 2,
            "max_completion_tokens": 48,
            **generation,
        },
        "scoring": {"scorers": list(scorers)},
        "pairing": {"scorer": scorers[0].get("name", "rules")},
    }
    return resolve(values, "test")


def checked(config):
    policy = find_policy(config.policy)
    require_usable(config, ready_generators(config, policy), sample(config.prompts).prompts)


def test_what_can_be_used_passes(stub):
    local = {"engine": "transformers", "threads": 1}
    checked(configured([local, openai(stub)], [{"kind": "rules"}, judge(stub)]))
    assert not stub.asked


def wrong(stub, what, tmp_path):
    """Return generators and scorers of which one can't be used."""
    good, rules = openai(stub), {"kind": "rules"}
    broken = {
        "generator_model": ([good, openai(stub, model="stub-modle", name="other")], [rules]),
        "generator_gone": (
            [good, openai(stub, name="o", endpoint={"base_urls": ["http://127.0.0.1:9/v1"]})],
            [rules],
        ),
        "generator_nowhere": ([openai(stub, endpoint={"base_urls": []})], [rules]),
        "key": ([openai(stub, endpoint={"api_key_variable": "NO_SUCH_KEY"})], [rules]),
        "folder": ([{"engine": "transformers", "model": str(tmp_path)}], [rules]),
        "judge_model": ([good], [rules, judge(stub, model="gpt")]),
        "rubric": ([good], [judge(stub, rubric="no_such_rubric")]),
        "votes": ([good], [{"kind": "votes", "name": "v", "path": str(tmp_path / "none.csv")}]),
        "head": (
            [good],
            [{"kind": "reward_model", "name": "rm", "model": str(BUNDLED_MODEL)}],
        ),
    }
    return broken[what]


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("generator_model", EndpointError, "stub-modle.*stub-model"),
        ("generator_gone", EndpointError, "127.0.0.1:9"),
        ("generator_nowhere", ConfigError, "names no endpoint"),
        ("key", ConfigError, "NO_SUCH_KEY is not set"),
        ("folder", ModelError, "config.json"),
        ("judge_model", EndpointError, "gpt"),
        ("rubric", MissingFileError, "no_such_rubric"),
        ("votes", MissingFileError, "none.csv"),
        ("head", ModelError, "ForSequenceClassification"),
    ],
)
def test_what_cannot_be_used_is_found_before_anything_is_asked(stub, what, error, said, tmp_path):
    generators, scorers = wrong(stub, what, tmp_path)
    with pytest.raises(error, match=said):
        checked(configured(generators, scorers))
    assert not stub.asked


def test_another_chat_template_is_refused_unless_allowed(stub, tmp_path):
    import shutil

    folder = shutil.copytree(BUNDLED_MODEL, tmp_path / "other")
    template = folder / "chat_template.jinja"
    role = "<|{{ message['role'] }}|>"
    template.write_text(template.read_text().replace(role, f"{role}: "))
    other = {"engine": "transformers", "model": str(folder), "threads": 1}
    with pytest.raises(ModelError, match=r"that of the policy 'bundled'.*allow_other_template"):
        checked(configured([other, openai(stub)]))
    checked(configured([{**other, "allow_other_template": True}, openai(stub)]))


def test_a_judge_is_not_reached_before_the_first_part_that_it_judges(stub, tmp_path):
    gone = judge(stub, endpoint={"base_urls": ["http://127.0.0.1:9/v1"]})
    (scorer,) = configured([openai(stub)], [gone]).scoring.scorers
    spec = StageSpec("judge", 1, {}, (), ("judgments",))
    writer = StageWriter(RunContext(Workspace(tmp_path), "run"), spec, lambda *_: None)
    nothing = Dataset("candidates", "key", ())
    arguments = (scorer, writer, find_policy("bundled"), Budget(), nothing)
    with opened(*arguments):
        pass
    assert not list(tmp_path.rglob("*.jsonl"))
    frame = pl.DataFrame()
    with opened(*arguments) as judging, pytest.raises(EndpointError, match=r"127\.0\.0\.1:9"):
        judging(frame, frame)


def test_a_forecast_asks_paid_endpoints_nothing_and_counts_what_a_run_would_ask(stub, tmp_path):
    config = configured(
        [
            {"engine": "transformers", "threads": 1},
            openai(stub, prices=PRICES, maximum_choices_per_request=2),
        ],
        [judge(stub, prices=PRICES)],
    )
    lines = forecast(config, find_policy("bundled"), Workspace(tmp_path), ask_paid=False)
    assert not stub.asked
    local, paid, judging = lines
    assert (local.who, local.prompts, local.requests, local.cost) == ("bundled", 25, 25, None)
    assert local.seconds > 0
    # 20 prompts x 3 samples and 5 x 2, at most 2 a request: 20 x 2 + 5 x 1 requests.
    assert (paid.requests, paid.completion_tokens, paid.seconds) == (45, 70 * 48, None)
    assert paid.cost == pytest.approx((paid.prompt_tokens * 2 + 70 * 48 * 10) / 1e6)
    # Two generators: 6 answers make 15 pairs, 4 make 6, each in both orders.
    assert judging.requests == (20 * 15 + 5 * 6) * 2
    assert judging.completion_tokens == judging.requests * 512
    whole = total(lines)
    assert whole.requests == 25 + 45 + 660
    assert whole.cost == pytest.approx(paid.cost + judging.cost)
    assert whole.seconds is None


def test_with_consent_a_forecast_asks_a_small_sample(stub, tmp_path):
    config = configured([openai(stub, prices=PRICES)], train=40)
    (line,) = forecast(config, find_policy("bundled"), Workspace(tmp_path), ask_paid=True)
    assert sum(stub.asked.values()) == SAMPLED_PROMPTS
    assert line.requests == 45
    assert line.seconds > 0
    assert line.completion_tokens < 130 * 48


def test_a_forecast_of_rounds_adds_the_held_out_answers_that_they_compare(stub, tmp_path):
    own = {"engine": "vllm", "name": "own", "endpoint": {"base_urls": [stub.url]}}
    served = {**own, "served_name": stub.model, "samples_per_prompt": 2}
    pointwise = {"name": "points", "rubric": "helpfulness", "samples": 2, "temperature": 1.0}
    judges = [judge(stub, prices=PRICES), judge(stub, **pointwise)]
    config = configured([served, openai(stub, prices=PRICES)], judges)
    config = config.model_copy(
        update={"pairing": config.pairing.model_copy(update={"scorer": "points"})}
    )
    arguments = (config, find_policy("bundled"), Workspace(tmp_path))
    once = forecast(*arguments, ask_paid=False)
    lines = {line.who: line for line in forecast(*arguments, ask_paid=False, rounds=3)}
    for line in once:
        of_rounds = lines[line.who]
        assert of_rounds.requests == 3 * line.requests
        assert of_rounds.cost == (line.cost and pytest.approx(3 * line.cost))
    # Each of 3 rounds: 5 prompts after it with 2 samples, 5 before and 5 after it greedily with 1.
    answers = lines["own, evaluation"]
    assert (answers.prompts, answers.requests) == (45, 45)
    of_own = lines["own"].completion_tokens
    assert answers.completion_tokens == pytest.approx(60 * of_own / 150, abs=1)
    assert lines["points, evaluation"].requests == 60 * 2
    assert set(lines) == {line.who for line in once} | {"own, evaluation", "points, evaluation"}
    by_pairs = config.model_copy(update={"evaluation": EvaluationConfig(scorer="judge")})
    lines = forecast(by_pairs, *arguments[1:], ask_paid=False, rounds=3)
    (judged,) = [line for line in lines if line.who == "judge, evaluation"]
    assert judged.requests == 3 * 5 * (2 + 1) * 2, "two samples and a greedy answer, both orders"


def test_rounds_are_forecast_only_where_a_generator_is_the_policy(stub, tmp_path):
    arguments = (configured([openai(stub)]), find_policy("bundled"), Workspace(tmp_path))
    asked = stub.asked.total()
    with pytest.raises(ConfigError, match="no generator's model is `policy`"):
        forecast(*arguments, ask_paid=False, rounds=1)
    assert stub.asked.total() == asked


def test_doctor_names_every_engine_that_cannot_be_used(stub, tmp_path):
    import yaml

    from flows.doctor import examine

    gone = {"base_urls": ["http://127.0.0.1:9/v1"]}
    config = configured(
        [openai(stub), openai(stub, name="gone", endpoint=gone)],
        [{"kind": "rules"}, judge(stub, rubric="no_such_rubric")],
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    found = {f.subject: f.status for f in examine(Workspace(tmp_path / "w"), path)}
    engines = {s: status for s, status in found.items() if s.split()[0] in {"generator", "scorer"}}
    assert engines == {
        "generator stub-model": "ok",
        "generator gone": "missing",
        "scorer rules": "ok",
        "scorer judge": "missing",
    }


def test_doctor_reads_every_row_of_the_prompts(stub, tmp_path):
    import yaml

    from flows.doctor import examine

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Add 1 + 2."}\n{"prompt": 3}\n')
    (empty := tmp_path / "empty.jsonl").touch()
    sources = [
        {"kind": "list", "name": "listed", "prompts": ["Hello?", "Why?"]},
        {"kind": "file", "name": "broken", "path": str(rows)},
        {"kind": "file", "name": "mended", "path": str(rows), "skip_bad_rows": True},
        {"kind": "file", "name": "empty", "path": str(empty)},
    ]
    config = configured([openai(stub)]).model_dump(mode="json")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**config, "prompts": {"sources": sources}}))
    about = {f.subject: f for f in examine(Workspace(tmp_path / "w"), path)}
    found = {name: about[f"prompts {name}"] for name in ("listed", "broken", "mended", "empty")}
    assert [f.status for f in found.values()] == ["ok", "missing", "warning", "warning"]
    assert found["listed"].detail == "list, 2 prompts"
    assert "rows.jsonl, line 2" in found["broken"].detail
    assert found["mended"].detail.startswith("file, 1 prompts, 1 bad rows are set aside")


def test_a_missing_vllm_is_found_before_anything_is_generated(tmp_path):
    server = {"python": str(tmp_path / "no-python")}
    with pytest.raises(MissingFileError, match="make vllm"):
        checked(configured([{"engine": "vllm", "server": server}]))
