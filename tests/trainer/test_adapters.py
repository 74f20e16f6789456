"""Adapters: the reference is the base without them, the result has them merged exactly."""

import json
import math
import shutil

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.content_ids import file_sha256, weights_hash
from stages.errors import ConfigError
from tests.trainer.test_dpo import QUICK, Killed, repeatable, run, stop_at, values
from trainer.adapters import AdapterConfig, lora_config, require_adapter
from trainer.dpo import train_dpo
from trainer.dpo_settings import DPOTrainingConfig
from trainer.trl_trainer import RunCallback, build_trainer, share_prompts_in

ADAPTED = QUICK.model_copy(
    update={"adapter": AdapterConfig(rank=4, alpha=8), "learning_rate": 1e-2}
)
PLACES = ("model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json")


@pytest.fixture(scope="module")
def adapted(clear_pairs, model_folder, tmp_path_factory):
    return run(clear_pairs, model_folder, tmp_path_factory.mktemp("adapted"), ADAPTED)


def logits(model, rows=2):
    ids = torch.randint(3, 200, (rows, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(ids).logits


def test_merged_weights_are_base_and_adapters_to_a_hair(adapted, model_folder):
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(model_folder)
    before = logits(base)
    beside = logits(PeftModel.from_pretrained(base, adapted.model_path / "adapter"))
    merged = logits(AutoModelForCausalLM.from_pretrained(adapted.model_path))
    torch.testing.assert_close(merged, beside, atol=1e-5, rtol=0)
    assert (merged - before).abs().max() > 0.1, "the training changed the policy"
    assert adapted.weights_hash == weights_hash(adapted.model_path)


def test_the_base_is_the_reference(adapted, clear_pairs, model_folder):
    folder = adapted.model_path.parent / "reference-log-probs"
    (part,) = folder.glob("*/part-*.safetensors")
    found = load_file(part)
    base, tokenizer = (
        kind.from_pretrained(model_folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    for side in ("chosen", "rejected"):
        answer = clear_pairs[side][3]
        text = f"<|user|>question 3<|assistant|>{answer}<|eos|>"
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        answered = len(tokenizer(f"{answer}<|eos|>", add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            log_probs = base(ids[:, :-1]).logits[0].log_softmax(-1)
        scored = log_probs.gather(1, ids[0, 1:, None])[-answered:].sum()
        assert found[side][3].item() == pytest.approx(scored.item(), abs=1e-4)
    assert values(adapted, "loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert values(adapted, "rewards/margins")[0] == pytest.approx(0, abs=1e-6)
    assert values(adapted, "rewards/margins")[-1] > 0.3, "measured with the adapters on"
    assert values(adapted, "kl")[-1] > 0.01


def test_the_folder_says_what_was_trained(adapted):
    manifest = json.loads((adapted.model_path / "manifest.json").read_text())
    assert manifest["settings"]["adapter"]["rank"] == 4
    assert manifest["computation"] == "shared prompts"
    card = (adapted.model_path / "README.md").read_text()
    assert "| trained weights | lora of rank 4, alpha 8, on all linear layers; merged" in card
    settings = json.loads((adapted.model_path / "adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] is None, "a path of this machine"


def test_stopped_and_resumed_has_the_same_bits(adapted, clear_pairs, model_folder, tmp_path):
    with pytest.raises(Killed):
        run(clear_pairs, model_folder, tmp_path, ADAPTED, progress=stop_at(7))
    again = run(clear_pairs, model_folder, tmp_path, ADAPTED)
    for place in PLACES:
        assert file_sha256(again.model_path / place) == file_sha256(adapted.model_path / place)
    assert repeatable(again).equals(repeatable(adapted))


def test_ended_early_it_is_the_policy_of_the_last_check_that_passed(
    clear_pairs, model_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "trainer.checks.failed_check", lambda history, *_: "far" if len(history) == 6 else None
    )

    def keep(step, total):
        (checkpoint,) = (tmp_path / "checkpoints").glob("*/checkpoint-3") if step == 4 else (None,)
        if checkpoint:
            shutil.copy(checkpoint / "adapter_model.safetensors", tmp_path)

    result = run(clear_pairs, model_folder, tmp_path, ADAPTED, progress=keep)
    assert result.steps == 3
    found = load_file(result.model_path / "adapter" / "adapter_model.safetensors")
    expected = load_file(tmp_path / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_another_reference_is_loaded_beside_the_adapters(
    clear_pairs, model_folder, other_model_folder, tmp_path
):
    first = []
    for name, config in (("adapted", ADAPTED), ("full", QUICK)):
        one_step = config.model_copy(update={"epochs": 0.25})
        folders = tmp_path / name / "model", tmp_path / name / "checkpoints"
        result = train_dpo(clear_pairs, model_folder, other_model_folder, one_step, *folders)
        first.append(values(result, "loss")[0])
    assert first[0] == pytest.approx(first[1], abs=1e-6), "adapters begin as nothing"
    assert abs(first[0] - math.log(2)) > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_shared_prompts_give_trls_losses_and_gradients(
    checkpointing, clear_pairs, model_folder, tmp_path
):
    config = ADAPTED.model_copy(update={"gradient_checkpointing": checkpointing, "ld_alpha": 0.5})
    found = []
    for shared in (False, True):
        policy = AutoModelForCausalLM.from_pretrained(model_folder)
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        callback = RunCallback(tmp_path, None)
        trainer = build_trainer((policy, None), tokenizer, clear_pairs, config, callback)
        adapters = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        generator = torch.Generator().manual_seed(1)
        for name, parameter in adapters.items():
            if "lora_B" in name:  # zero, so that the gradient of every A would be zero too
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
        if shared:
            assert share_prompts_in(trainer)[0] is None
        trainer.model.train()
        batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        found.append((loss.item(), {name: p.grad for name, p in adapters.items()}))
    (loss, gradients), (of_shared, shared_gradients) = found
    assert abs(loss - math.log(2)) > 1e-3
    assert of_shared == pytest.approx(loss, abs=1e-5)
    assert all("lora" in name for name in gradients)
    for name, gradient in gradients.items():
        difference = (shared_gradients[name] - gradient).norm()
        assert difference <= 1e-4 * gradient.norm() + 1e-9, name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 0.1}, "TRL sets it to 0"),
        ({"kind": "dora"}, "'lora' or 'qlora'"),
        ({"target_modules": []}, "at least one is needed"),
        ({"ranks": 4}, "nearest known: rank"),
    ],
)
def test_settings_that_would_mislead_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DPOTrainingConfig.checked({"adapter": settings})


@pytest.mark.parametrize("name", ["query", "lm_head"])
def test_layers_that_are_not_there_are_named(name, model_folder):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    with pytest.raises(ConfigError, match=rf"layers called \['{name}'\].*'q_proj'"):
        lora_config(AdapterConfig(target_modules=("q_proj", name)), model)


def test_qlora_wants_cuda_and_bitsandbytes(monkeypatch):
    config = AdapterConfig(kind="qlora")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="there is no CUDA device"):
        require_adapter(config)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("trainer.adapters.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"bitsandbytes is not installed.*\[qlora\]"):
        require_adapter(config)


@pytest.mark.gpu
def test_qlora_trains_and_merges_what_it_rounded(clear_pairs, tmp_path):
    pytest.importorskip("bitsandbytes")
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    from peft import PeftModel

    from tests.trainer.conftest import make_model
    from trainer.adapters import load_in_4_bits

    base = make_model(tmp_path / "base")
    adapter = AdapterConfig(kind="qlora", rank=4, alpha=8)
    result = run(clear_pairs, base, tmp_path, ADAPTED.model_copy(update={"adapter": adapter}))
    assert values(result, "rewards/margins")[0] == pytest.approx(0, abs=1e-3)
    quantised = PeftModel.from_pretrained(load_in_4_bits(base, 0), result.model_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(result.model_path).to(0)
    ids = torch.arange(3, 35, device=0)[None]
    with torch.no_grad():
        found, expected = merged.eval()(ids).logits, quantised.eval()(ids).logits
    torch.testing.assert_close(found, expected.float(), atol=0.05, rtol=0.05)
    assert result.metrics.filter(pl.col("metric") == "kl")["value"].is_finite().all()
