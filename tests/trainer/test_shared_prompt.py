"""Shared prompts give TRL's numbers: outputs, gradients, losses and metrics."""

import polars as pl
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from trl.trainer.utils import add_fused_lm_head

from trainer.shared_prompt import ATTENTION, pack, share_prompts, unsupported

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
WINDOW = 7
FIELDS = ("log_probs", "entropy", "mean_logits", "log_sum_sq_probs")
FAMILIES = [
    LlamaConfig(**SIZES),
    Qwen2Config(**SIZES),
    Qwen3Config(**SIZES, head_dim=8),
    MistralConfig(**SIZES, sliding_window=WINDOW),
    GemmaConfig(**SIZES, head_dim=8),
    Gemma2Config(**SIZES, head_dim=8, sliding_window=WINDOW),
    Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=WINDOW),
]
"""Windows are shorter than the rows; Gemma 2 caps its logits."""


def batch(prompts=(5, 1, 9), chosen=(4, 7, 1), rejected=(6, 2, 8)):
    """Return ids, mask and labels as TRL's collator does: chosen rows first, padded right."""
    generator = torch.Generator().manual_seed(0)
    pairs, tokens = len(prompts), 20
    ids = torch.zeros(2 * pairs, tokens, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for pair, prompt in enumerate(prompts):
        asked = torch.randint(1, 97, (prompt,), generator=generator)
        for row, length in ((pair, chosen[pair]), (pair + pairs, rejected[pair])):
            said = torch.randint(1, 97, (length,), generator=generator)
            ids[row, : prompt + length] = torch.cat([asked, said])
            mask[row, : prompt + length] = 1
            labels[row, prompt : prompt + length] = said
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def model_of(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).train()
    add_fused_lm_head(model, outputs=(*FIELDS, "is_top1"))
    return model


def outputs_and_gradients(model, weights):
    model.zero_grad()
    output = model(**batch(), fused_lm_head=True, use_cache=False)
    (output.log_probs * weights).sum().backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config.model_type)
def test_outputs_and_gradients_are_those_of_padded_rows(config):
    model = model_of(config)
    weights = torch.randn(6, 19, generator=torch.Generator().manual_seed(1))
    plain, plain_gradients = outputs_and_gradients(model, weights)
    undo = share_prompts(model)
    shared, shared_gradients = outputs_and_gradients(model, weights)
    assert unsupported(model) is None
    for field in FIELDS:
        torch.testing.assert_close(getattr(shared, field), getattr(plain, field))
    assert torch.equal(shared.is_top1, plain.is_top1)
    assert torch.equal(shared.label_mask, plain.label_mask)
    for name, gradient in plain_gradients.items():
        difference = (shared_gradients[name] - gradient).norm() / gradient.norm()
        assert difference <= 1e-5, name
    undo()
    again, _ = outputs_and_gradients(model, weights)
    assert torch.equal(again.log_probs, plain.log_probs)
    assert model.config._attn_implementation != ATTENTION


def test_the_two_completions_do_not_see_each_other():
    model = model_of(LlamaConfig(**SIZES))
    share_prompts(model)
    one = batch()
    other = {name: tensor.clone() for name, tensor in one.items()}
    other["input_ids"][3:][one["labels"][3:] != -100] = 11
    other["labels"][3:][one["labels"][3:] != -100] = 11
    before, after = (model(**b, fused_lm_head=True).log_probs for b in (one, other))
    assert torch.equal(before[:3], after[:3])
    assert not torch.equal(before[3:], after[3:])


def test_a_pair_takes_the_prompt_once_and_no_padding():
    packed = pack(*batch(prompts=(3,), chosen=(2,), rejected=(4,)).values())
    # The prompt less its last token, then that token and the completion less its last, twice.
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2, 3, 4, 5]]
    assert packed.branches.pairs == ((0, 2, 4, 8),)
    assert packed.branches.scored.tolist() == [2, 3, 4, 5, 6, 7]


def test_a_model_of_another_kind_is_not_touched():
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 97}
    reason = unsupported(AutoModelForCausalLM.from_config(GPT2Config(**sizes)))
    assert reason == (
        "model type 'gpt2' is none of llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text"
    )


def trainers(clear_pairs, folder, tmp_path, **settings):
    """Return TRL's own trainer and one that shares prompts, on the same pairs."""
    from transformers import AutoTokenizer

    from trainer.dpo_settings import DPOTrainingConfig
    from trainer.trl_trainer import RunCallback, build_trainer, share_prompts_in

    made = []
    for shared in (False, True):
        models = tuple(AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
        config = DPOTrainingConfig(batch_size=4, max_length_tokens=64, learning_rate=1e-3)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        callback = RunCallback(tmp_path / str(shared), None)
        trainer = build_trainer(models, tokenizer, clear_pairs, config, callback)
        for name, value in settings.items():
            setattr(trainer, name, value)
        if shared:
            assert share_prompts_in(trainer)[0] is None
        made.append(trainer)
    return made


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ld_alpha": 0.5},
        {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.1]},
        {"loss_types": ["ipo"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_trl_computes_the_same_loss_and_metrics(
    clear_pairs, model_folder, tmp_path, settings, training
):
    found = []
    for trainer in trainers(clear_pairs, model_folder, tmp_path, **settings):
        rows = [trainer.train_dataset[index] for index in range(4)]
        batch_of_rows = trainer.data_collator(rows)
        trainer.model.train(training)
        loss = trainer.compute_loss(trainer.model, batch_of_rows)
        loss.backward()
        gradients = {n: p.grad for n, p in trainer.model.named_parameters()}
        mode = "train" if training else "eval"
        metrics = {name: values[-1] for name, values in trainer._metrics[mode].items()}
        found.append((loss.item(), gradients, metrics))
    (loss, gradients, metrics), (of_shared, shared_gradients, shared_metrics) = found
    assert of_shared == pytest.approx(loss, abs=1e-5)
    assert shared_metrics == pytest.approx(metrics, abs=1e-4)
    for name, gradient in gradients.items():
        difference = (shared_gradients[name] - gradient).norm()
        assert difference <= 1e-4 * gradient.norm() + 1e-9, name


def test_under_bf16_autocast_the_numbers_agree_as_far_as_bf16_goes(model_folder):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    add_fused_lm_head(model)
    rows = batch()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        plain = model(**rows, fused_lm_head=True).log_probs
        share_prompts(model)
        shared = model(**rows, fused_lm_head=True).log_probs
    torch.testing.assert_close(shared, plain, atol=0.05, rtol=0.02)


def test_accumulation_and_recomputed_activations_change_nothing(
    clear_pairs, model_folder, tmp_path
):
    from trainer.dpo import train_dpo
    from trainer.dpo_settings import DPOTrainingConfig

    weights, losses = [], []
    for index, settings in enumerate(
        (
            {},
            {"gradient_accumulation_steps": 4},
            {"gradient_checkpointing": True},
            {"gradient_accumulation_steps": 4, "fast_path": "off"},
        )
    ):
        plain = {"batch_size": 8, "max_length_tokens": 64, "learning_rate": 1e-3, "threads": 1}
        config = DPOTrainingConfig(**plain, **settings, stopping={"kl_samples": 0})
        folder = tmp_path / str(index)
        result = train_dpo(
            clear_pairs, model_folder, model_folder, config, folder / "model", folder / "states"
        )
        weights.append(AutoModelForCausalLM.from_pretrained(result.model_path).state_dict())
        losses.append(result.metrics.filter(pl.col("metric") == "loss")["value"].to_list())
    for other, of_other in zip(losses[1:], weights[1:], strict=True):
        assert other == pytest.approx(losses[0], abs=1e-5)
        for name, tensor in weights[0].items():
            torch.testing.assert_close(of_other[name], tensor, atol=1e-5, rtol=0)


def test_the_manifest_says_how_it_was_computed(clear_pairs, model_folder, tmp_path):
    import json

    from trainer.dpo import train_dpo
    from trainer.dpo_settings import DPOTrainingConfig

    said, weights = [], []
    for setting in ("auto", "off"):
        config = DPOTrainingConfig(
            batch_size=8, max_length_tokens=64, fast_path=setting, threads=1, learning_rate=1e-4
        )
        output = tmp_path / setting / "model"
        checkpoints = tmp_path / setting / "checkpoints"
        result = train_dpo(clear_pairs, model_folder, model_folder, config, output, checkpoints)
        said.append(json.loads((output / "manifest.json").read_text())["computation"])
        weights.append(AutoModelForCausalLM.from_pretrained(output).state_dict())
        assert "attn" not in (output / "config.json").read_text()
        steps = result.metrics.filter(pl.col("metric") == "loss")["value"].to_list()
        assert steps[0] == pytest.approx(0.693147, abs=1e-5)
    assert said == ["shared prompts", "TRL's own: fast_path is off"]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=1e-4, rtol=1e-3)
