"""Rewards in this process: read at the last real token, whatever shares the batch."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from stages.content_ids import weights_hash
from stages.errors import ConfigError, ModelError
from stages.reward_model import BATCH_TOLERANCE, RewardModel, RewardOutcome, score_in_batches
from stages.text_batches import length_sorted_batches

pytestmark = pytest.mark.usefixtures("on_the_cpu")

BUNDLED = Path(__file__).parents[2] / "data" / "tiny-model"
TEMPLATE = (BUNDLED / "chat_template.jinja").read_text()
EOS, PAD = 2, 0


def answered(prompt, completion):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


CONVERSATIONS = [
    answered("Hi", ""),
    answered("Hi", "Hello."),
    answered("Hi", "Hello.<|eos|>"),  # ends in EOS twice
    answered("Hi", "Hello.<|eos|><|eos|><|eos|>"),
    answered("Add 1 and 2.", "The sum of the two is 3, of course."),
    answered("Sort 3, 1, 2 and say how.", "1, 2, 3: " + "compare and swap; " * 5),
    answered("Count.", " ".join(map(str, range(30)))),
    answered("x" * 40, "y"),
]


def tiny(kind="Llama", **settings):
    """Return a random model with a classification head; dropout on, as far as it has any."""
    sizes = {
        "vocab_size": 1017,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "initializer_range": 0.5,
        "num_labels": 1,
    }
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **settings})
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForSequenceClassification")(config)


def saved(model, folder, template=TEMPLATE, **tokens):
    """Return ``folder`` with the model and the bundled tokenizer, its special tokens changed."""
    model.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED)
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def ids_of(tokenizer, conversation):
    return torch.tensor([tokenizer.apply_chat_template(conversation)["input_ids"]])


def scores(outcomes):
    assert all(outcome.error is None for outcome in outcomes), outcomes
    return [outcome.score for outcome in outcomes]


def close(expected):
    return pytest.approx(expected, rel=BATCH_TOLERANCE, abs=BATCH_TOLERANCE)


# --- decoders: the last real token

PADDINGS = {
    "a token of its own": (PAD, "<|pad|>"),
    "EOS": (EOS, "<|eos|>"),
    "none": (None, None),
    "EOS for the tokenizer, none for the model": (None, "<|eos|>"),
}


@pytest.fixture(scope="module", params=PADDINGS)
def padded(request, on_the_cpu, tmp_path_factory):
    """Return a reward model for each way in which padding is set."""
    model_pad, tokenizer_pad = PADDINGS[request.param]
    model = tiny(pad_token_id=model_pad)
    folder = tmp_path_factory.mktemp("padded")
    return RewardModel(saved(model, folder, pad_token=tokenizer_pad), batch_tokens=600)


def test_a_reward_is_the_head_at_the_last_real_token(padded):
    expected = []
    for conversation in CONVERSATIONS:
        ids = ids_of(padded.tokenizer, conversation)
        assert ids[0, -1] == EOS
        with torch.inference_mode():
            hidden = padded.model.model(ids).last_hidden_state[0, -1]
            expected.append((hidden * padded.model.score.weight[0]).sum().item())
    assert max(expected) - min(expected) > 1
    assert scores(padded.score(CONVERSATIONS)) == close(expected)
    alone = [scores(padded.score([conversation]))[0] for conversation in CONVERSATIONS]
    assert alone == close(expected)


@settings(max_examples=25)
@given(
    rows=st.lists(st.integers(0, len(CONVERSATIONS) - 1), max_size=12),
    batch_tokens=st.integers(1, 2000),
)
def test_a_reward_does_not_depend_on_what_shares_its_batch(padded, rows, batch_tokens):
    expected = scores(padded.score(CONVERSATIONS))
    padded.batch_tokens = batch_tokens
    assert scores(padded.score([CONVERSATIONS[i] for i in rows])) == close(
        [expected[i] for i in rows]
    )


def test_the_trap_is_real(tmp_path):
    """Transformers' own pooling reads before the EOS tokens when they are the padding."""
    model = RewardModel(saved(tiny(pad_token_id=EOS), tmp_path, pad_token="<|eos|>"))
    ends_in_one_eos, ends_in_two = CONVERSATIONS[1:3]
    with torch.inference_mode():
        own = [model.model(ids_of(model.tokenizer, c)).logits.item() for c in CONVERSATIONS[1:3]]
    ours = scores(model.score([ends_in_one_eos, ends_in_two]))
    assert own[0] == pytest.approx(own[1], abs=1e-5), "different texts, equal scores"
    assert abs(ours[0] - ours[1]) > 0.01


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Qwen2", {"num_key_value_heads": 2}),
        ("Mistral", {"num_key_value_heads": 2, "sliding_window": 8}),
        ("Gemma2", {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 8}),
        ("GPT2", {"n_inner": 64}),  # absolute positions, dropout
        ("GPTNeoX", {}),
        ("Bloom", {"n_head": 4, "hidden_dropout": 0.5}),  # ALiBi
        ("OPT", {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.5}),
    ],
)
def test_every_kind_of_decoder(tmp_path, kind, settings):
    model = RewardModel(saved(tiny(kind, **settings), tmp_path), batch_tokens=100_000)
    # With a padding token that no text holds, transformers' own pooling is right, one by one.
    with torch.inference_mode():
        logits = [model.model(ids_of(model.tokenizer, c)).logits.item() for c in CONVERSATIONS]
    assert scores(model.score(CONVERSATIONS)) == close(logits)
    assert max(logits) - min(logits) > 0.1


def test_several_outputs_are_named(tmp_path):
    names = {0: "helpful", 1: "harmless", 2: "terse"}
    folder = saved(tiny(num_labels=3, id2label=names), tmp_path)
    terse = RewardModel(folder, output="terse")
    with torch.inference_mode():
        logits = [
            terse.model(ids_of(terse.tokenizer, c)).logits[0, 2].item() for c in CONVERSATIONS
        ]
    assert scores(terse.score(CONVERSATIONS)) == close(logits)
    for output, said in [
        (None, "no output is named of the model's 3"),
        (
            "harmles",
            "the output 'harmles' is not one of the model's 3; nearest known: harml",
        ),
    ]:
        with pytest.raises(ConfigError, match=said) as caught:
            RewardModel(folder, output=output)
        assert "one of 'helpful', 'harmless', 'terse'" in str(caught.value)


def test_one_output_may_be_named_rightly(tmp_path):
    folder = saved(tiny(id2label={0: "reward"}), tmp_path)
    assert RewardModel(folder, output="reward").output == 0
    with pytest.raises(ConfigError, match="the output 'safety' is not one"):
        RewardModel(folder, output="safety")


# --- encoders: their own head and mask

ENCODERS = {
    "Bert": {},
    "DebertaV2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "Roberta": {"max_position_embeddings": 300},
    "ModernBert": {"global_attn_every_n_layers": 2, "local_attention": 16},
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoders_score_by_their_own_head(tmp_path, kind):
    folder = saved(tiny(kind, **ENCODERS[kind]), tmp_path)
    model = RewardModel(folder, batch_tokens=100_000)
    with torch.inference_mode():
        logits = [model.model(ids_of(model.tokenizer, c)).logits.item() for c in CONVERSATIONS]
    assert scores(model.score(CONVERSATIONS)) == close(logits)
    model.batch_tokens = 150
    assert scores(model.score(CONVERSATIONS[::-1])) == close(logits[::-1])
    assert max(logits) - min(logits) > 0.01


def test_an_encoder_whose_template_lacks_cls_is_refused(tmp_path):
    cls = {"cls_token": "<|bos|>"}
    with pytest.raises(
        ModelError, match=r"reads '<\|bos\|>', which the chat template does not write"
    ):
        RewardModel(saved(tiny("Bert"), tmp_path, **cls))
    with_cls = saved(tiny("Bert"), tmp_path, template="{{ cls_token }}" + TEMPLATE, **cls)
    assert RewardModel(with_cls).score(CONVERSATIONS[:1])[0].error is None


def test_models_that_find_the_end_by_themselves_and_cannot_are_refused(tmp_path):
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    with pytest.raises(ModelError, match="is an encoder-decoder"):
        RewardModel(saved(tiny("T5", **t5), tmp_path / "t5"))
    with pytest.raises(ModelError, match="finds the end of a text by a padding token"):
        RewardModel(saved(tiny("Bert", pad_token_id=EOS), tmp_path / "bert"))


# --- what has no score


@pytest.fixture(scope="module")
def plain(on_the_cpu, tmp_path_factory):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    return saved(tiny(), tmp_path_factory.mktemp("plain"), template=refusing + TEMPLATE)


def test_what_the_model_cannot_read_is_missing_and_the_rest_scored(plain):
    model = RewardModel(plain, max_length_tokens=20)
    system = [{"role": "system", "content": "Be brief."}, *CONVERSATIONS[1]]
    short, long, refused = model.score([CONVERSATIONS[1], CONVERSATIONS[6], system])
    assert short == RewardOutcome(short.score, ids_of(model.tokenizer, CONVERSATIONS[1]).shape[1])
    length = ids_of(model.tokenizer, CONVERSATIONS[6]).shape[1]
    said = f"too_long: {length} tokens, at most 20 are read"
    assert long == RewardOutcome(None, length, said)
    assert refused.score is None
    assert refused.error == (
        "template_refuses: the chat template refuses a conversation: no system"
    )
    assert model.score([]) == []


def test_the_longest_text_that_is_read(plain):
    model = RewardModel(plain, max_length_tokens=1000)
    assert model.max_length_tokens == 256, "the model's own limit"
    empty = model.score([answered("Hi", "")])[0].tokens
    fits, too_long = (answered("Hi", "1" * (n - empty)) for n in (256, 257))
    outcomes = model.score([fits, too_long])
    assert [outcome.tokens for outcome in outcomes] == [256, 257]
    assert [outcome.score is None for outcome in outcomes] == [False, True]


def test_a_reward_that_is_no_number_is_missing(plain):
    model = RewardModel(plain)
    with torch.no_grad():
        model.model.score.weight[0, 0] = float("nan")
    (outcome,) = model.score(CONVERSATIONS[:1])
    assert (outcome.score, outcome.error) == (None, "not_finite: the model gave nan")


def test_what_names_the_model(plain):
    model = RewardModel(plain, "org/reward")
    assert (model.model_name, RewardModel(plain).model_name) == ("org/reward", plain.name)
    assert model.weights_hash == weights_hash(plain)
    assert re.fullmatch("[0-9a-f]{20}", model.template_fingerprint)


# --- wrong heads, templates and folders


def test_a_language_model_is_no_reward_model():
    """transformers would draw the head at random."""
    with pytest.raises(ModelError, match=re.escape("the weights lack score.weight")):
        RewardModel(BUNDLED)


def test_a_left_over_language_head_is_none_of_its_business(plain, tmp_path):
    folder = Path(shutil.copytree(plain, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = torch.zeros(1017, 32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert RewardModel(folder).score(CONVERSATIONS) == RewardModel(plain).score(CONVERSATIONS)


def test_weights_that_would_be_left_out_are_named(plain, tmp_path):
    folder = Path(shutil.copytree(plain, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    weights["score.bias"] = torch.ones(1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    said = "the weights hold what LlamaForSequenceClassification does not use: score.bias"
    with pytest.raises(ModelError, match=re.escape(said)):
        RewardModel(folder)


def test_remote_code_is_never_run(plain, tmp_path):
    folder = Path(shutil.copytree(plain, tmp_path / "model"))
    (folder / "own.py").write_text("raise SystemExit('it was run')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "own.Config",
        "AutoModelForSequenceClassification": "own.Model",
    }
    config["model_type"] = "own"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        RewardModel(folder)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("", "no chat template"),
        ("<|bos|>{{ bos_token }}" + TEMPLATE, "writes the BOS token '<|bos|>' twice"),
    ],
)
def test_harmful_templates_are_refused(tmp_path, template, said):
    with pytest.raises(ModelError, match=re.escape(said)):
        RewardModel(saved(tiny(), tmp_path, template=template))


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ModelError, match="the model cannot be loaded") as caught:
        RewardModel(tmp_path)
    assert caught.value.where == str(tmp_path)


# --- batches


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_batches_hold_every_row_once_within_the_budget(lengths, batch_tokens):
    batches = list(length_sorted_batches(lengths, batch_tokens))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(lengths, reverse=True)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= batch_tokens


def test_batches_are_as_full_as_the_budget_allows():
    assert list(length_sorted_batches([2, 5, 2, 3, 1], 10)) == [[1, 3], [0, 2, 4]]


def test_batches_tell_how_far_they_have_got():
    told = []
    sequences = [[1, 2], [1], "template_refuses: no", [1, 2, 3], [1] * 99]
    outcomes = score_in_batches(
        sequences, 50, 3, lambda _, rows: [0.5] * len(rows), lambda *at: told.append(at)
    )
    assert [outcome.error is None for outcome in outcomes] == [True, True, False, True, False]
    assert told == [(3, 5), (4, 5), (5, 5)]
