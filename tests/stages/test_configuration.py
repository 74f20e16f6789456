"""A wrong configuration says which key, what was found and what is known."""

from pathlib import Path
from typing import Annotated

import pydantic
import pytest

from flows.configuration import PipelineConfig, load_config, resolve
from flows.single_training import RewardFileConfig, SFTFileConfig, load_file_config
from stages.configuration import OPERATIONAL, Config
from stages.errors import ConfigError
from stages.filter_settings import FilteringConfig
from stages.generation_settings import GenerationConfig

CONFIGS = Path(__file__).parents[2] / "configs"
SINGLE = {"sft.yaml": SFTFileConfig, "reward-model.yaml": RewardFileConfig}
PIPELINES = [path for path in sorted(CONFIGS.glob("*.yaml")) if path.name not in SINGLE]


def refusal(**values):
    with pytest.raises(ConfigError) as caught:
        resolve({"name": "mine", **values}, "mine.yaml")
    assert "Where: mine.yaml." in str(caught.value)
    return caught.value.found


def sources(*items):
    return {"prompts": {"sources": list(items)}}


def generators(*items):
    return {"generation": {"generators": list(items)}}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"filterz": {}}, "unknown key 'filterz'; nearest known: filters"),
        (
            {"generation": {"temprature": 1}},
            "unknown key 'generation.temprature'; nearest known: temperature, generators",
        ),
        # In a union, only the keys of the chosen kind are proposed; its tag is no part of the path.
        (
            sources({"kind": "file", "name": "a", "path": "p", "paht": "q"}),
            "unknown key 'prompts.sources[0].paht'; nearest known: path, weight",
        ),
        (
            sources({"kind": "bundled"}, {"kind": "bundled", "trian": 3}),
            "unknown key 'prompts.sources[1].trian'; nearest known: train, kind",
        ),
        (
            {"scoring": {"scorers": [{"kind": "rules", "nmae": "q"}]}},
            "unknown key 'scoring.scorers[0].nmae'; nearest known: name",
        ),
        # A generator's kind is its engine.
        (
            generators({"engine": "transformers", "thraeds": 1}),
            "unknown key 'generation.generators[0].thraeds'; nearest known: threads, temperature",
        ),
        (
            generators({"engine": "openai"}),
            "missing key 'generation.generators[0].model'",
        ),
        (
            generators({"engine": "vllm", "endpoint": {"time_seconds": 1}}),
            (
                "unknown key 'generation.generators[0].endpoint.time_seconds'; nearest known: "
                "timeout_seconds, give_up_after_seconds, api_key_secret"
            ),
        ),
        (
            {
                "scoring": {
                    "scorers": [{"kind": "reward_model", "name": "a", "model": "m", "qq": 1}]
                }
            },
            (
                "unknown key 'scoring.scorers[0].qq'; known here: allow_other_template, "
                "batch_tokens, endpoint, engine, kind, maximum_tokens, model, name, output, server"
            ),
        ),
        (sources({"kind": "file", "name": "a"}), "missing key 'prompts.sources[0].path'"),
        (
            {"generation": {"temperature": "hot"}},
            (
                "generation.temperature: Input should be a valid number, unable to parse string as "
                "a number (found 'hot')"
            ),
        ),
        (
            {"filters": {"minimum_margin": -1}},
            "filters.minimum_margin: Input should be greater than or equal to 0 (found -1)",
        ),
        (
            {"generation": {"top_p": float("nan")}},
            "generation.top_p: Input should be a finite number (found nan)",
        ),
        (
            {"export": {"formats": ["trl_jsonl", "csv"]}},
            (
                "export.formats[1]: Input should be 'trl_jsonl', 'trl_parquet', "
                "'trl_unpaired_jsonl', 'openai_jsonl', 'llama_factory_json', 'axolotl_jsonl', "
                "'argilla_json' or 'hf_dataset' (found 'csv')"
            ),
        ),
        (
            {"prompts": {"sources": {"kind": "bundled"}}},
            "prompts.sources: Input should be a list (found {'kind': 'bundled'})",
        ),
        (sources(), "prompts.sources: at least one is needed (found [])"),
        (
            {"scoring": {"scorers": []}},
            "scoring.scorers: at least one is needed (found [])",
        ),
        ({"export": {"formats": []}}, "export.formats: at least one is needed (found [])"),
        (
            {"pairing": {"scorer": "nobody"}},
            "`pairing.scorer` 'nobody' is none of `scoring.scorers`; known: rules",
        ),
        (
            {"generation": {"generators": [{"engine": "openai", "model": "a"}] * 2}},
            "generation: two generators have the same name: a, a",
        ),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_path(values, problem):
    assert refusal(**values) == problem


@pytest.mark.parametrize(
    ("chosen", "near"), [("judg", "; nearest known: judge"), ("x", "; known: judge, other")]
)
def test_pairs_are_made_by_a_scorer_that_there_is(chosen, near):
    """Found before anything is generated: not after the last completion is paid for."""
    scorers = [{"kind": "rules", "name": name} for name in ("judge", "other")]
    found = refusal(scoring={"scorers": scorers}, pairing={"scorer": chosen})
    assert f"`pairing.scorer` {chosen!r} is none of `scoring.scorers`{near}" in found
    pairing = {"scorer": "other", "agreeing_scorers": ["judge", chosen]}
    found = refusal(scoring={"scorers": scorers}, pairing=pairing)
    assert f"`pairing.agreeing_scorers` {chosen!r} is none of `scoring.scorers`{near}" in found


def test_a_key_called_like_its_kind_stays_in_the_path():
    found = refusal(**sources({"kind": "file", "name": "a", "path": "p", "file": "q"}))
    assert found.startswith("unknown key 'prompts.sources[0].file'")


def test_a_key_that_is_near_to_none_lists_those_known():
    found = refusal(filters={"qqqqqqqq": 1})
    known = ", ".join(sorted(FilteringConfig.model_fields))
    assert found == f"unknown key 'filters.qqqqqqqq'; known here: {known}"
    assert "empty, identical, language, " in known


def test_an_unknown_kind_names_those_known():
    found = refusal(**sources({"kind": "fil", "name": "a"}))
    assert found.startswith("prompts.sources[0]: ")
    assert "'fil'" in found
    assert "'bundled', 'file', 'dataset'" in found


def test_every_problem_is_named_at_once():
    generation = {"top_p": 2, "generators": [{"engine": "transformers", "threads": 0}]}
    found = refusal(nmae="x", generation=generation)
    assert "'nmae'; nearest known: name" in found
    assert "generation.top_p: " in found
    assert "generation.generators[0].threads: " in found


def test_a_missing_name():
    with pytest.raises(ConfigError, match="missing key 'name'"):
        resolve({}, "mine.yaml")


def test_a_found_value_is_cut():
    assert len(refusal(generation={"temperature": "x" * 10_000})) < 250


def test_a_configuration_is_frozen():
    config = GenerationConfig()
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.temperature = 0.5


def test_the_error_is_a_value_error_and_names_the_class_without_a_file():
    with pytest.raises(ValueError, match="Where: FilteringConfig"):
        FilteringConfig.checked({"x": 1})


class Small(Config):
    limit: float = 1.0
    names: tuple[str, ...] = ()
    patience_seconds: Annotated[float, OPERATIONAL] = 1.0


class Large(Config):
    one: Small = Small()
    several: tuple[Small | None, ...] = ()
    beside: Annotated[Small, OPERATIONAL] = Small()


def test_what_decides_changes_with_any_resolved_value_only():
    same = [Small(), Small(limit=1), Small.checked({"limit": 1.0, "names": []})]
    assert [config.deciding() for config in same] == [{"limit": 1.0, "names": []}] * 3
    other = [Small(limit=1.1), Small(names=("a",)), Small(names=("a", "b")), Small()]
    assert len({str(config.deciding()) for config in other}) == 4


def test_what_decides_is_without_operational_fields_at_any_depth():
    patient = Small(patience_seconds=9.0)
    assert patient.deciding() == Small().deciding()
    large = Large(one=patient, several=(patient, None), beside=Small(limit=2.0))
    plain = {"limit": 1.0, "names": []}
    assert large.deciding() == {"one": plain, "several": [plain, None]}
    assert large.model_dump(mode="json")["one"]["patience_seconds"] == 9.0


OPERATIONS = {
    "generation": [
        {"maximum_missing_share": 0.5},
        {"generators": [{"engine": "vllm", "endpoint": {"timeout_seconds": 9}}]},
        {"generators": [{"engine": "vllm", "endpoint": {"base_urls": ["http://a/v1"]}}]},
        {"generators": [{"engine": "vllm", "server": {"start_timeout_seconds": 9}}]},
        {"generators": [{"engine": "vllm", "allow_other_template": True}]},
    ],
    "scoring": [
        {"scorers": [{"kind": "reward_model", "name": "r", "model": "m", **changed}]}
        for changed in (
            {},
            {"batch_tokens": 9},
            {"engine": "vllm"},
            {"server": {"start_timeout_seconds": 9}},
            {"endpoint": {"attempts": 9}},
        )
    ],
    "budget": [{}, {"max_tokens": 4}, {"max_tokens": 9}],
}


@pytest.mark.parametrize(
    ("section", "values"),
    [(section, values) for section, listed in OPERATIONS.items() for values in listed],
    ids=str,
)
def test_raising_a_timeout_or_a_limit_decides_nothing(section, values):
    bases = {
        "generation": {"generators": [{"engine": "vllm"}]},
        "scoring": {"scorers": [{"kind": "reward_model", "name": "r", "model": "m"}]},
        "budget": {},
    }
    common = {"name": "mine", "pairing": {"scorer": "r" if section == "scoring" else "rules"}}
    base = resolve(common | {section: bases[section]}, "mine.yaml")
    changed = resolve(common | {section: bases[section] | values}, "mine.yaml")
    assert changed.deciding() == base.deciding()


def test_prices_decide_nothing_and_sampling_does():
    served = {"engine": "openai", "model": "m"}
    prices = {"prompt_per_million_tokens": 1.0, "completion_per_million_tokens": 2.0}

    def deciding(**changed):
        values = generators({**served, **changed})
        return resolve({"name": "mine", **values}, "mine.yaml").deciding()

    assert deciding(prices=prices, maximum_choices_per_request=1) == deciding()
    assert deciding(temperature=0.5) != deciding()
    assert deciding(system_prompt="Be brief.") != deciding()


def test_the_seed_is_handed_to_every_section_that_names_none():
    config = resolve({"name": "mine", "seed": 7, "pairing": {"seed": 3}}, "mine.yaml")
    sections = (config.prompts, config.generation, config.training, config.evaluation)
    assert [section.seed for section in sections] == [7, 7, 7, 7]
    assert config.pairing.seed == 3
    unseeded = resolve({"name": "mine", "generation": None}, "mine.yaml")
    assert (unseeded.seed, unseeded.generation.seed) == (0, 0)


def test_resolving_changes_nothing_that_it_was_given():
    values = {"name": "mine", "seed": 7, "generation": {"top_p": 0.9}}
    resolve(values, "mine.yaml")
    assert values == {"name": "mine", "seed": 7, "generation": {"top_p": 0.9}}


def test_a_resolved_configuration_resolves_to_itself():
    config = resolve({"name": "mine", "seed": 7}, "mine.yaml")
    assert resolve(config.model_dump(mode="json"), "again") == config


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.name)
def test_the_configurations_that_we_ship_are_right(path):
    assert isinstance(load_config(path), PipelineConfig)


@pytest.mark.parametrize("name", SINGLE)
def test_the_configurations_of_single_trainings_are_right(name):
    assert isinstance(load_file_config(SINGLE[name], CONFIGS / name), SINGLE[name])
