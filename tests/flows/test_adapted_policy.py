"""Which policies a server can have as adapters, over which base, and how that is recorded."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest

from flows import adapted_policy
from flows.adapted_policy import adapted
from flows.configuration import BUNDLED_MODEL, resolve
from flows.generators import policy_generator
from flows.models import find_policy, policy_in
from flows.rounds import require_fitting_adapters
from stages.content_ids import weights_hash
from stages.errors import ConfigError
from stages.generation_settings import VllmGenerator
from trainer.adapters import AdapterConfig


@pytest.fixture
def series(tmp_path):
    """Write models by name, each trained from the one before; return the policy of the last."""

    def written(*trainings):
        before = ""
        for name, adapter in (("base", None), *trainings):
            folder = tmp_path / name
            (folder / "adapter").mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text("{}")
            (folder / "model.safetensors").write_text(name)
            (folder / "adapter/adapter_model.safetensors").touch()
            if before:
                manifest = {
                    "settings": {"adapter": adapter},
                    "weights_hash": weights_hash(folder),
                    "base_weights_hash": before,
                }
                (folder / "manifest.json").write_text(json.dumps(manifest))
            before = weights_hash(folder)
        return policy_in(folder, name)

    return written


def lora(rank):
    return {"kind": "lora", "rank": rank}


def form(policy, first, maximum_rank):
    """The base's name and the ranks over it; None for merged weights."""
    found = adapted(policy, str(first), maximum_rank)
    return found and (found.base.name, [step.rank for step in found.steps])


@pytest.mark.parametrize(
    ("ranks", "maximum", "expected"),
    [
        ([16], 16, ("base", [16])),
        ([16], 8, None),
        ([16, 16], 32, ("base", [16, 16])),
        ([16, 16], 16, None),  # the second is merged, and the base of the third:
        ([16, 16, 8], 16, ("r2", [8])),
        ([16, 16, 8, 8], 16, ("r2", [8, 8])),
        ([64, 16], 32, ("r1", [16])),
    ],
)
def test_ranks_add_up_until_merged_weights_are_the_next_base(
    ranks, maximum, expected, series, tmp_path
):
    policy = series(*((f"r{number}", lora(rank)) for number, rank in enumerate(ranks, 1)))
    assert form(policy, tmp_path / "base", maximum) == expected


@pytest.mark.parametrize("other", [None, {"kind": "qlora", "rank": 4}])
def test_only_trainings_of_lora_count(other, series, tmp_path):
    base = tmp_path / "base"
    assert form(series(("r1", lora(4)), ("r2", other)), base, 64) is None
    policy = series(("r1", lora(4)), ("r2", other), ("r3", lora(4)))
    assert form(policy, base, 64) == ("r2", [4])


def test_the_chain_goes_back_to_where_the_series_began_or_a_model_is_gone(series, tmp_path):
    policy = series(("r1", lora(4)), ("r2", lora(4)), ("r3", lora(4)))
    assert form(policy, tmp_path / "base", 64) == ("base", [4, 4, 4])
    assert form(policy, tmp_path / "r1", 64) == ("r1", [4, 4])
    assert form(policy, tmp_path / "r3", 64) is None
    shutil.rmtree(tmp_path / "r1")
    assert form(policy, tmp_path / "base", 64) == ("r2", [4])


def test_a_training_that_changed_nothing_is_its_own_base(series, tmp_path):
    policy = series(("r1", lora(4)))
    folder = shutil.copytree(policy.folder, tmp_path / "r2")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(
        json.dumps({**manifest, "base_weights_hash": manifest["weights_hash"]})
    )
    assert form(policy_in(folder, "r2"), tmp_path / "base", 64) == ("r2", [4])


def test_weights_that_are_not_the_manifests_are_not_served_by_it(series, tmp_path):
    policy = series(("r1", lora(4)), ("r2", lora(4)))
    (tmp_path / "r1/model.safetensors").write_text("another")
    assert form(policy, tmp_path / "base", 4) is None, "r1 is the base, and another model by now"
    (tmp_path / "r2/model.safetensors").write_text("another")
    assert form(policy_in(tmp_path / "r2", "r2"), tmp_path / "base", 64) is None


def test_files_are_hashed_once_while_they_stay_as_they_are(series, tmp_path, monkeypatch):
    policy = series(("r1", lora(4)))
    calls = []
    monkeypatch.setattr(
        adapted_policy, "find_policy", lambda model: calls.append(model) or find_policy(model)
    )
    for _ in range(3):
        assert form(policy, tmp_path / "base", 64) == ("base", [4])
    assert len(calls) == 1
    (tmp_path / "base/model.safetensors").write_text("another model")
    assert form(policy, tmp_path / "base", 64) is None
    assert len(calls) == 2


def test_the_form_is_recorded_where_the_servers_options_ask_for_it(tmp_path):
    """A training of the bundled model, in name: its files are the base's own."""
    folder = shutil.copytree(BUNDLED_MODEL, tmp_path / "r1")
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    (folder / "adapter").mkdir()
    (folder / "adapter/adapter_model.safetensors").touch()
    base, policy = find_policy("bundled"), policy_in(folder, "r1")
    hashes = {"weights_hash": policy.weights_hash, "base_weights_hash": base.weights_hash}
    manifest = {"settings": {"adapter": lora(8)}, **hashes}
    (folder / "manifest.json").write_text(json.dumps(manifest))

    def deciding(options, **settings):
        generator = {"engine": "vllm", "server": {"options": options}, **settings}
        values = {"name": "n", "policy": str(folder), "initial_policy": "bundled"}
        config = resolve({**values, "generation": {"generators": [generator]}}, "test")
        return policy_generator(config, policy).deciding()

    loading = {"enable_lora": True, "max_lora_rank": 8}
    found = deciding(loading)
    assert found["adapters"] == {"base_weights_hash": base.weights_hash, "ranks": [8]}
    assert found["model"] == policy.identity
    assert adapted(policy, "bundled", 8).adapter() == (
        f"r1-{policy.weights_hash}",
        folder / "adapter",
    )
    assert "adapters" not in deciding({})
    assert "adapters" not in deciding({**loading, "max_lora_rank": 1})
    running = {"base_urls": ["http://127.0.0.1:9/v1"]}
    assert "adapters" not in deciding(loading, endpoint=running)
    template = folder / "chat_template.jinja"
    template.write_text("Hello. " + template.read_text())
    policy = policy_in(folder, "r1")
    assert "adapters" not in deciding(loading), "the base would read conversations otherwise"


@pytest.mark.parametrize(
    ("options", "rank", "refused"),
    [
        ({"enable_lora": True}, 17, True),  # 16 is vLLM's own maximum
        ({"enable_lora": True}, 16, False),
        ({"enable_lora": True, "max_lora_rank": 8}, 16, True),
        ({"max_lora_rank": 8}, 16, False),
    ],
)
def test_a_server_that_no_rounds_adapters_fit_into_is_refused(options, rank, refused):
    generator = VllmGenerator.checked({"server": {"options": options}})
    expected = pytest.raises(ConfigError, match=f"rank is {rank}, and the server's max_lora_rank")
    with expected if refused else contextlib.nullcontext():
        require_fitting_adapters(generator, AdapterConfig(rank=rank))
