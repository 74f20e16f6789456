"""The shipped tiny model loads, keeps its chat format, and knows its tasks; making one works."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from flows.make_tiny_model import (
    EOS,
    Settings,
    balanced_prompts,
    complete,
    demonstrations,
    make_tiny_model,
)
from stages.task_families import FAMILIES, sample_prompts, score

FOLDER = Path(__file__).parents[2] / "data" / "tiny-model"
GREEDY_FLOOR = 0.3  # per family, of 40; measured 0.53 to 0.68 of 500 (data/README.md)
SAMPLED_FLOOR = 0.15  # measured 0.33 to 0.49
SAMPLED_CEILING = 0.65  # of all: the demonstration needs headroom; measured 0.43


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype="float32")


def test_the_folder_is_small_and_says_how_it_was_made() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 5_000_000
    record = json.loads((FOLDER / "training.json").read_text())
    assert set(record["heldout_success"]["greedy"]) == {*FAMILIES, "mean"}
    assert record["settings"]["steps"] == Settings().steps
    assert record["parameters"] < 1_500_000


def test_it_is_a_plain_llama(model: Any) -> None:
    assert model.config.model_type == "llama"
    assert model.config.max_position_embeddings == 256
    assert model.config.hidden_size // model.config.num_attention_heads == 32


def test_the_assistant_turn_ends_with_one_eos_and_nothing_is_added(tokenizer: Any) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Add 123 + 456."},
        {"role": "assistant", "content": "Total 579."},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == f"<|system|>Be brief.<|user|>Add 123 + 456.<|assistant|>Total 579.{EOS}"
    ids = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert ids == tokenizer.encode(text)
    assert tokenizer.bos_token_id not in ids
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids) == text


def test_the_generation_prompt_is_a_prefix_of_the_whole_chat(tokenizer: Any) -> None:
    user = [{"role": "user", "content": "Put in order: lamp, anchor, zebra."}]
    whole = [*user, {"role": "assistant", "content": "Sorted: anchor, lamp, zebra."}]
    prompt = tokenizer.apply_chat_template(user, add_generation_prompt=True, return_dict=True)
    full = tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"]
    assert full[: len(prompt["input_ids"])] == prompt["input_ids"]


@pytest.mark.parametrize(("sampled", "floor"), [(False, GREEDY_FLOOR), (True, SAMPLED_FLOOR)])
def test_every_family_is_well_above_its_floor_on_unseen_contents(
    model: Any, tokenizer: Any, sampled: bool, floor: float
) -> None:
    tasks = balanced_prompts("heldout", 200, seed=11)
    texts = complete(model, tokenizer, [task.prompt for task in tasks], sampled, seed=11)
    for family in FAMILIES:
        passed = [
            score(family, task.ground_truth, text) == 1.0
            for task, text in zip(tasks, texts, strict=True)
            if task.family == family
        ]
        assert len(passed) == 40
        assert sum(passed) / len(passed) >= floor, family


def test_habits_leave_headroom_for_a_round(model: Any, tokenizer: Any) -> None:
    tasks = balanced_prompts("heldout", 200, seed=12)
    texts = complete(model, tokenizer, [task.prompt for task in tasks], sampled=True, seed=12)
    rewards = [
        score(task.family, task.ground_truth, text) for task, text in zip(tasks, texts, strict=True)
    ]
    assert 0.25 < sum(reward == 1.0 for reward in rewards) / len(rewards) < SAMPLED_CEILING
    assert sum(rewards) / len(rewards) > 0.6  # failures are near misses: margins mean something


def test_demonstrations_repeat_and_use_only_the_base_split() -> None:
    settings = Settings(seed=5)
    first = list(demonstrations(settings, 300, True, "clean"))
    assert first == list(demonstrations(settings, 300, True, "clean"))
    assert first != list(demonstrations(settings, 300, True, "flawed"))
    prompts = {prompt for prompt, _ in first}
    for family in FAMILIES:
        unseen = {task.prompt for task in sample_prompts(family, "heldout", 600, 0)}
        assert not prompts & unseen


def test_a_handful_of_steps_makes_a_loadable_folder(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = Settings(
        steps=4,
        flawed_steps=2,
        batch_size=4,
        hidden_size=32,
        heads=1,
        layers=1,
        intermediate_size=64,
        tokenizer_demonstrations=300,
        evaluation_prompts=5,
    )
    record = make_tiny_model(settings, tmp_path)
    assert json.loads(json.dumps(record)) == json.loads((tmp_path / "training.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.num_parameters() == record["parameters"]
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == record["vocabulary"]
    texts = complete(
        loaded, AutoTokenizer.from_pretrained(tmp_path), ["Add 123 + 456."], False, seed=0
    )
    assert len(texts) == 1
