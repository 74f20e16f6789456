"""Which generators a run has, what names their completions, and which models are refused."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from flows.configuration import BUNDLED_MODEL, resolve
from flows.generators import policy_generator, ready_generators
from flows.models import find_policy, policy_in
from flows.prompt_choice import content_of
from flows.tracked_run import make_run_id
from stages.errors import ConfigError, ModelError
from stages.model_loading import load_tokenizer

POLICY = find_policy("bundled")
VLLM_IS_THERE = {"python": sys.executable}
OPENAI = {"engine": "openai", "model": "m", "endpoint": {"base_urls": ["http://127.0.0.1:9/v1"]}}


def config_of(*generators, **sections):
    generation = {"generators": generators, "max_completion_tokens": 64}
    return resolve({"name": "small", "generation": generation, **sections}, "test")


def ready(*generators):
    return ready_generators(config_of(*generators), POLICY)


@pytest.fixture
def other_template(tmp_path):
    """The bundled model with a template that begins every conversation otherwise."""
    folder = Path(shutil.copytree(BUNDLED_MODEL, tmp_path / "other"))
    template = folder / "chat_template.jinja"
    template.write_text("Hello. " + template.read_text())
    return str(folder)


def test_a_generator_is_called_by_its_name_else_its_model():
    own = {"engine": "transformers"}
    names = [g.name for g in ready(own, {**own, "name": "hot"}, OPENAI)]
    assert names == ["bundled", "hot", "m"]


def test_two_that_turn_out_to_have_one_name_are_refused():
    """`policy` is the bundled model here: their candidates would be the same rows."""
    policy, same = {"engine": "transformers"}, {"engine": "transformers", "model": "bundled"}
    with pytest.raises(ConfigError, match="two generators have the same name: bundled, bundled"):
        ready(policy, same)
    assert len(ready(policy, {**same, "name": "again"})) == 2


def test_an_endpoint_is_needed_for_a_served_model():
    with pytest.raises(ConfigError, match="generator 'm' names no endpoint"):
        ready({"engine": "openai", "model": "m"})


def test_what_decides_completions_is_the_model_and_how_it_samples():
    def deciding(**changes):
        (generator,) = ready(OPENAI | changes)
        return generator.deciding()

    same = [
        deciding(endpoint={"base_urls": ["http://127.0.0.1:10/v1"], "timeout_seconds": 9}),
        deciding(prices={"prompt_per_million_tokens": 1.0}),
        deciding(maximum_choices_per_request=1),
        deciding(allow_other_template=True),
    ]
    assert same == [deciding()] * 4
    other = [
        deciding(model="n"),
        deciding(name="n"),
        deciding(temperature=0.5),
        deciding(samples_per_prompt=1),
        deciding(system_prompt="Be brief."),
    ]
    assert len({str(settings) for settings in [deciding(), *other]}) == 6


def test_the_policy_is_named_by_its_content():
    (generator,) = ready({"engine": "transformers"})
    assert generator.deciding()["model"] == POLICY.identity
    assert generator.model == POLICY


def test_an_evaluation_uses_the_first_generator_of_the_policy():
    others = [{"engine": "transformers", "model": "bundled", "name": "fixed"}, OPENAI]
    policies = [
        {"engine": "transformers", "temperature": 0.25, "name": "cool"},
        {"engine": "vllm", "name": "hot"},
    ]
    trained = policy_in(BUNDLED_MODEL, "round_1")
    generator = policy_generator(config_of(*others, *policies), trained)
    assert (generator.name, generator.sampling.temperature) == ("cool", 0.25)
    assert generator.model == trained
    with pytest.raises(ConfigError, match="no generator's model is `policy`"):
        policy_generator(config_of(*others), trained)


def test_a_series_without_the_policys_own_generator_stops_at_once(run_cli, small_config, tmp_path):
    fixed = {"engine": "transformers", "model": "bundled", "name": "fixed"}
    config = small_config(generation={"generators": [fixed]})
    code, _, err = run_cli("rounds", "-c", config, "-w", tmp_path / "w")
    assert code == 3
    assert "no generator's model is `policy`" in err
    assert not list((tmp_path / "w").rglob("*.parquet"))


def test_another_chat_template_than_the_policys_is_refused_unless_allowed(other_template):
    for engine in ({"engine": "transformers"}, {"engine": "vllm", "server": VLLM_IS_THERE}):
        model = {**engine, "model": other_template}
        (refused,) = ready(model)
        with pytest.raises(ModelError, match="chat template or tokenizer with fingerprint") as no:
            refused.check()
        assert "that of the policy 'bundled'" in no.value.expected
        assert "allow_other_template: true" in no.value.remedy
        assert "generator 'other'" in no.value.where
        (allowed,) = ready({**model, "allow_other_template": True})
        allowed.check()
    (own,) = ready({"engine": "transformers"})
    own.check()


def test_completions_that_may_fill_the_context_are_refused():
    room = {"generation": {"max_completion_tokens": 256}}
    (generator,) = ready_generators(resolve({"name": "small", **room}, "test"), POLICY)
    with pytest.raises(ConfigError, match=r"256 leaves no room .* context of 256 tokens"):
        generator.check()


def test_a_tokenizer_beside_a_served_model_is_compared_too(other_template):
    (refused,) = ready({**OPENAI, "tokenizer": other_template})
    with pytest.raises(ModelError, match="chat template or tokenizer with fingerprint"):
        refused.check()


def test_a_generators_tokenizer_is_loaded_once(monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "flows.generators.load_tokenizer",
        lambda folder: loaded.append(folder) or load_tokenizer(folder),
    )
    (generator,) = ready({"engine": "vllm", "server": VLLM_IS_THERE})
    generator.check()
    generator.check()
    assert loaded == [BUNDLED_MODEL]


def test_a_changed_gold_file_is_another_run(tmp_path):
    path = tmp_path / "gold.jsonl"

    def run_id(text):
        path.write_text(text)
        config = config_of({"engine": "transformers"}, prompts={"gold": {"path": str(path)}})
        return make_run_id("refresh", config, POLICY, content_of(None, config), 0)

    one = run_id('{"prompt": "a", "good": "b", "damaged": "c"}\n')
    assert run_id('{"prompt": "a", "good": "b", "damaged": "d"}\n') != one
    assert run_id('{"prompt": "a", "good": "b", "damaged": "c"}\n') == one
