"""The in-process engine on the bundled model: one prompt's answers depend on nothing else."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from stages.chat_template import control_tokens, render, template_fingerprint
from stages.content_ids import weights_hash
from stages.errors import ModelError
from stages.generation import Request
from stages.generation_settings import GenerationConfig, TransformersGenerator, sampling_of
from stages.task_families import FAMILIES, sample_prompts
from stages.transformers_engine import SeededSampling, TransformersEngine

pytestmark = pytest.mark.usefixtures("on_the_cpu")

BUNDLED = Path(__file__).parents[2] / "data" / "tiny-model"
SAMPLING = sampling_of(
    TransformersGenerator(), GenerationConfig(temperature=1.0, max_completion_tokens=24)
)
ALMOST_ONE = 1 - 2**-53  # the largest number below 1


def user(text):
    return [{"role": "user", "content": text}]


REQUESTS = [
    Request(f"prompt_{i}_{j}", user(task.prompt), 1000 * i + j, samples=2)
    for i, family in enumerate(FAMILIES)
    for j, task in enumerate(sample_prompts(family, "train", 5, seed=0))
][:24]


@pytest.fixture(scope="module")
def engine(on_the_cpu):
    return TransformersEngine(BUNDLED, threads=1)


@pytest.fixture(scope="module")
def together(engine):
    return answered(engine, REQUESTS)


@pytest.fixture
def folder(tmp_path):
    """A copy of the bundled model to change."""
    return Path(shutil.copytree(BUNDLED, tmp_path / "model"))


def asking(requests, samples):
    return [request._replace(samples=samples) for request in requests]


def answered(engine, requests, sampling=SAMPLING):
    """Return the samples of each request, all asked in one batch."""
    (answers,) = engine.answers([requests], sampling)
    assert [answer.prompt_id for answer in answers] == [request.prompt_id for request in requests]
    return [answer.samples for answer in answers]


def texts(answers):
    return [[(sample.text, sample.tokens) for sample in of_prompt] for of_prompt in answers]


def test_every_sample_is_whole(together):
    assert [len(of_prompt) for of_prompt in together] == [2] * len(REQUESTS)
    for sample in (sample for of_prompt in together for sample in of_prompt):
        assert sample.finish_reason in {"stop", "length"}
        assert 1 <= sample.tokens <= 24
        assert sample.finish_reason == "stop" or sample.tokens == 24
        assert sample.logprob_sum <= 0
        assert "<|" not in sample.text


def test_an_answer_is_the_same_alone_in_another_order_and_with_others(engine, together):
    backwards = answered(engine, REQUESTS[::-1])[::-1]
    some = answered(engine, REQUESTS[3:20:3])
    alone = [answer.samples for (answer,) in engine.answers([[r] for r in REQUESTS], SAMPLING)]
    assert texts(backwards) == texts(together)
    assert texts(some) == texts(together)[3:20:3]
    assert texts(alone) == texts(together)
    for one, other in zip(alone, together, strict=True):
        sums = [[sample.logprob_sum for sample in of] for of in (one, other)]
        assert sums[0] == pytest.approx(sums[1], abs=1e-3)


def test_more_samples_keep_the_first_ones(engine, together):
    more = answered(engine, asking(REQUESTS[:4], 3))
    assert [of_prompt[:2] for of_prompt in texts(more)] == texts(together)[:4]


def test_samples_differ_by_seed_and_index(engine):
    one = Request("prompt_0", user("Sort b, a."), seed=1, samples=4)
    requests = [one, one._replace(seed=2), one]
    first, second, again = answered(engine, requests, SAMPLING._replace(temperature=3.0))
    assert texts([first]) == texts([again])
    assert len({sample.text for sample in (*first, *second)}) == 8


def test_temperature_0_ignores_seeds(engine):
    greedy = SAMPLING._replace(temperature=0.0)
    one = answered(engine, REQUESTS[:4], greedy)
    other = answered(engine, [r._replace(seed=r.seed + 1) for r in REQUESTS[:4]], greedy)
    assert texts(one) == texts(other)
    assert all(first == second for first, second in one)


def test_greedy_answers_are_those_of_transformers_itself(engine):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    greedy = SAMPLING._replace(temperature=0.0, max_completion_tokens=16)
    found = answered(engine, asking(REQUESTS, 1), greedy)
    for request, (answer,) in zip(REQUESTS, found, strict=True):
        inputs = tokenizer.apply_chat_template(
            request.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        made = output[0, inputs["input_ids"].shape[1] :]
        assert answer.text == tokenizer.decode(made, skip_special_tokens=True)
        assert answer.tokens == len(made)


def with_sequences(engine, monkeypatch, requests, sampling=SAMPLING):
    """Return the engine's answers and the rows of token ids that the model made for them."""
    caught, generate = [], engine.model.generate

    def catching(**kwargs):
        caught.append((kwargs["input_ids"], generate(**kwargs)))
        return caught[0][1]

    monkeypatch.setattr(engine.model, "generate", catching)
    answers = [a for of_prompt in answered(engine, requests, sampling) for a in of_prompt]
    inputs, sequences = caught[0]
    return answers, sequences[:, inputs.shape[1] :].tolist()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.0, 1.0), (1.5, 0.8)])
def test_logprob_sum_is_that_of_a_forward_pass_at_temperature_1(
    engine, monkeypatch, temperature, top_p
):
    requests = REQUESTS[::4]
    sampling = SAMPLING._replace(temperature=temperature, top_p=top_p)
    answers, sequences = with_sequences(engine, monkeypatch, requests, sampling)
    prompts = render(engine.tokenizer, [r.messages for r in requests for _ in range(2)])
    for answer, prompt, sequence in zip(answers, prompts, sequences, strict=True):
        made = sequence[: answer.tokens]
        with torch.inference_mode():
            logits = engine.model(torch.tensor([prompt + made])).logits[0].double()
        logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
        expected = logprobs[range(len(made)), made].sum().item()
        assert answer.logprob_sum == pytest.approx(expected, abs=1e-3)


def test_tokens_count_the_end_of_turn_and_the_reason_says_whether_it_came(engine, monkeypatch):
    answers, sequences = with_sequences(engine, monkeypatch, REQUESTS)
    for answer, sequence in zip(answers, sequences, strict=True):
        ends = [place for place, token in enumerate(sequence) if token in engine.end_tokens]
        assert answer.tokens == (ends[0] + 1 if ends else 24)
        assert answer.finish_reason == ("stop" if ends else "length")
        made = engine.tokenizer.decode(sequence[: answer.tokens], skip_special_tokens=True)
        assert answer.text == made


def test_a_completion_that_reaches_the_limit_is_recorded_as_cut(engine):
    two = SAMPLING._replace(max_completion_tokens=2)
    answers = [answer for (answer,) in answered(engine, asking(REQUESTS, 1), two)]
    found = {(answer.finish_reason, answer.tokens) for answer in answers}
    assert found <= {("length", 2), ("stop", 1), ("stop", 2)}
    assert ("length", 2) in found


def test_what_names_the_model(engine):
    assert engine.model_name == "tiny-model"
    assert engine.weights_hash == weights_hash(BUNDLED)
    assert engine.template_fingerprint == template_fingerprint(engine.tokenizer)
    assert engine.control_tokens == control_tokens(engine.tokenizer)
    config = json.loads((BUNDLED / "config.json").read_text())
    assert engine.context_tokens == config["max_position_embeddings"]


def test_prompt_tokens_are_those_of_the_rendered_conversation(engine):
    conversations = [
        user("Hello?"),
        [*user("Add 1 + 2."), {"role": "assistant", "content": "3"}, *user("And 1 more?")],
    ]
    counts = engine.count_prompt_tokens(conversations)
    for turns, count in zip(conversations, counts, strict=True):
        ids = engine.tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        assert count == len(ids)
    assert counts[0] < counts[1]


def test_an_answer_says_how_long_its_prompt_was(engine):
    requests = asking(REQUESTS[:6], 1)
    counts = engine.count_prompt_tokens([request.messages for request in requests])
    (answers,) = engine.answers([requests], SAMPLING)
    assert [answer.prompt_tokens for answer in answers] == counts
    assert len(set(counts)) > 1, "padding is not counted"


def test_answers_come_batch_by_batch(engine):
    """What a batch made is there before the next one is begun: a kill loses one batch."""
    begun = []

    def batches():
        for place, batch in enumerate((REQUESTS[:2], REQUESTS[2:4])):
            begun.append(place)
            yield asking(batch, 1)

    answers = engine.answers(batches(), SAMPLING)
    assert [answer.prompt_id for answer in next(answers)] == [r.prompt_id for r in REQUESTS[:2]]
    assert begun == [0]
    (rest,) = answers
    assert [answer.prompt_id for answer in rest] == [r.prompt_id for r in REQUESTS[2:4]]


def test_the_engine_sets_its_threads_and_otherwise_leaves_torchs_own(engine):
    torch.set_num_threads(2)
    try:
        list(TransformersEngine(BUNDLED).answers([asking(REQUESTS[:1], 1)], SAMPLING))
        assert torch.get_num_threads() == 2
        list(engine.answers([asking(REQUESTS[:1], 1)], SAMPLING))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


# --- the choice of a token


def choices(probabilities, draws, temperature=1.0, top_p=1.0):
    """Return the token chosen for each draw from the same distribution, and its log-probability."""
    sampler = SeededSampling(
        torch.tensor(draws, dtype=torch.float64)[:, None], temperature, top_p, end_tokens=[99]
    )
    logits = torch.tensor(probabilities).log().expand(len(draws), -1).clone()
    left = sampler(torch.zeros(len(draws), 1, dtype=torch.long), logits)
    assert (left.isfinite().sum(dim=1) == 1).all(), "only the choice stays possible"
    return left.argmax(dim=1).tolist(), sampler.logprob_sum.tolist()


GRID = [(i + 0.5) / 1000 for i in range(1000)]  # evenly spread: shares are exact to 1/1000


@pytest.mark.parametrize(
    ("probabilities", "temperature", "top_p", "shares"),
    [
        ([0.5, 0.3, 0.2], 1.0, 1.0, [0.5, 0.3, 0.2]),
        ([0.2, 0.0, 0.8], 1.0, 1.0, [0.2, 0.0, 0.8]),
        # temperature 2 takes square roots: 0.8 and 0.6 of 1.4
        ([0.64, 0.36], 2.0, 1.0, [4 / 7, 3 / 7]),
        # temperature 1/2 squares: 0.25, 0.09 and 0.04 of 0.38
        ([0.5, 0.3, 0.2], 0.5, 1.0, [25 / 38, 9 / 38, 4 / 38]),
        # the nucleus is the fewest likely tokens that reach top_p: 0.5 and 0.3 of 0.8
        ([0.3, 0.2, 0.5], 1.0, 0.6, [3 / 8, 0.0, 5 / 8]),
        ([0.3, 0.2, 0.5], 1.0, 0.4, [0.0, 0.0, 1.0]),
        ([0.3, 0.2, 0.5], 1.0, 0.81, [0.3, 0.2, 0.5]),
        ([0.1, 0.2, 0.7], 1.0, 1e-9, [0.0, 0.0, 1.0]),
        # temperature comes before the nucleus: [0.8, 0.6] / 1.4 gives 0.571 < 0.6
        ([0.64, 0.36], 2.0, 0.6, [4 / 7, 3 / 7]),
    ],
)
def test_tokens_are_chosen_as_often_as_their_probability_says(
    probabilities, temperature, top_p, shares
):
    chosen, logprobs = choices(probabilities, GRID, temperature, top_p)
    found = [chosen.count(token) / 1000 for token in range(len(probabilities))]
    assert found == pytest.approx(shares, abs=0.0011)
    for token, logprob in zip(chosen, logprobs, strict=True):
        expected = torch.tensor(probabilities[token]).log().item()
        assert logprob == pytest.approx(expected, abs=1e-6), "always at temperature 1"


@pytest.mark.parametrize("top_p", [1.0, 0.7])
@pytest.mark.parametrize("places", range(2, 60, 7))
def test_a_token_of_probability_0_is_never_chosen(top_p, places):
    # First and last are impossible; thirds and the like make sums that are not exactly 1.
    probabilities = [0.0, *[1 / places] * places, 0.0, 0.0]
    chosen, _ = choices(probabilities, [0.0, 2**-53, 0.5, 1 - 2**-52, ALMOST_ONE], 1.0, top_p)
    assert all(1 <= token <= places for token in chosen)


def test_temperature_0_takes_the_likeliest_for_every_draw():
    assert choices([0.3, 0.2, 0.5], [0.0, 0.5, ALMOST_ONE], temperature=0)[0] == [2, 2, 2]


def test_log_probabilities_add_up_until_the_end_token_and_no_further():
    draws = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.9]], dtype=torch.float64)
    sampler = SeededSampling(draws, 1.0, 1.0, end_tokens=[1])
    for _ in range(3):
        sampler(torch.zeros(2, 1, dtype=torch.long), torch.tensor([[0.75, 0.25]] * 2).log())
    # Row 0 ends at once with token 1 (0.25); row 1 takes token 0 (0.75), then ends.
    expected = [torch.tensor(p).log().item() for p in (0.25, 0.75 * 0.25)]
    assert sampler.logprob_sum.tolist() == pytest.approx(expected, abs=1e-6)


# --- models that cannot be used, or that want to have a say


def test_a_models_own_generation_settings_have_no_say(engine, folder):
    path = folder / "generation_config.json"
    own = json.loads(path.read_text())
    own |= {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "suppress_tokens": [10, 11, 12]}
    path.write_text(json.dumps(own | {"max_length": 3, "top_k": 1}))
    biased = TransformersEngine(folder)
    assert answered(biased, REQUESTS) == answered(engine, REQUESTS)


def test_a_models_own_end_tokens_end_a_completion(engine, folder):
    one = asking(REQUESTS[:1], 1)
    ((answer,),) = answered(engine, one)
    first = engine.tokenizer(answer.text, add_special_tokens=False)["input_ids"][0]
    path = folder / "generation_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "eos_token_id": [*engine.end_tokens, first]})
    )
    ((ended,),) = answered(TransformersEngine(folder), one)
    assert (ended.finish_reason, ended.tokens) == ("stop", 1)


def test_special_tokens_are_not_doubled(folder):
    """A tokenizer that adds a BOS by itself, and a template that has one."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos = tokenizer.token_to_id("<|bos|>")
    tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", bos)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    template = folder / "chat_template.jinja"
    template.write_text("<|bos|>" + template.read_text())
    changed = TransformersEngine(folder)
    assert changed.tokenizer("Hello?")["input_ids"].count(bos) == 1, "it adds one by itself"
    (ids,) = render(changed.tokenizer, [user("Hello?")])
    assert ids.count(bos) == 1
    assert ids[0] == bos


def broken_model(folder, how):
    weights = folder / "model.safetensors"
    if how == "no folder":
        return folder / "nowhere"
    if how == "no weights":
        weights.unlink()
    elif how == "cut weights":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif how == "junk weights":
        weights.write_bytes(b"junk")
    elif how == "broken config":
        (folder / "config.json").write_text("{")
    elif how == "unknown type":
        (folder / "config.json").write_text('{"model_type": "abacus"}')
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "broken tokenizer":
        (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    elif how == "other shape":
        config = json.loads((folder / "config.json").read_text())
        config["intermediate_size"] += 1
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "how",
    [
        "no folder",
        "no weights",
        "cut weights",
        "junk weights",
        "broken config",
        "unknown type",
        "no tokenizer",
        "broken tokenizer",
        "other shape",
    ],
)
def test_a_broken_folder_is_named(folder, how):
    path = broken_model(folder, how)
    with pytest.raises(ModelError, match=r"the (model|tokenizer) cannot be loaded: ") as caught:
        TransformersEngine(path)
    assert caught.value.where == str(path)


def test_weights_that_are_not_there_are_not_made_up(folder):
    """transformers would draw them at random and only warn."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    lost = min(name for name in weights if "layers.1.mlp" in name)
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"the weights lack {lost}"):
        TransformersEngine(folder)


def test_a_tokenizer_without_a_chat_template_is_refused(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        TransformersEngine(folder)


def test_a_conversation_that_the_template_refuses_is_an_error_of_the_models(folder):
    template = folder / "chat_template.jinja"
    refusing = "{% if messages|length > 2 %}{{ raise_exception('too many turns') }}{% endif %}"
    template.write_text(refusing + template.read_text())
    long = [*user("Hello?"), {"role": "assistant", "content": "Hi."}, *user("Bye.")]
    with pytest.raises(ModelError, match="refuses a conversation: too many turns"):
        TransformersEngine(folder).count_prompt_tokens([user("Hello?"), long])
