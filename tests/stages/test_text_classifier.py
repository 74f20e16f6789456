"""Probabilities of labels, against the model's own outputs text by text."""

from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import ConfigError
from stages.text_classifier import TextClassifier

pytestmark = pytest.mark.usefixtures("on_the_cpu")

BUNDLED = Path(__file__).parents[2] / "data" / "tiny-model"
TEXTS = ["", "You are kind.", "You are an idiot, and so is he!", "1 2 3 " * 12, "x"]
NAMES = {0: "kind", 1: "toxic", 2: "threat"}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(on_the_cpu, tmp_path_factory):
    """Return a random BERT with three labels that reads 64 tokens; it has no chat template."""
    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        vocab_size=1017,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.5,
        num_labels=3,
        id2label=NAMES,
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return TextClassifier(folder, ["toxic", "threat"], batch_tokens=100)


def conversations(texts):
    asked = [{"role": "user", "content": "Hi"}]
    return [[*asked, {"role": "assistant", "content": text}] for text in texts]


def scores(model, texts):
    outcomes = model.score(conversations(texts))
    assert all(0 <= outcome.score <= 1 for outcome in outcomes if outcome.error is None)
    return [outcome.score for outcome in outcomes]


def logits(model, ids):
    with torch.inference_mode():
        return model.model(torch.tensor([ids])).logits[0].double()


def ids_of(model, text):
    return model.tokenizer(text)["input_ids"]


def test_labels_that_exclude_each_other_add_up(model):
    read = TEXTS[1:3]
    expected = [logits(model, ids_of(model, t)).softmax(-1)[[1, 2]].sum().item() for t in read]
    assert scores(model, read) == pytest.approx(expected, abs=TOLERANCE)
    assert abs(expected[0] - expected[1]) > 0.01


def test_of_labels_that_do_not_the_likeliest_counts(folder):
    model = TextClassifier(folder, ["toxic", "threat"], multi_label=True)
    read = TEXTS[1:3]
    expected = [logits(model, ids_of(model, t))[[1, 2]].sigmoid().max().item() for t in read]
    assert scores(model, read) == pytest.approx(expected, abs=TOLERANCE)
    config = folder / "config.json"
    said = config.read_text()
    try:
        config.write_text(said.replace("{", '{"problem_type": "multi_label_classification",', 1))
        assert TextClassifier(folder, ["toxic"]).multi_label
        assert not TextClassifier(folder, ["toxic"], multi_label=False).multi_label
    finally:
        config.write_text(said)


def test_of_a_long_text_the_highest_window_counts(model):
    text = "".join(f"{n} is a number. " for n in range(40))
    ids = ids_of(model, text)
    windows = [ids[start : start + 64] for start in range(0, len(ids) - 16, 64 - 16)]
    assert len(windows) > 2
    assert windows[-1][-1] == ids[-1]
    probabilities = [logits(model, w).softmax(-1)[[1, 2]].sum().item() for w in windows]
    assert max(probabilities) > probabilities[0] + 0.01
    (outcome,) = model.score(conversations([text]))
    assert outcome.score == pytest.approx(max(probabilities), abs=TOLERANCE)
    assert outcome.tokens == sum(map(len, windows))


@settings(max_examples=15)
@given(places=st.lists(st.integers(0, len(TEXTS) - 1), max_size=8), budget=st.integers(1, 500))
def test_it_does_not_depend_on_what_shares_the_batch(model, places, budget):
    alone = [scores(model, [text])[0] for text in TEXTS]
    model.batch_tokens = budget
    found = scores(model, [TEXTS[place] for place in places])
    assert found == pytest.approx([alone[place] for place in places], abs=TOLERANCE)


def test_an_unknown_label_is_named_with_those_there_are(folder):
    with pytest.raises(
        ConfigError, match="'toxicity' is not one of the model's 3; nearest"
    ) as said:
        TextClassifier(folder, ["threat", "toxicity"])
    assert "one of 'kind', 'toxic', 'threat'" in str(said.value)
    assert "set `labels` of the scorer" in str(said.value)
