"""Answers become durable one by one: nothing is asked for twice, nothing is dropped in silence."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import time
import zlib

import polars as pl
import pytest

from flows.answering import answer_prompts
from flows.configuration import resolve
from flows.curation import generate_candidates, sample_prompts
from flows.stage_runner import RunContext, StageSpec, StageWriter
from lineage.journal import Journal
from lineage.workspace import Workspace
from stages.endpoint_settings import EndpointConfig
from stages.endpoints import EndpointPool
from stages.errors import DataError, EndpointError
from stages.generation import Answer, SampledCompletion, count_parts
from stages.generation_settings import TransformersGenerator, sampling_of
from stages.openai_engine import KnownModel, OpenAIEngine, OpenAISettings
from stages.tables import CANDIDATES
from tests.stages.rows import prompts as prompt_rows
from tests.stub_server import Stub

GENERATION = {
    "samples_per_prompt": 3,
    "heldout_samples_per_prompt": 2,
    "max_completion_tokens": 8,
    "prompts_per_part": 4,
    "maximum_missing_share": 0.1,
}
PROMPTS = prompt_rows(
    *(
        {
            "prompt_id": f"prompt_{i:02d}",
            "messages": [{"role": "user", "content": f"Say {i}"}],
            "split": "heldout" if i >= 10 else "train",
        }
        for i in range(14)
    )
)
PARTS = 4  # 10 train prompts in parts of 4, 4 and 2, then 4 held-out ones


class Scripted:
    """Answers in a random order, dies after so many answers, and gives some prompts no answer."""

    model_name, weights_hash, template_fingerprint = "scripted", "w", "t"
    context_tokens, control_tokens = None, frozenset({"<|end|>"})

    def __init__(self, *, dies_after=None, lost=None, error=EndpointError, samples=0):
        self.dies_after, self.lost, self.error = dies_after, lost or {}, error
        self.extra_samples, self.asked, self.answered = samples, [], []

    def count_prompt_tokens(self, conversations):
        return [len(turns[-1]["content"].split()) for turns in conversations]

    def answers(self, batches, sampling):
        requests = [request for batch in batches for request in batch]
        self.asked += [request.prompt_id for request in requests]
        random.Random(len(requests)).shuffle(requests)
        for request in requests:
            if len(self.answered) == self.dies_after:
                raise self.error("gone")
            self.answered.append(request.prompt_id)
            yield [Answer(request.prompt_id, list(self.samples(request)), 3, 0.5, 0.25)]

    def samples(self, request):
        """Yield the samples, the last so many of them missing."""
        count = request.samples + self.extra_samples
        for index in range(count):
            if index < count - self.lost.get(request.prompt_id, 0):
                yield SampledCompletion(f"{request.prompt_id} says {index} ä", "stop", 4)
            else:
                yield SampledCompletion(None, "error", 0, None, "fewer_choices")


class Fake:
    """A ready generator with this engine."""

    def __init__(self, engine, name="fake", **own):
        self.scripted, self.name = engine, name
        self.own = TransformersGenerator(**own)
        self.sampling = sampling_of(self.own, config_of().generation)

    def deciding(self):
        return {"fake": self.name, **self.sampling.deciding()}

    def check(self):
        """It can be used."""

    @contextlib.contextmanager
    def engine(self, workspace, budget):
        yield self.scripted


def config_of(prompts=None, **changes):
    sections = {"generation": {**GENERATION, **changes}, "prompts": prompts}
    return resolve({"name": "small", **sections}, "test")


def writer_in(folder):
    context = RunContext(Workspace(folder / "w"), "run")
    spec = StageSpec("generate", 1, {}, (), ("candidates",))
    return StageWriter(context, spec, lambda done, total: None)


def answered(folder, engine, prompts=PROMPTS, **changes):
    """Return the candidates that one start of the stage leaves."""
    writer = writer_in(folder)
    answer_prompts(writer, prompts, Fake(engine), config_of(**changes))
    return writer.read(writer.dataset("candidates"))


def committed(folder):
    return sorted(path.name for path in (folder / "w").rglob("part-*.parquet"))


def journals(folder):
    return list((folder / "w").rglob("*.jsonl"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return answered(tmp_path_factory.mktemp("undisturbed"), Scripted())


def test_answers_in_any_order_are_n_candidates_of_each_prompt(undisturbed, tmp_path):
    CANDIDATES.to_arrow(undisturbed)
    counts = dict(undisturbed.group_by("prompt_id").len().iter_rows())
    splits = dict(PROMPTS.select("prompt_id", "split").iter_rows())
    assert counts == {p: 3 if split == "train" else 2 for p, split in splits.items()}
    for row in undisturbed.iter_rows(named=True):
        assert row["completion"] == f"{row['prompt_id']} says {row['sample_index']} ä"
    assert answered(tmp_path, Scripted()).equals(undisturbed)
    assert committed(tmp_path) == [f"part-{i:05d}.parquet" for i in range(PARTS)]
    assert journals(tmp_path) == [], "everything is in part-files"


@pytest.mark.parametrize("error", [EndpointError, KeyboardInterrupt])
@pytest.mark.parametrize("dies_after", [0, 1, 7, 13])
def test_an_engine_that_dies_is_asked_only_for_what_it_did_not_answer(
    undisturbed, tmp_path, dies_after, error
):
    first = Scripted(dies_after=dies_after, error=error)
    with pytest.raises(error):
        answered(tmp_path, first)
    second = Scripted()
    assert answered(tmp_path, second).equals(undisturbed)
    assert len(first.answered) == dies_after
    assert sorted(first.answered + second.asked) == PROMPTS["prompt_id"].to_list()
    assert journals(tmp_path) == []


def test_one_that_dies_again_and_again_gets_there_in_the_end(undisturbed, tmp_path):
    asked = []
    for _ in range(6):
        engine = Scripted(dies_after=2)
        with pytest.raises(EndpointError):
            answered(tmp_path, engine)
        asked += engine.answered
    engine = Scripted()
    assert answered(tmp_path, engine).equals(undisturbed)
    assert sorted(asked + engine.asked) == PROMPTS["prompt_id"].to_list()


def test_a_finished_stage_asks_for_nothing(undisturbed, tmp_path):
    answered(tmp_path, Scripted())
    again = Scripted()
    assert answered(tmp_path, again).equals(undisturbed)
    assert again.asked == []


def test_a_part_that_is_whole_is_committed_before_the_stage_ends(tmp_path):
    class InOrder(Scripted):
        def answers(self, batches, sampling):
            batches = list(batches)
            for place, batch in enumerate(batches):
                deadline = time.monotonic() + 30
                while len(committed(tmp_path)) < place:
                    assert time.monotonic() < deadline
                    time.sleep(0.001)
                yield from super().answers([batch], sampling)

    answered(tmp_path, InOrder())


class Batched(Scripted):
    """Its answers' log-probabilities tell which prompts were asked together, as floats do."""

    def answers(self, batches, sampling):
        for batch in batches:
            for first in range(0, len(batch), 2):
                together = batch[first : first + 2]
                ids = "".join(request.prompt_id for request in together)
                logprob = -1.0 - zlib.crc32(ids.encode())
                self.asked += [request.prompt_id for request in together]
                yield [
                    Answer(r.prompt_id, [SampledCompletion("a", "stop", 4, logprob)] * r.samples, 3)
                    for r in together
                ]


@pytest.mark.parametrize("puts", range(1, 8))
def test_what_was_computed_together_is_kept_together(tmp_path, monkeypatch, puts):
    """Killed within any line of the journal, the next start gives the same numbers."""
    undisturbed = answered(tmp_path / "undisturbed", Batched())
    put, left = Journal.put, itertools.count(1)

    def killed_while_writing(self, entries):
        put(self, entries)
        if next(left) == puts:
            with self.path.open("r+b") as file:
                file.truncate(self.path.stat().st_size - 3)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "put", killed_while_writing)
        with pytest.raises(KeyboardInterrupt):
            answered(tmp_path / "killed", Batched())
    again = Batched()
    assert answered(tmp_path / "killed", again).equals(undisturbed)
    assert len(again.asked) == 14 - 2 * (puts - 1)


# --- what does not come


def test_few_missing_completions_are_recorded_with_their_reason(undisturbed, tmp_path):
    # 10 x 3 + 4 x 2 = 38 completions; 3 missing are less than a tenth
    lost = {"prompt_03": 1, "prompt_11": 2}
    made = answered(tmp_path, Scripted(lost=lost))
    CANDIDATES.to_arrow(made)
    assert made.height == 38
    missing = made.filter(pl.col("completion").is_null())
    columns = ("prompt_id", "sample_index", "finish_reason", "error")
    assert sorted(missing.select(columns).iter_rows()) == [
        ("prompt_03", 2, "error", "fewer_choices"),
        ("prompt_11", 0, "error", "fewer_choices"),
        ("prompt_11", 1, "error", "fewer_choices"),
    ]
    there = made.filter(pl.col("completion").is_not_null())
    assert there.join(undisturbed, on="candidate_id", how="semi").height == 35


def test_too_many_stop_the_stage_and_only_they_are_asked_for_again(undisturbed, tmp_path):
    lost = {"prompt_00": 3, "prompt_05": 1}  # 4 of 38
    with pytest.raises(EndpointError) as caught:
        answered(tmp_path, Scripted(lost=lost))
    assert "4 of 38 completions are missing: 4 fewer_choices" in str(caught.value)
    assert "share of 0.1" in caught.value.expected
    assert len(committed(tmp_path)) < PARTS
    again = Scripted()
    made = answered(tmp_path, again)
    assert sorted(again.asked) == ["prompt_00", "prompt_05"]
    # Of prompt_05 only the third sample was asked for: it is the second engine's first one.
    columns = ("prompt_id", "sample_index", "completion")
    (third,) = set(made.select(columns).rows()) - set(undisturbed.select(columns).rows())
    assert third == ("prompt_05", 2, "prompt_05 says 0 ä")
    of_05 = made.filter(prompt_id="prompt_05").select("latency_seconds", "cost").unique()
    assert of_05.rows() == [(1.0, pytest.approx(0.5 / 3))], "of both requests together"
    assert made.filter(pl.col("prompt_id") != "prompt_05").equals(
        undisturbed.filter(pl.col("prompt_id") != "prompt_05")
    )


class Wordless(Scripted):
    """Says nothing, but to the prompts that are named."""

    def __init__(self, *heard):
        super().__init__()
        self.heard = heard

    def samples(self, request):
        yield SampledCompletion(" \n", "length", 8, None, "empty_completion")
        yield SampledCompletion(None, "error", 0, None, "null_choice")
        word = "a word" if request.prompt_id in self.heard else ""
        yield SampledCompletion(word, "stop", 8)


MANY = prompt_rows(*({"prompt_id": f"prompt_{i:02d}", "split": "train"} for i in range(60)))


def test_first_answers_without_a_word_stop_the_stage(tmp_path):
    engine = Wordless()
    with pytest.raises(EndpointError) as stopped:
        answered(tmp_path, engine, MANY, maximum_missing_share=1.0)
    assert len(engine.answered) == 20
    assert str(stopped.value).startswith(
        "none of the first 20 prompts got a completion with a word in it: 40 empty_completion, "
        "20 null_choice. Expected text. Where: generator 'fake'. To mend it: raise `max_completion"
    )
    assert len(journals(tmp_path)) == 1, "what was paid for is kept"


def test_one_word_among_the_first_answers_goes_on(tmp_path):
    first = Wordless()
    with pytest.raises(EndpointError):
        answered(tmp_path / "in vain", first, MANY)
    engine = Wordless(first.answered[19])
    rows = answered(tmp_path / "heard", engine, MANY, maximum_missing_share=1.0)
    assert engine.answered[:20] == first.answered
    assert rows.height == 180
    assert rows.filter(completion="a word").height == 1


@pytest.mark.parametrize("per_part", [1, 100])
def test_what_is_left_after_a_stop_may_get_no_word(per_part, tmp_path):
    lost = {f"prompt_{i:02d}": 3 for i in range(30)}
    with pytest.raises(EndpointError, match="90 of 180 completions are missing"):
        answered(tmp_path, Scripted(lost=lost), MANY, prompts_per_part=per_part)
    again = Scripted(lost=lost)
    settings = {"prompts_per_part": per_part, "maximum_missing_share": 0.5}
    rows = answered(tmp_path, again, MANY, **settings)
    assert sorted(again.answered) == sorted(lost)
    assert rows["completion"].null_count() == 90


def test_the_share_may_be_raised_between_two_starts(tmp_path):
    lost = {"prompt_00": 3, "prompt_05": 1}
    with pytest.raises(EndpointError):
        answered(tmp_path, Scripted(lost=lost))
    made = answered(tmp_path, Scripted(lost=lost), maximum_missing_share=0.5)
    assert made["completion"].null_count() == 4


def test_requests_that_an_engine_passes_over_count_as_missing(tmp_path):
    class Forgetful(Scripted):
        def answers(self, batches, sampling):
            for (answer,) in super().answers(batches, sampling):
                if answer.prompt_id not in {"prompt_00", "prompt_01"}:
                    yield [answer]

    with pytest.raises(EndpointError, match="6 of 38 completions are missing: 6 not_answered"):
        answered(tmp_path, Forgetful())


@pytest.mark.parametrize("extra", [-1, 1])
def test_another_number_of_samples_stops_the_stage(undisturbed, tmp_path, extra):
    with pytest.raises(DataError, match=r"the engine returned \d completions"):
        answered(tmp_path, Scripted(samples=extra))
    assert committed(tmp_path) == []
    # The wrong answer is nowhere: an engine that is mended gets on.
    assert answered(tmp_path, Scripted()).equals(undisturbed)


def test_after_a_stop_a_prompt_is_asked_only_for_the_samples_that_it_lacks(tmp_path):
    """A real request: of 3 choices one is null, and no attempt is left for it."""
    bodies = []

    def respond(body):
        bodies.append(body)
        return f"{body['messages'][-1]['content']} {body['seed']}"

    def started(stub, **endpoint):
        config = EndpointConfig(base_urls=(stub.url,), attempts=1, **endpoint)
        with EndpointPool(config, backoff_seconds=0.001) as pool:
            engine = OpenAIEngine(pool, "stub-model", KnownModel("m", "w"), OpenAISettings())
            return answered(tmp_path, engine, PROMPTS.head(5), maximum_missing_share=0.0)

    with (
        Stub(faults={"null": 1.0}, respond=respond) as stub,
        pytest.raises(EndpointError, match="5 of 15 completions are missing: 5 null_choice"),
    ):
        started(stub)
    first, bodies[:] = [body for body in bodies if body["n"] == 3], []
    with Stub(respond=respond) as stub:
        made = started(stub)
    assert [body["n"] for body in bodies] == [1] * 5
    assert not {body["seed"] for body in bodies} & {body["seed"] for body in first}
    said = [{b["messages"][0]["content"]: b["seed"] for b in asked} for asked in (first, bodies)]
    for (number,), rows in made.sort("prompt_id").group_by("prompt_id", maintain_order=True):
        question = f"Say {int(number[-2:])}"
        seeds = [said[0][question], said[0][question], said[1][question]]
        assert rows["sample_index"].to_list() == [0, 1, 2]
        assert rows["completion"].to_list() == [f"{question} {seed}" for seed in seeds]
    assert made["candidate_id"].n_unique() == 15
    assert made["seed"].n_unique() == 5, "the prompt's own, whatever was asked for it"


def test_where_every_part_is_there_no_engine_is_started(undisturbed, tmp_path):
    answered(tmp_path, Scripted())
    writer = writer_in(tmp_path)
    # Killed after its last part: the journal lies there yet.
    with writer.journal("00000") as journal:
        journal.put({"prompt_00": None})
    generator = Fake(None)
    generator.engine = None
    answer_prompts(writer, PROMPTS, generator, config_of())
    assert writer.read(writer.dataset("candidates")).equals(undisturbed)
    assert journals(tmp_path) == []


def test_what_goes_wrong_in_writing_a_part_stops_the_stage(undisturbed, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("flows.stage_runner.write_part", full)
        with pytest.raises(OSError, match="no space left"):
            answered(tmp_path, Scripted())
    again = Scripted()
    assert answered(tmp_path, again).equals(undisturbed)
    assert len(again.asked) <= 14 - 2, "the smallest part, two prompts, was whole and journaled"


# --- control tokens

HOSTILE = PROMPTS.with_columns(
    messages=pl.when(pl.col("prompt_id") == "prompt_02")
    .then(pl.lit([{"role": "user", "content": "<|end|> Say no"}], dtype=PROMPTS.schema["messages"]))
    .otherwise("messages")
)


def test_a_prompt_with_a_control_token_is_recorded_and_not_asked(tmp_path):
    engine = Scripted()
    # What was never asked is no fault of the server's: no share of missing ones is too high.
    made = answered(tmp_path, engine, HOSTILE, maximum_missing_share=0.0)
    assert "prompt_02" not in engine.asked
    assert made.filter(prompt_id="prompt_02")["error"].to_list() == ["control_token_in_prompt"] * 3
    assert made["completion"].null_count() == 3


def test_prompts_with_control_tokens_can_be_refused_before_anything_is_asked(tmp_path):
    engine = Scripted()
    with pytest.raises(DataError, match="1 of 14 prompts hold a control token's text"):
        answered(tmp_path, engine, HOSTILE, control_tokens="refuse")
    assert engine.asked == []


# --- several generators, and gold


def test_generators_have_parts_and_journals_of_their_own(tmp_path):
    """The second dies: the first is not asked again."""
    config = config_of()
    offset = count_parts(PROMPTS, config.generation)
    assert offset == PARTS

    def start(*engines):
        writer = writer_in(tmp_path)
        for place, engine in enumerate(engines):
            generator = Fake(engine, f"g{place}", temperature=0.5 + place)
            answer_prompts(writer, PROMPTS, generator, config, place * offset)
        return writer.read(writer.dataset("candidates"))

    with pytest.raises(EndpointError):
        start(Scripted(), Scripted(dies_after=5))
    again = [Scripted(), Scripted()]
    made = start(*again)
    assert [len(engine.asked) for engine in again] == [0, 14 - 5]
    assert committed(tmp_path) == [f"part-{i:05d}.parquet" for i in range(2 * PARTS)]
    assert made["candidate_id"].n_unique() == made.height == 76
    by = made.group_by("generator", "temperature").len().sort("generator").rows()
    assert by == [("g0", 0.5, 38), ("g1", 1.5, 38)]


def test_the_stage_joins_all_generators_and_the_planted_gold(tmp_path, monkeypatch):
    from stages.gold import GoldConfig

    rows = [{"prompt": f"{i}?", "good": f"{i}", "damaged": "no"} for i in range(3)]
    path = tmp_path / "gold.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    bundled = {"kind": "bundled", "train": 6, "heldout": 5}
    gold = GoldConfig(path=path, share=0.5)
    config = config_of({"sources": [bundled], "gold": gold.model_dump(mode="json")})
    context = RunContext(Workspace(tmp_path / "w"), "run")
    context.workspace.require_writable()
    prompts = sample_prompts.fn(context, config)
    monkeypatch.setattr("flows.curation.require_usable", lambda *_: None)
    fakes = [Fake(Scripted(), "one"), Fake(Scripted(), "two", samples_per_prompt=1)]
    made = generate_candidates.fn(context, config, fakes, prompts).read(context.workspace)
    counts = dict(made.group_by("generator").len().iter_rows())
    # 6 train prompts with 3 and 1 samples, 5 held-out ones with 2; 3 gold prompts with 2 answers
    assert counts == {"one": 6 * 3 + 5 * 2, "two": 6 + 5 * 2, "gold": 6}
    planted = prompts.read(context.workspace).filter(split="gold")["prompt_id"].to_list()
    assert not set(planted) & set(fakes[0].scripted.asked + fakes[1].scripted.asked)
    assert set(made.filter(generator="gold")["prompt_id"]) == set(planted)
