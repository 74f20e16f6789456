"""Supervised fine-tuning: what is learned, what is refused, what comes out."""

import json

import polars as pl
import pytest
import torch

from stages.content_ids import weights_hash
from stages.errors import ConfigError, DataError, ModelError
from tests.trainer.conftest import user
from tests.trainer.test_adapters import logits
from trainer.adapters import AdapterConfig
from trainer.sft import SFTObjective
from trainer.sft_data import check_conversations, tokenised
from trainer.sft_settings import SFTTrainingConfig
from trainer.single_model import train_model

QUICK = SFTTrainingConfig(
    learning_rate=1e-3,
    batch_size=4,
    epochs=2,
    max_length_tokens=64,
    checkpoint_every_steps=3,
    heldout_share=0.25,
    threads=1,
)
"""6 steps on 12 of 16 rows, checkpoints at 3 and 6."""


def said(*texts):
    return [{"role": "assistant", "content": text} for text in texts]


def rows_of(*conversations):
    """A frame of (prompt, response) with ids a, b, c ..."""
    names = [chr(ord("a") + i) for i in range(len(conversations))]
    prompts, responses = zip(*conversations, strict=True)
    return pl.DataFrame({"row_id": names, "prompt": prompts, "response": responses})


@pytest.fixture(scope="module")
def answers(clear_pairs):
    turn = pl.concat_list(pl.struct(role=pl.lit("assistant"), content=pl.col("chosen")))
    return clear_pairs.select(row_id="pair_id", prompt="prompt", response=turn)


def run(rows, model, folder, config=QUICK, **rest):
    return train_model(
        SFTObjective(config), rows, model, folder / "model", folder / "checkpoints", **rest
    )


@pytest.fixture(scope="module")
def trained(answers, model_folder, tmp_path_factory):
    return run(answers, model_folder, tmp_path_factory.mktemp("sft"))


def texts_of(row, tokenizer):
    learned = [token for token in row.labels if token != -100]
    return tokenizer.decode(row.input_ids), tokenizer.decode(learned)


@pytest.mark.parametrize(
    ("prompt", "response", "read", "learned"),
    [
        (user("a"), said("b"), "<|user|>a<|assistant|>b<|eos|>", "b<|eos|>"),
        (
            user("a"),
            [*said("b"), *user("c"), *said("d")],
            "<|user|>a<|assistant|>b<|eos|><|user|>c<|assistant|>d<|eos|>",
            "b<|eos|>d<|eos|>",
        ),
        (
            [*user("a"), *said("b"), *user("c")],
            said("d"),
            "<|user|>a<|assistant|>b<|eos|><|user|>c<|assistant|>d<|eos|>",
            "d<|eos|>",
        ),
    ],
)
def test_the_responses_answers_are_learned_with_their_ends(
    prompt, response, read, learned, tokenizer
):
    (row,) = tokenised(rows_of((prompt, response)), tokenizer)
    assert texts_of(row, tokenizer) == (read, learned)
    assert all(
        label in {-100, token} for token, label in zip(row.input_ids, row.labels, strict=True)
    )


def test_tokens_and_labels_are_those_of_trl(tokenizer, model_folder, tmp_path):
    """TRL's own preparation of prompt and completion."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    rows = rows_of((user("a b"), said("c")), ([*user("d"), *said("e"), *user("f")], said("g h")))
    plain = rows.select("prompt", completion="response")
    trl = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model_folder),
        SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False),
        train_dataset=Dataset.from_polars(plain),
        processing_class=tokenizer,
    )
    ours = list(tokenised(rows, tokenizer))
    assert [row.input_ids for row in ours] == trl.train_dataset["input_ids"]
    assert [row.labels for row in ours] == trl.train_dataset["labels"]


@pytest.mark.parametrize(
    ("conversations", "check", "ids"),
    [
        ([(user("a"), said(" "))], "empty_completion", ["a"]),
        ([(said("x"), said("b"))], "prompt_not_ending_with_user", ["a"]),
        ([([], said("b"))], "prompt_not_ending_with_user", ["a"]),
        ([(user("a"), [*said("b"), *user("c")])], "response_not_ending_with_assistant", ["a"]),
        ([(user("a"), [])], "response_not_ending_with_assistant", ["a"]),
        ([(user(None), said("b"))], "missing_content", ["a"]),
        ([(user("<|bos|>"), said("b"))] * 2, "repeated_row", ["a", "b"]),
        ([(user("a" * 9), said("b")), (user("a"), said("b" * 9))], "sequence_too_long", ["a", "b"]),
    ],
)
def test_what_can_not_be_learned_is_named(conversations, check, ids, tokenizer):
    schema = {"role": pl.String, "content": pl.String}
    rows = rows_of(*conversations).cast(
        dict.fromkeys(("prompt", "response"), pl.List(pl.Struct(schema)))
    )
    fine = rows_of((user("u"), said("v"))).with_columns(row_id=pl.lit("fine"))
    found = check_conversations(pl.concat([rows, fine]), tokenizer, 12)
    (problem,) = found.filter(check=check).to_dicts()
    assert json.loads(problem["examples"]) == ids


def test_templates_that_spoil_turns_are_named(tokenizer_with):
    both = rows_of((user("a"), [*said("b"), *user("c"), *said("d")]))
    last = rows_of(([*user("a"), *said("b"), *user("c")], said("d")))
    early = "'.' if m['role'] == 'assistant' and not loop.last"
    forgets = tokenizer_with("{{ m['content'] }}", f"{{{{ {early} else m['content'] }}}}")
    assert check_conversations(both, forgets, 99)["check"].to_list() == ["turn_not_prefix"]
    assert check_conversations(last, forgets, 99).is_empty()
    thinks = tokenizer_with("<|assistant|>{% endif %}", "<|assistant|>!{% endif %}")
    assert check_conversations(last, thinks, 99)["check"].to_list() == ["prompt_not_prefix"]
    endless = tokenizer_with("<|eos|>", "")
    assert check_conversations(last, endless, 99)["check"].to_list() == ["template_without_eos"]
    twice = tokenizer_with("{% for m", "<|bos|><|bos|>{% for m")
    assert check_conversations(last, twice, 99)["check"].to_list() == ["double_bos"]


def test_the_loss_is_that_of_the_answers_tokens_alone(answers, trained, model_folder, tokenizer):
    """The mean of -log P over the held-out answers' tokens, EOS included, before any step."""
    from transformers import AutoModelForCausalLM

    from trainer.heldout import split

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    _, heldout = split(answers, 0.25, 0)
    assert heldout.height == 4
    nats = []
    for prompt, response in heldout.select("prompt", "response").iter_rows():
        head = f"<|user|>{prompt[0]['content']}<|assistant|>"
        first = len(tokenizer(head)["input_ids"])
        ids = tokenizer(f"{head}{response[0]['content']}<|eos|>")["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        nats += [-logits[i - 1, ids[i]].item() for i in range(first, len(ids))]
    expected = sum(nats) / len(nats)
    assert trained.manifest["heldout"]["before"]["loss"] == pytest.approx(expected, abs=1e-5)


def test_the_result_has_learned_and_says_how(trained, model_folder):
    from transformers import AutoModelForCausalLM

    manifest = trained.manifest
    before, after = (manifest["heldout"][when]["loss"] for when in ("before", "after"))
    assert after < before - 0.3
    assert (manifest["rows"], manifest["heldout_rows"], manifest["steps"]) == (12, 4, 6)
    assert manifest["base_weights_hash"] == weights_hash(model_folder)
    assert manifest["weights_hash"] == weights_hash(trained.model_path)
    held = trained.metrics.filter(metric="heldout/loss")
    assert held.rows() == [(0, "heldout/loss", before), (6, "heldout/loss", after)]
    assert trained.metrics.filter(metric="loss")["step"].to_list() == [1, 2, 3, 4, 5, 6]
    card = (trained.model_path / "README.md").read_text()
    assert f"| loss on held-out rows, nats per token | {before:.3g} | {after:.3g} |" in card
    assert AutoModelForCausalLM.from_pretrained(trained.model_path).config.use_cache
    assert not (trained.model_path / "training_args.bin").exists()


class Killed(BaseException):
    """Stands for a kill in tests that stay within one process."""


def test_stopped_and_resumed_has_the_same_bits_and_is_not_repeated(
    answers, model_folder, trained, tmp_path
):
    def kill(step, total):
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        run(answers, model_folder, tmp_path, progress=kill)
    steps, lines = [], []
    shuffled = answers.sample(fraction=1.0, shuffle=True, seed=1)
    resumed = run(
        shuffled,
        model_folder,
        tmp_path,
        progress=lambda step, total: steps.append(step),
        note=lines.append,
    )
    assert steps == [3, 4, 5, 6]
    last = trained.metrics.filter(step=6)
    loss, right = (last.filter(metric=m)["value"][0] for m in ("loss", "mean_token_accuracy"))
    assert lines[-1] == f"loss {loss:.3f}  tokens right {right:.0%}"
    assert resumed.manifest["weights_hash"] == trained.manifest["weights_hash"]
    assert resumed.metrics.equals(trained.metrics)
    again = run(answers, model_folder, tmp_path, progress=lambda *_: pytest.fail("trained again"))
    assert again.manifest == resumed.manifest


def test_adapters_are_trained_alone_and_merged_to_a_hair(answers, model_folder, tmp_path):
    """The result's held-out loss is the one measured with the adapters on."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = AdapterConfig(rank=4, alpha=8)
    config = QUICK.model_copy(update={"adapter": adapter, "learning_rate": 1e-2})
    result = run(answers, model_folder, tmp_path, config)
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    before = logits(base)
    beside = logits(PeftModel.from_pretrained(base, result.model_path / "adapter"))
    merged = logits(AutoModelForCausalLM.from_pretrained(result.model_path))
    torch.testing.assert_close(merged, beside, atol=1e-5, rtol=0)
    assert (merged - before).abs().max() > 0.1
    losses = (result.manifest["heldout"][when]["loss"] for when in ("before", "after"))
    assert next(losses) - next(losses) > 0.3
    assert result.manifest["weights_hash"] == weights_hash(result.model_path)
    card = (result.model_path / "README.md").read_text()
    assert "| trained weights | lora of rank 4, alpha 8, on all linear layers; merged" in card


def test_a_loss_that_is_not_finite_stops_and_names_the_rows(answers, model_folder, tmp_path):
    wild = QUICK.model_copy(update={"learning_rate": 1e30, "warmup_ratio": 0.0})
    with pytest.raises(ModelError, match=r"unstable at step 2: .*, on (pair_\d\d(, )?){4}\."):
        run(answers, model_folder, tmp_path, wild)
    assert not (tmp_path / "model").exists()


def test_bad_rows_and_settings_are_refused(answers, model_folder, tmp_path):
    empty = answers.with_columns(response=pl.col("response").list.head(0))
    with pytest.raises(DataError, match=r"sft data cannot .* response_not_ending.*: 16 rows, such"):
        run(empty, model_folder, tmp_path)
    with pytest.raises(DataError, match=r"heldout_share 0.25 of 1 prompts .* sft\.heldout_share"):
        run(answers.head(1), model_folder, tmp_path)
    with pytest.raises(DataError, match=r"lack the columns \['response'\]"):
        run(answers.drop("response"), model_folder, tmp_path)
    with pytest.raises(ConfigError, match="nearest known: epochs"):
        SFTTrainingConfig.checked({"epoch": 1})
