"""The reference is computed once, and again when anything that decides its numbers changes."""

import dataclasses

import pytest
import torch

from trainer.dpo_settings import DPOTrainingConfig
from trainer.reference_cache import reference_key, reference_log_probs
from trainer.trl_trainer import RunCallback, build_trainer

IDENTITY = {"reference": "weights", "path": "shared prompts"}


@pytest.fixture
def trainer(clear_pairs, model_folder, tmp_path):
    return make(clear_pairs, model_folder, tmp_path)


def make(rows, folder, tmp_path, batch_size=4):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models = tuple(AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    config = DPOTrainingConfig(batch_size=batch_size, max_length_tokens=64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return build_trainer(models, tokenizer, rows, config, RunCallback(tmp_path, None))


def test_they_are_trls_own(trainer, tmp_path):
    chosen, rejected = reference_log_probs(trainer, tmp_path, "key")
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(16)])
    expected = trainer.compute_ref_log_probs(trainer.ref_model, batch)
    torch.testing.assert_close(chosen, expected[0])
    torch.testing.assert_close(rejected, expected[1])


def test_what_is_there_is_read_and_only_the_rest_computed(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.reference_cache.BATCHES_PER_PART", 1)
    done = []
    first = reference_log_probs(trainer, tmp_path, "key", lambda *pairs: done.append(pairs))
    assert done == [(4, 16), (8, 16), (12, 16), (16, 16)]
    parts = sorted((tmp_path / "key").iterdir())
    parts[1].unlink()
    parts[2].write_bytes(parts[2].read_bytes()[:-3])
    done.clear()
    again = reference_log_probs(trainer, tmp_path, "key", lambda *pairs: done.append(pairs))
    assert done == [(8, 16), (12, 16)]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("args", "max_length", 32),
        ("args", "per_device_train_batch_size", 2),
        ("args", "bf16", True),
        ("data_collator", "truncation_mode", "keep_end"),
        ("data_collator", "pad_token_id", 7),
        ("", "ld_alpha", 0.5),
    ],
)
def test_whatever_changes_a_number_changes_the_key(trainer, where, name, value):
    before = reference_key(trainer, IDENTITY)
    target = getattr(trainer, where) if where else trainer
    if dataclasses.is_dataclass(target):
        object.__setattr__(target, name, value)
    else:
        setattr(target, name, value)
    assert reference_key(trainer, IDENTITY) != before


def test_other_weights_tokens_and_threads_change_the_key(
    trainer, clear_pairs, model_folder, tmp_path
):
    before = reference_key(trainer, IDENTITY)
    assert reference_key(make(clear_pairs, model_folder, tmp_path), IDENTITY) == before
    other_rows = make(clear_pairs.head(15), model_folder, tmp_path)
    threads = torch.get_num_threads()
    others = [
        reference_key(trainer, {**IDENTITY, "reference": "other weights"}),
        reference_key(trainer, {**IDENTITY, "path": "TRL's own"}),
        reference_key(other_rows, IDENTITY),
    ]
    torch.set_num_threads(threads + 1)
    try:
        others.append(reference_key(trainer, IDENTITY))
    finally:
        torch.set_num_threads(threads)
    assert before not in others
    assert len(set(others)) == len(others)
