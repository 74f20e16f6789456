"""The configuration of a whole pipeline: one YAML file, composed of the stages' own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic

from flows.spending import BudgetConfig
from stages.configuration import OPERATIONAL, Config
from stages.edits import Editor, ModelEditor
from stages.errors import ConfigError, MissingFileError, nearest
from stages.export import ExportConfig
from stages.export_formats import UNPAIRED
from stages.filter_settings import FilteringConfig
from stages.generation_settings import GenerationConfig
from stages.noise_voters import NoiseConfig, why_no_noise
from stages.pairing import PairingConfig
from stages.prompt_sampling import PromptSamplingConfig
from stages.scoring import RulesScorer, ScoringConfig
from stages.yaml_files import read_yaml_file
from trainer.capabilities import CardConfig
from trainer.dpo_settings import DPOTrainingConfig
from trainer.evaluation import METRICS
from trainer.gate import GateConfig
from validators.drift import ValidationConfig

BUNDLED_MODEL = Path(__file__).parent.parent / "data" / "tiny-model"

ShortName = Annotated[str, pydantic.Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")]

SEEDED_SECTIONS = ("prompts", "generation", "pairing", "noise", "training", "evaluation")


def _near_or_known(name: str, known: list[str]) -> str:
    """Return the end of a sentence about an unknown ``name``: the nearest known, else all."""
    return nearest(name, known) or f"; known: {', '.join(known)}"


class EvaluationConfig(Config):
    """How a policy is compared before and after training, on the held-out prompts.

    Sampled answers use the generation's own settings and `heldout_samples_per_prompt`.
    """

    scorer: str | None = None
    """The scorer that compares; null is `pairing.scorer`, which taught the policy what it likes. A
    pairwise judge is shown both policies' answers."""
    greedy: bool = True
    """Also compare one greedy answer per prompt."""
    kl_samples_per_prompt: pydantic.NonNegativeInt = 1
    """Sampled answers per prompt that both policies read to measure the KL divergence; 0: none."""
    texts: Path | None = None
    """A file of conversations (`messages`) that the assistant ends: both policies read them, to see
    what training forgot."""
    card: CardConfig | None = None
    """The capability card: what else the policies can do, before and after; null: none."""
    resamples: Annotated[int, pydantic.Field(ge=100)] = 2000
    """Bootstrap resamples over prompts."""
    seed: int = 0
    """Of the bootstrap."""


class MixConfig(Config):
    """Which pairs of earlier rounds a round is trained on as well (docs/rounds.md)."""

    share: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.25
    """Of the pairs trained on; less where the earlier rounds have fewer."""
    rounds: pydantic.PositiveInt = 2
    """How many rounds back."""


class PipelineConfig(Config):
    """Everything that decides what a run makes."""

    name: ShortName
    """Short name: starts the run ids and names the promoted policy."""
    seed: int = 0
    """The seed of every section that names none itself."""
    policy: str = "bundled"
    """The model that generates and is trained: a folder, a hub id, or `bundled`."""
    start_from: Annotated[Literal["policy", "promoted"], OPERATIONAL] = "policy"
    """`promoted`: start from the model that was promoted last under this `name`, and after the
    rounds that there were; `policy` until there is one. What a run stores names the folder."""
    reference: Literal["policy", "initial", "moving_average"] = "policy"
    """DPO's frozen reference: each round's own starting policy, the series' first one, or the
    moving average of those promoted since (TR-DPO)."""
    moving_average_rate: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None
    """Weight of a newly promoted policy in the reference's moving average; null is 0.5."""
    rounds: pydantic.PositiveInt = 1
    """On-policy rounds: each starts from the policy that the last one's gate promoted."""
    stop_after_held: Annotated[pydantic.PositiveInt | None, OPERATIONAL] = 2
    """End a series when the gate has held so many rounds in a row; null: never."""
    mix_earlier_rounds: MixConfig | None = None
    """Train a round on pairs of earlier rounds too; null: on its own alone."""
    earlier_rounds: Annotated[tuple[str, ...], OPERATIONAL] = ()
    """The series' runs before this one: what they trained on is passed over, and may be mixed in.
    Filled in when a round starts, as the next two are."""
    initial_policy: Annotated[str | None, OPERATIONAL] = None
    """The series' first policy; null is `policy`."""
    average_policy: Annotated[str | None, OPERATIONAL] = None
    """The moving average so far; null is `policy`."""
    training_devices: Annotated[tuple[pydantic.NonNegativeInt, ...], OPERATIONAL] = ()
    """GPUs that this process may use. A vLLM server whose `devices` are others keeps running
    beside it; empty: all, and servers stop while a policy is trained."""
    prompts: PromptSamplingConfig = PromptSamplingConfig()
    generation: GenerationConfig = GenerationConfig()
    scoring: ScoringConfig = ScoringConfig()
    edits: Editor | None = None
    """Who edits the best answers, for `edited_over_chosen_over_rejected`; null: nobody."""
    pairing: PairingConfig = PairingConfig()
    noise: NoiseConfig = NoiseConfig()
    filters: FilteringConfig = FilteringConfig()
    validation: ValidationConfig = ValidationConfig()
    export: ExportConfig = ExportConfig()
    training: DPOTrainingConfig = DPOTrainingConfig()
    budget: Annotated[BudgetConfig, OPERATIONAL] = BudgetConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()

    @property
    def evaluating_scorer(self) -> str:
        """The scorer that compares policies."""
        return self.evaluation.scorer or self.pairing.scorer

    @property
    def tells_success(self) -> bool:
        """Whether verifiers compare the policies: they alone say that an answer succeeds."""
        of_rules = {s.name for s in self.scoring.scorers if isinstance(s, RulesScorer)}
        return self.evaluating_scorer in of_rules

    @property
    def asked_filters(self) -> FilteringConfig:
        """The filters, with the one on edited answers where there are some and it isn't set."""
        if not self.pairing.needs_edits or self.filters.edit_scored_worse is not None:
            return self.filters
        return self.filters.model_copy(update={"edit_scored_worse": True})

    @pydantic.model_validator(mode="after")
    def _edited_by_somebody(self) -> Self:
        if self.pairing.needs_edits != (self.edits is not None):
            raise ValueError(
                "`pairing.strategy: edited_over_chosen_over_rejected` asks for `edits`, who edits "
                "the answers, and `edits` is read with no other strategy: set both or none"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _reads_what_is_set(self) -> Self:
        if self.moving_average_rate is not None and self.reference != "moving_average":
            raise ValueError(
                f"`moving_average_rate` is not read with `reference: {self.reference}`: "
                "set `reference: moving_average`, or leave it out"
            )
        if self.mix_earlier_rounds and UNPAIRED in self.export.formats:
            raise ValueError(
                f"`mix_earlier_rounds` mixes pairs, and `export.formats` has {UNPAIRED!r}: "
                "leave one of them out"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _prices_what_it_limits(self) -> Self:
        if self.budget.max_cost is None:
            return self
        asked: list[Any] = [*self.generation.generators, *self.scoring.scorers]
        if isinstance(self.edits, ModelEditor):
            asked.append(self.edits.generator)
        prices = [one.prices for one in asked if getattr(one, "prices", None)]
        unpriced = [
            one.name or one.model
            for one in asked
            if hasattr(one, "prices") and one.prices is None and one.endpoint.has_key
        ]
        if unpriced or not prices:
            of_whom = ", ".join(map(repr, unpriced)) or "any endpoint"
            raise ValueError(
                f"`budget.max_cost` counts nothing, as no `prices` are set, of {of_whom}: "
                "set them (0 where it is free), or limit `max_tokens`"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _evaluates_by_a_scorer(self) -> Self:
        known = [scorer.name for scorer in self.scoring.scorers]
        scorer = self.evaluation.scorer
        if scorer is not None and scorer not in known:
            near = _near_or_known(scorer, known)
            raise ValueError(f"`evaluation.scorer` {scorer!r} is none of `scoring.scorers`{near}")
        return self

    @pydantic.model_validator(mode="after")
    def _measures_what_it_limits(self) -> Self:
        if self.gate.maximum_kl_nats is not None and not self.evaluation.kl_samples_per_prompt:
            raise ValueError(
                "`gate.maximum_kl_nats` limits what is not measured: "
                "raise `evaluation.kl_samples_per_prompt`, or set the limit to null"
            )
        if self.gate.maximum_text_loss_growth_nats is not None and self.evaluation.texts is None:
            raise ValueError(
                "`gate.maximum_text_loss_growth_nats` limits what is not measured: "
                "name a file in `evaluation.texts`, or set the limit to null"
            )
        metric = self.gate.metric
        if metric is not None and metric not in METRICS:
            raise ValueError(
                f"`gate.metric` names {metric!r}, which is none of the metrics"
                f"{_near_or_known(metric, list(METRICS))}"
            )
        if self.gate.decoding == "greedy" and not self.evaluation.greedy:
            raise ValueError(
                "`gate.decoding: greedy` judges what is not measured: "
                "set `evaluation.greedy: true`, or `gate.decoding: sampled`"
            )
        card, texts = self.evaluation.card, self.evaluation.texts is not None
        known = card.named(texts=texts) if card else []
        for name in self.gate.capability_tolerances:
            if name not in known:
                near = _near_or_known(name, known or ["none, as there is no `evaluation.card`"])
                raise ValueError(f"`gate.capability_tolerances` names {name!r}{near}")
        return self

    @pydantic.model_validator(mode="after")
    def _limits_a_scorer(self) -> Self:
        known = [scorer.name for scorer in self.scoring.scorers]
        for limit in self.filters.score_limits:
            if limit.scorer not in known:
                near = _near_or_known(limit.scorer, known)
                raise ValueError(
                    f"`filters.score_limits` names {limit.scorer!r}, which is none of "
                    f"`scoring.scorers`{near}"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _bands_of_a_scorer(self) -> Self:
        known = [f"score:{scorer.name}" for scorer in self.scoring.scorers]
        for band in self.validation.bands:
            if band.measure.startswith("score:") and band.measure not in known:
                near = _near_or_known(band.measure, known)
                raise ValueError(f"`validation.bands` names {band.measure!r}, not a scorer{near}")
        return self

    @pydantic.model_validator(mode="after")
    def _pairs_by_a_scorer(self) -> Self:
        known = [scorer.name for scorer in self.scoring.scorers]
        named = [("scorer", self.pairing.scorer)]
        named += [("weights", name) for name in self.pairing.weights]
        named += [("agreeing_scorers", name) for name in self.pairing.agreeing_scorers]
        for key, chosen in named:
            if chosen not in known:
                near = _near_or_known(chosen, known)
                raise ValueError(f"`pairing.{key}` {chosen!r} is none of `scoring.scorers`{near}")
        kind = self.scoring.scorers[known.index(self.pairing.scorer)].kind
        if self.pairing.needs_judgments and kind not in {"judge", "votes"}:
            raise ValueError(
                f"`pairing.strategy` {self.pairing.strategy!r} reads verdicts on two candidates; "
                f"the scorer {self.pairing.scorer!r} of kind {kind!r} gives none"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _noise_that_can_be_known(self) -> Self:
        asked = {
            "filters.maximum_label_noise": self.filters.needs_noise,
            "training.label_smoothing": self.training.label_smoothing == "estimated",
        }
        for key in [key for key, needed in asked.items() if needed]:
            gold = self.prompts.gold is not None
            if why_not := why_no_noise(self.scoring, self.pairing, gold=gold):
                raise ValueError(f"`{key}` asks for an estimate of label noise: {why_not}")
        return self

    @pydantic.model_validator(mode="after")
    def _weights_that_are_made(self) -> Self:
        weight, gold = self.training.weight_by, self.prompts.gold is not None
        if weight == "confidence" and (
            why_not := why_no_noise(self.scoring, self.pairing, gold=gold)
        ):
            raise ValueError(
                f"`training.weight_by: confidence` asks for an estimate of label noise: {why_not}"
            )
        if weight == "length_weight" and self.filters.length_bias != "reweight":
            raise ValueError(
                "`training.weight_by: length_weight` reads weights that nothing makes: "
                "set `filters.length_bias: reweight`"
            )
        return self


class TrainingFileConfig(PipelineConfig):
    """A pipeline's of which the training is read: its pairs, and what weighs them, are there."""

    name: ShortName = "train-file"
    """Short name: starts the record's id."""

    @pydantic.model_validator(mode="after")
    def _weights_that_are_made(self) -> Self:
        return self


def load_config(
    path: Path,
    overrides: dict[str, Any] | None = None,
    kind: type[PipelineConfig] = PipelineConfig,
) -> PipelineConfig:
    """Return the resolved configuration in ``path``; ``overrides`` win, key by key.

    Raises:
        MissingFileError: the file is not there.
        ConfigError: it is not YAML, or a key or value is wrong (names the nearest known key).
    """
    return resolve(_merged(read_yaml(path), overrides or {}), str(path), kind)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        MissingFileError: the file is not there.
        ConfigError: it is not YAML or not a mapping.
    """
    if not path.is_file():
        raise MissingFileError(
            f"configuration {str(path)!r} is not there",
            expected="a YAML file",
            where=f"working directory {Path.cwd()}",
            remedy="start from configs/refresh.yaml",
        )
    values = read_yaml_file(path)
    if not isinstance(values, dict):
        raise ConfigError("not a mapping of keys", expected="keys such as `name:`", where=str(path))
    return values


def resolve(
    values: dict[str, Any], where: str, kind: type[PipelineConfig] = PipelineConfig
) -> PipelineConfig:
    """Return the configuration for ``values``, with the seed handed to every section."""
    seed = values.get("seed", 0)
    for section in SEEDED_SECTIONS:
        inner = values.get(section)
        if inner is None or isinstance(inner, dict):
            values = {**values, section: {"seed": seed, **(inner or {})}}
    return kind.checked(values, where)


def _merged(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` with ``overrides`` laid over it, mappings merged key by key."""
    merged = dict(values)
    for key, value in overrides.items():
        below = merged.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        merged[key] = _merged(below, value) if both else value  # type: ignore[arg-type]
    return merged
