"""The implicit reward against its definition, one conversation at a time."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from stages.content_ids import content_hash, weights_hash
from stages.errors import ModelError
from stages.implicit_reward import ImplicitReward

pytestmark = pytest.mark.usefixtures("on_the_cpu")

BUNDLED = Path(__file__).parents[2] / "data" / "tiny-model"
TEMPLATE = (BUNDLED / "chat_template.jinja").read_text()
EOS = 2
TOLERANCE = 1e-4  # of a sum of log-probabilities in fp32


def answered(prompt, completion):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


CONVERSATIONS = [
    answered("Hi", ""),
    answered("Add 1 and 2.", "3"),
    answered("Add 1 and 2.", "The sum is 3, of course."),
    answered("Sort 3, 1, 2 and say how.", "1, 2, 3: " + "compare and swap; " * 5),
    answered("x" * 60, "y<|eos|>"),
    [*answered("Count.", "1 2 3"), *answered("Go on.", " ".join(map(str, range(30))))],
    [{"role": "system", "content": "Be brief."}, *answered("Hi", "Hello.")],
]


def changed(folder, seed):
    """Return ``folder`` with a copy of the bundled model whose weights are shaken a little."""
    shutil.copytree(BUNDLED, folder)
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * weight.std() * torch.randn_like(weight))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def policy(on_the_cpu, tmp_path_factory):
    return changed(tmp_path_factory.mktemp("policy") / "policy", seed=1)


@pytest.fixture(scope="module")
def reward(policy):
    return ImplicitReward(policy, BUNDLED, beta=0.5, batch_tokens=400)


def logprob(folder, reward, conversation):
    """Return log pi(answer and end of turn | prompt), position by position."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    encode = reward.tokenizer.apply_chat_template
    prompt = encode(conversation[:-1], add_generation_prompt=True)["input_ids"]
    ids = encode(conversation)["input_ids"]
    assert ids[: len(prompt)] == prompt
    assert ids[-1] == EOS
    total = 0.0
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0].double()
    for place in range(len(prompt), len(ids)):
        total += torch.log_softmax(logits[place - 1], dim=-1)[ids[place]].item()
    return total


def scores(outcomes):
    assert all(outcome.error is None for outcome in outcomes), outcomes
    return [outcome.score for outcome in outcomes]


def test_it_is_beta_times_the_difference_of_the_log_probabilities(policy, reward):
    expected = [
        0.5 * (logprob(policy, reward, c) - logprob(BUNDLED, reward, c)) for c in CONVERSATIONS
    ]
    assert scores(reward.score(CONVERSATIONS)) == pytest.approx(expected, abs=TOLERANCE)
    assert max(expected) - min(expected) > 1


def test_beta_scales_it(policy, reward):
    twice = scores(ImplicitReward(policy, BUNDLED, beta=1.0).score(CONVERSATIONS))
    once = scores(reward.score(CONVERSATIONS))
    assert twice == pytest.approx([2 * score for score in once], abs=TOLERANCE)


def test_a_model_against_itself_gives_zero():
    itself = ImplicitReward(BUNDLED, BUNDLED, beta=3.0)
    assert scores(itself.score(CONVERSATIONS)) == [0.0] * len(CONVERSATIONS)


def test_exchanged_models_change_the_sign(policy, reward):
    exchanged = scores(ImplicitReward(BUNDLED, policy, beta=0.5).score(CONVERSATIONS))
    expected = [-score for score in scores(reward.score(CONVERSATIONS))]
    assert exchanged == pytest.approx(expected, abs=TOLERANCE)


@settings(max_examples=20)
@given(
    rows=st.lists(st.integers(0, len(CONVERSATIONS) - 1), max_size=10),
    batch_tokens=st.integers(1, 2000),
)
def test_it_does_not_depend_on_what_shares_the_batch(reward, rows, batch_tokens):
    expected = scores(reward.score(CONVERSATIONS))
    reward.batch_tokens = batch_tokens
    found = scores(reward.score([CONVERSATIONS[i] for i in rows]))
    assert found == pytest.approx([expected[i] for i in rows], abs=TOLERANCE)


def test_what_follows_the_end_of_the_turn_does_not_count(tmp_path, policy):
    """Qwen's template writes a newline there, which the model never generates."""
    folders = []
    for name, source in (("policy", policy), ("reference", BUNDLED)):
        folders.append(Path(shutil.copytree(source, tmp_path / name)))
        (folders[-1] / "chat_template.jinja").write_text(
            TEMPLATE.replace("<|eos|>{%", "<|eos|>{{ '\\n' }}{%")
        )
    plain = ImplicitReward(policy, BUNDLED, beta=0.5).score(CONVERSATIONS[:4])
    with_newline = ImplicitReward(*folders, beta=0.5)
    assert with_newline.tokenizer.apply_chat_template(CONVERSATIONS[1], tokenize=False).endswith(
        "<|eos|>\n"
    )
    found = with_newline.score(CONVERSATIONS[:4])
    assert scores(found) == pytest.approx(scores(plain), abs=TOLERANCE)
    assert [outcome.tokens for outcome in found] == [outcome.tokens for outcome in plain]


def test_the_models_own_treatment_of_logits_is_kept(tmp_path):
    """Gemma 2 caps its logits after the head."""
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = Gemma2Config(
            vocab_size=1017,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=256,
            sliding_window=8,
            initializer_range=0.5,
            final_logit_softcapping=2.0,
            eos_token_id=EOS,
        )
        folders.append(Path(shutil.copytree(BUNDLED, tmp_path / str(seed))))
        (folders[-1] / "generation_config.json").unlink()
        Gemma2ForCausalLM(config).save_pretrained(folders[-1])
    reward = ImplicitReward(*folders, beta=1.0)
    expected = [
        logprob(folders[0], reward, c) - logprob(folders[1], reward, c) for c in CONVERSATIONS
    ]
    assert scores(reward.score(CONVERSATIONS)) == pytest.approx(expected, abs=TOLERANCE)


def test_what_cannot_be_read_is_missing(reward):
    long = answered("Hi", "1" * 300)
    empty, missing = reward.score([CONVERSATIONS[0], long])
    assert empty.score is not None
    assert missing.score is None
    assert missing.tokens > 300
    assert missing.error == f"too_long: {missing.tokens} tokens, at most 256 are read"


def test_what_names_the_models(policy, reward):
    assert reward.model_name == "policy"
    assert ImplicitReward(policy, BUNDLED, 0.1, name="org/policy").model_name == "org/policy"
    assert reward.weights_hash == content_hash([weights_hash(policy), weights_hash(BUNDLED)])


@pytest.mark.parametrize("role", ["policy", "reference"])
def test_models_with_different_templates_are_refused(tmp_path, role):
    other = Path(shutil.copytree(BUNDLED, tmp_path / "other"))
    (other / "chat_template.jinja").write_text(TEMPLATE.replace("['content']", ".content|trim"))
    folders = (other, BUNDLED) if role == "policy" else (BUNDLED, other)
    with pytest.raises(ModelError, match="turn conversations into different tokens"):
        ImplicitReward(*folders, beta=0.1)


def test_a_template_without_an_end_of_turn_is_refused(tmp_path):
    folder = Path(shutil.copytree(BUNDLED, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("<|eos|>", "<|system|>"))
    with pytest.raises(ModelError, match="no end-of-turn token"):
        ImplicitReward(folder, BUNDLED, beta=0.1)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [2, 5]}))
    assert ImplicitReward(folder, folder, beta=0.1).end_tokens == [2, 5]
