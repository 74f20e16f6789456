"""TRL's own trainers read the exported files on the bundled model: what they train on is ours."""

import datasets
import pytest

from flows.configuration import BUNDLED_MODEL
from stages.export import preference_rows
from stages.export_formats import FORMATS
from tests.stages.test_export import TEXTS, built
from tests.stages.written import encode

SETTINGS = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "bf16": False,
    "use_cpu": True,
    "report_to": [],
    "disable_tqdm": True,
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "max_length": 512,
}


@pytest.fixture
def model():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL)
    return loaded, AutoTokenizer.from_pretrained(BUNDLED_MODEL)


def exported(tmp_path, name):
    """Return what `load_dataset` reads from a file of six pairs."""
    datasets.disable_progress_bars()
    rows = preference_rows(*built(TEXTS[:6]), "train")
    path = tmp_path / FORMATS[name].name_of("train")
    path.write_bytes(encode(rows, name))
    kind, cache = "parquet" if name == "trl_parquet" else "json", str(tmp_path / "cache")
    return rows, datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=cache)


@pytest.mark.parametrize("name", ["trl_jsonl", "trl_parquet"])
def test_dpo_takes_a_step_on_exactly_our_texts(tmp_path, model, name):
    from trl import DPOConfig, DPOTrainer

    rows, dataset = exported(tmp_path, name)
    network, tokenizer = model
    trainer = DPOTrainer(
        network,
        args=DPOConfig(str(tmp_path / "out"), **SETTINGS),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    assert trainer.train().training_loss == pytest.approx(0.6931, abs=1e-4)  # ln 2 at the start
    for ours, theirs in zip(rows.to_dicts(), trainer.train_dataset, strict=True):
        asked = tokenizer.apply_chat_template(
            ours["prompt"], add_generation_prompt=True, tokenize=False
        )
        assert tokenizer.decode(theirs["prompt_ids"]) == asked
        for side in ("chosen", "rejected"):
            text = tokenizer.decode(theirs[f"{side}_ids"])
            assert text.startswith(ours[side][0]["content"])


def test_kto_takes_a_step_on_exactly_our_labels(tmp_path, model):
    from trl import KTOConfig, KTOTrainer

    _, dataset = exported(tmp_path, "trl_unpaired_jsonl")
    network, tokenizer = model
    trainer = KTOTrainer(
        network,
        args=KTOConfig(str(tmp_path / "out"), **SETTINGS),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer.train()
    labels = [row["label"] for row in trainer.train_dataset]
    assert sorted(labels) == [False] * 6 + [True] * 6
