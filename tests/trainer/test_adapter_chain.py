"""Adapters trained one after the other, as one set over the first one's base."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.trainer.made_adapters import make_adapted
from trainer.adapter_chain import AdapterStep, adapter_step, write_combined
from trainer.adapters import AdapterConfig

TRAININGS = (
    AdapterConfig(rank=3, alpha=6, target_modules=("q_proj", "v_proj")),
    AdapterConfig(rank=5, alpha=2, target_modules=("down_proj", "v_proj")),
    AdapterConfig(rank=1, alpha=1),
)


@pytest.fixture(scope="module")
def chain(model_folder, tmp_path_factory):
    """The folders of three models, each trained from the one before."""
    place, base, folders = tmp_path_factory.mktemp("chain"), model_folder, []
    for number, config in enumerate(TRAININGS):
        base = make_adapted(base, place / f"round_{number}", config, number)
        folders.append(base)
    return folders


def logits(model):
    ids = torch.randint(3, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(ids).logits


@pytest.mark.parametrize("length", [2, 3])
def test_over_the_first_base_they_are_the_last_merged_weights(
    length, chain, model_folder, tmp_path
):
    output = tmp_path / "combined"
    write_combined([folder / "adapter" for folder in chain[:length]], output)
    settings = json.loads((output / "adapter_config.json").read_text())
    assert settings["r"] == settings["lora_alpha"] == {2: 3 + 5, 3: 3 + 5 + 1}[length]
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    before = logits(base)
    found = logits(PeftModel.from_pretrained(base, output))
    expected = logits(AutoModelForCausalLM.from_pretrained(chain[length - 1]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - before).abs().max() > 0.1


def test_a_layer_that_one_of_them_does_not_change_has_zeros_there(chain, tmp_path):
    write_combined([folder / "adapter" for folder in chain[:2]], tmp_path / "combined")
    weights = load_file(tmp_path / "combined/adapter_model.safetensors")
    of_layer = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    a, b = (weights[of_layer.format(kind)] for kind in "AB")
    assert a.shape[0] == b.shape[1] == 3 + 5
    assert not a[3:].any()
    assert not b[:, 3:].any()
    own = load_file(chain[0] / "adapter/adapter_model.safetensors")
    assert torch.equal(b[:, :3], own[of_layer.format("B")] * (6 / 3))


def test_what_is_there_already_stays(chain, tmp_path):
    (tmp_path / "combined").mkdir()
    write_combined([chain[0] / "adapter"], tmp_path / "combined")
    assert not list((tmp_path / "combined").iterdir())


@pytest.mark.parametrize(
    ("adapter", "known"),
    [({"kind": "lora", "rank": 4}, True), ({"kind": "qlora", "rank": 4}, False), (None, False)],
)
def test_a_manifest_says_whether_the_adapters_are_all_of_a_training(adapter, known, tmp_path):
    (tmp_path / "adapter").mkdir()
    assert adapter_step(tmp_path) is None
    manifest = {"settings": {"adapter": adapter}, "weights_hash": "b", "base_weights_hash": "a"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert adapter_step(tmp_path) is None, "no weights"
    (tmp_path / "adapter/adapter_model.safetensors").touch()
    assert adapter_step(tmp_path) == (AdapterStep(tmp_path, "b", "a", 4) if known else None)


def test_the_steps_of_a_chain_are_read_from_the_models(chain):
    steps = [adapter_step(folder) for folder in chain]
    assert [step.rank for step in steps] == [3, 5, 1]
    assert [step.base_weights_hash for step in steps[1:]] == [s.weights_hash for s in steps[:2]]
