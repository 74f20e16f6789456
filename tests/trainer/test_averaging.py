"""The moving average of a reference: weight by weight, once, of two models of one series."""

import json

import pytest
from safetensors.torch import load_file

from stages.content_ids import weights_hash
from stages.errors import ModelError, WorkspaceError
from tests.trainer.conftest import make_model
from trainer.averaging import average_models


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return make_model(folder / "old", seed=1, dtype="bfloat16"), make_model(folder / "new", seed=2)


def test_every_weight_is_the_weighted_mean_in_fp32(two, tmp_path):
    old, new = two
    folder = average_models(old, new, 0.25, tmp_path)
    mean, before, after = (load_file(path / "model.safetensors") for path in (folder, *two))
    assert mean.keys() == before.keys() == after.keys()
    for name, weight in mean.items():
        expected = 0.25 * after[name] + 0.75 * before[name].float()
        assert weight.sub(expected).abs().max() < 1e-7, name
        assert not weight.equal(after[name]) or "norm" in name
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["rate"] == 0.25
    assert manifest["policy_weights_hash"] == weights_hash(new)
    assert manifest["average_weights_hash"] == weights_hash(old)
    assert manifest["weights_hash"] == weights_hash(folder)


def test_it_is_made_once_and_named_by_what_goes_in(two, tmp_path):
    folder = average_models(*two, 0.5, tmp_path)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert average_models(*two, 0.5, tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert average_models(*two, 0.6, tmp_path) != folder
    (folder / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(WorkspaceError):
        average_models(*two, 0.5, tmp_path)


def test_models_of_two_kinds_have_no_mean(two, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(two[0])
    model.resize_token_embeddings(model.config.vocab_size + 8)
    model.save_pretrained(tmp_path / "wider")
    with pytest.raises(ModelError, match="other names or shapes"):
        average_models(tmp_path / "wider", two[1], 0.5, tmp_path)
    assert not list(tmp_path.glob("average_*"))
