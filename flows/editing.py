"""Edited answers: the best ones edited by a model or by people, then judged like any other."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flows import scorers
from flows.answering import FirstWords, journaled, require_few_missing
from flows.generators import ReadyGenerator, ready_generators
from flows.progress import say
from flows.reference_answers import token_counter
from flows.run_outputs import require_stored
from flows.shards import groups
from flows.spending import budget_of
from flows.stage_runner import RunContext, StageSpec, StageWriter, run_stage
from flows.stage_task import stage_task
from lineage.extended import Extended, each_part, extended
from lineage.workspace import existing_part
from stages import edits, generation, scoring
from stages.chat_template import find_control_tokens
from stages.content_ids import content_hash, file_sha256
from stages.edit_prompts import edit_messages, load_instruction
from stages.edits import EditedBy, ModelEditor, PeopleEditor
from stages.errors import ConfigError
from stages.generation import Answer, Request, SampledCompletion
from stages.judges import is_pairwise
from stages.tables import CANDIDATES, EDITS, GOLD_SPLIT, JUDGMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import polars as pl

    from flows.configuration import PipelineConfig
    from flows.models import Policy
    from lineage.journal import Journal
    from lineage.workspace import Dataset
    from stages.edit_prompts import EditInstruction
    from stages.generation import Engine
    from stages.scoring import Scorer, ScoringConfig

    Edit = Callable[[pl.DataFrame], tuple[EditedBy, dict[str, Answer]]]
    """From answers to be edited, with prompts, to who edited them and what came."""


def ready_editor(config: PipelineConfig, policy: Policy) -> ReadyGenerator:
    """Return the model that edits, found; nothing is loaded or asked.

    Raises:
        ConfigError: it is served and names no endpoint.
        MissingFileError: it is neither a folder nor on the hub.
    """
    assert isinstance(config.edits, ModelEditor)
    only = config.generation.model_copy(update={"generators": (config.edits.generator,)})
    return ready_generators(config.model_copy(update={"generation": only}), policy)[0]


def require_editable(config: PipelineConfig, policy: Policy) -> None:
    """Return if answers can be edited as the configuration says, as far as that is known.

    Raises:
        ConfigError: a scorer that chooses only compares answers: it has no score for an edit alone.
        PrefmillError: the instruction, the file or the model can't be used.
    """
    for judge in _choosing(config).judges:
        if is_pairwise(judge):
            raise ConfigError(
                f"scorer {judge.name!r} compares answers with each other, and an edited answer is "
                "judged by itself",
                expected="a scorer that rates single answers",
                where=f"pairing.scorer, with pairing.strategy {config.pairing.strategy}",
                remedy="name rules, a reward model or a pointwise judge",
            )
    if isinstance(config.edits, PeopleEditor):
        edits.read_edits(config.edits)
    elif config.edits is not None:
        load_instruction(config.edits.instruction)
        ready_editor(config, policy).check()


def _choosing(config: PipelineConfig) -> ScoringConfig:
    """Return the scorers that have a say in which answer is edited, juries with their members."""
    named = (*config.pairing.deciding_scorers, *config.pairing.agreeing_scorers)
    kept = {s.name for name in named for s in config.scoring.needed_for(name).scorers}
    of_those = tuple(scorer for scorer in config.scoring.scorers if scorer.name in kept)
    return config.scoring.model_copy(update={"scorers": of_those})


def edit_spec(
    config: PipelineConfig,
    policy: Policy,
    prompts: Dataset,
    candidates: Dataset,
    judgments: dict[str, Dataset],
) -> StageSpec:
    """Return what decides the edits: the editor, and what chooses the answers to be edited."""
    choosing, editor = _choosing(config), config.edits
    if isinstance(editor, PeopleEditor):
        by: dict[str, Any] = {"people": file_sha256(editor.path)}
    else:
        assert editor is not None
        told = load_instruction(editor.instruction).hash
        by = {**ready_editor(config, policy).deciding(), "instruction": told}
    settings = {
        "editor": by,
        "pairing": config.pairing.before_edits.deciding(),
        "juries": [jury.deciding() for jury in choosing.juries],
    }
    verdicts = [judgments[scorer.name] for scorer in choosing.judges]
    inputs = (prompts, candidates, *verdicts)
    return StageSpec("edit", edits.VERSION, settings, inputs, ("candidates", "edits"))


@stage_task(name="edit")
def edit_candidates(
    context: RunContext,
    config: PipelineConfig,
    policy: Policy,
    prompts: Dataset,
    candidates: Dataset,
    judgments: dict[str, Dataset],
) -> tuple[Dataset, Dataset]:
    """Have the best answers edited; return `candidates` and `edits`, part i about group i.

    What a killed run paid for is kept.
    """
    spec = edit_spec(config, policy, prompts, candidates, judgments)
    choosing = _choosing(config)

    def make(writer: StageWriter) -> None:
        import polars as pl

        asked = writer.read(prompts, ["prompt_id", "messages", "split"])
        count_tokens, judged = token_counter(policy), groups(writer.workspace, candidates)
        people = _of_people(writer, config, candidates)
        edited = None if people is None else people["candidate_id"]
        with _opened(writer, config, policy, asked, people) as edit:
            for index, group in enumerate(judged):
                if writer.existing("edits", index) is not None:
                    writer.existing("candidates", index)  # written before
                    continue
                answers = group.frame.collect()
                said = (judgments[scorer.name].part(index) for scorer in choosing.judges)
                verdicts = pl.concat(map(writer.read, said))
                scores = scoring.scores(verdicts, answers, choosing)
                targets = edits.to_edit(answers, scores, config.pairing, edited)
                texts = answers.select(edited_candidate_id="candidate_id", completion="completion")
                targets = targets.join(texts, on="edited_candidate_id", maintain_order="left")
                made, links = CANDIDATES.empty(), EDITS.empty()
                if targets.height:
                    editor, came = edit(targets.join(asked, on="prompt_id", maintain_order="left"))
                    made, links = edits.edited_rows(targets, came, editor, count_tokens)
                writer.write("candidates", made, index)
                writer.write("edits", links, index)
                writer.advance(index + 1, len(judged))
        if people is not None:
            _say_unused(people.height, writer.dataset("edits").rows)

    record = run_stage(context, "edit", spec, make)
    return record.output("candidates"), record.output("edits")


def _of_people(
    writer: StageWriter, config: PipelineConfig, candidates: Dataset
) -> pl.DataFrame | None:
    """Return what people edited; None: a model edits.

    Raises:
        DataError: one is not there, and it is refused.
    """
    if not isinstance(config.edits, PeopleEditor):
        return None
    found = edits.read_edits(config.edits)
    known = writer.read(candidates, ["candidate_id"]).to_series()
    if warning := edits.unknown_edits(found, known, config.edits):
        say(warning)
    return found


def _say_unused(given: int, used: int) -> None:
    if left := given - used:
        say(
            f"{left} of {given} edits are not used: "
            "their answer is not here, or not scored above its prompt's worst"
        )


@contextlib.contextmanager
def _opened(
    writer: StageWriter,
    config: PipelineConfig,
    policy: Policy,
    prompts: pl.DataFrame,
    people: pl.DataFrame | None,
) -> Iterator[Edit]:
    """Yield the editor; a model is loaded, or its server reached, for the first answer."""
    if people is not None:
        yield functools.partial(_edited_by_people, dict(people.iter_rows()))
        return
    assert isinstance(config.edits, ModelEditor)
    ready, told = ready_editor(config, policy), load_instruction(config.edits.instruction)
    budget = budget_of(writer.context, config.budget)
    share = config.generation.maximum_missing_share
    most = share * prompts.filter(prompts["split"] != GOLD_SPLIT).height
    with contextlib.ExitStack() as stack, writer.journal("edits") as journal:
        opened = ready.engine(writer.workspace, budget)
        engine = functools.cache(functools.partial(stack.enter_context, opened))
        heard = existing_part(writer.workspace, EDITS, writer.spec.key, 0) is not None
        words = FirstWords(f"edits.generator {ready.name!r}", heard=heard)
        yield _ModelEdits(engine, ready, told, journal, words, most)
        journal.remove()


def _edited_by_people(
    texts: dict[str, str], targets: pl.DataFrame
) -> tuple[EditedBy, dict[str, Answer]]:
    came = {
        one: Answer(one, [SampledCompletion(texts[one], "stop", 0)])
        for one in targets["edited_candidate_id"]
    }
    return EditedBy("edit:people", "people", "people"), came


@dataclass
class _ModelEdits:
    """A model's edits: each in the journal the moment it is there."""

    engine: Callable[[], Engine]
    ready: ReadyGenerator
    instruction: EditInstruction
    journal: Journal
    first_words: FirstWords
    most_missing: float
    """Requests that may fail, over all answers."""
    failed: Counter[str] = field(default_factory=Counter)

    def __call__(self, targets: pl.DataFrame) -> tuple[EditedBy, dict[str, Answer]]:
        """Return who edits and an answer for each of ``targets``.

        Raises:
            EndpointError: the servers are gone, too many requests failed, or the first edits have
                no word.
            BudgetError: the budget is spent.
        """
        sampling = self.ready.sampling._replace(samples=1, heldout_samples=1)
        requests = [self._request(row, sampling.seed) for row in targets.iter_rows(named=True)]
        answers = journaled(self.journal, requests)
        self.first_words.heard_in(answers.values())
        unasked = [request for request in requests if request.prompt_id not in answers]
        if unasked:
            refused = self._refused(unasked)
            answers |= refused
            open_requests = [each for each in unasked if each.prompt_id not in refused]
            for together in self.engine().answers([open_requests], sampling):
                answers |= {answer.prompt_id: answer for answer in together}
                self.failed.update(a.samples[0].error or "unknown" for a in together if a.missing)
                self.journal.put({a.prompt_id: a for a in together if not a.missing})
                self.first_words.require(together)
            require_few_missing(
                self.failed,
                self.most_missing,
                f"{self.failed.total()} edits are missing",
                f"at most {self.most_missing:g}, generation.maximum_missing_share of the prompts",
                f"edits.generator {self.ready.name!r}",
            )
            # They are committed so, in two tables: after a kill between them they are no others.
            self.journal.put({key: answer for key, answer in answers.items() if answer.missing})
        self.journal.forget([request.prompt_id for request in requests])
        return self._editor(), answers

    def _request(self, row: dict[str, Any], seed: int) -> Request:
        messages = edit_messages(self.instruction, row["messages"], row["completion"])
        own = row["edited_candidate_id"]
        return Request(own, messages, generation.prompt_seed(seed, own), 1)

    def _refused(self, requests: list[Request]) -> dict[str, Answer]:
        """Return missing answers of what is not asked: it could fake turns, or is too long."""
        engine, limit = self.engine(), self.ready.sampling.max_completion_tokens
        conversations = [request.messages for request in requests]
        texts = ["\n".join(turn["content"] for turn in turns) for turns in conversations]
        found = find_control_tokens(texts, engine.control_tokens)
        counts = engine.count_prompt_tokens(conversations) or [0] * len(requests)
        room = float("inf") if engine.context_tokens is None else engine.context_tokens - limit
        why = [
            "control_token_in_text" if token else "too_long" if count > room else None
            for token, count in zip(found, counts, strict=True)
        ]
        return {
            request.prompt_id: Answer(
                request.prompt_id, [SampledCompletion(None, "error", 0, error=reason)]
            )
            for request, reason in zip(requests, why, strict=True)
            if reason
        }

    def _editor(self) -> EditedBy:
        engine, sampling = self.engine(), self.ready.sampling
        weights, told = engine.weights_hash, self.instruction.hash
        by = content_hash([generation.generator_hash(weights, sampling), told])
        return EditedBy(
            f"edit:{self.ready.name}",
            by,
            engine.model_name,
            sampling.temperature,
            sampling.top_p,
            sampling.max_completion_tokens,
            engine.template_fingerprint,
            told,
            sampling.seed,
        )


def edited(
    context: RunContext,
    config: PipelineConfig,
    policy: Policy,
    sampled: tuple[Dataset, Dataset],
    judgments: dict[str, Dataset],
    *,
    stored_only: bool,
) -> tuple[Dataset, dict[str, Dataset], Dataset]:
    """Return candidates and judgments with the edited answers among them, and the `edits`.

    ``sampled`` are the prompts and their candidates. With ``stored_only`` no model edits.

    Raises:
        DataError: (``stored_only``) a model would have to edit.
    """
    prompts, candidates = sampled
    if stored_only and isinstance(config.edits, ModelEditor):
        require_stored(context, edit_spec(config, policy, prompts, candidates, judgments))
    made, links = edit_candidates(context, config, policy, prompts, candidates, judgments)
    whole = extended(candidates, made)
    said: dict[str, Dataset] = {
        scorer.name: extended(
            judgments[scorer.name], judge_edits(context, config, scorer, policy, prompts, whole)
        )
        for scorer in config.scoring.judges
    }
    return whole, said, links


@stage_task(name="judge_edits")
def judge_edits(
    context: RunContext,
    config: PipelineConfig,
    scorer: Scorer,
    policy: Policy,
    prompts: Dataset,
    candidates: Extended,
) -> Dataset:
    """Have one scorer judge the edited answers, which ``candidates`` are extended by."""
    settings, edited = scorers.deciding(scorer, policy), candidates.added
    spec = StageSpec("judge", scoring.VERSION, settings, (prompts, edited), ("judgments",))

    def make(writer: StageWriter) -> None:
        asked, budget = writer.read(prompts), budget_of(context, config.budget)
        parts = each_part(writer.workspace, edited)
        with scorers.opened(scorer, writer, policy, budget, candidates) as judge:
            for index, part in enumerate(parts):
                if writer.existing("judgments", index) is None:
                    made = judge(part.frame.collect(), asked) if part.rows else JUDGMENTS.empty()
                    writer.write("judgments", made, index)
                writer.advance(index + 1, len(parts))

    return run_stage(context, f"judge_edits:{scorer.name}", spec, make).output("judgments")
