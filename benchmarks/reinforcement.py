"""On-policy DPO against TRL's GRPO or RLOO on the bundled verifiable tasks, equal time each.

Every method gets the same seconds of one core, sampling, scoring and training included: DPO in
rounds (sample, pair the best and the worst, train), the other as TRL does it. Seconds are the CPU
time of this process on one thread: on an idle machine the wall clock, on a busy one still fair.
Loading the model and the evaluation are outside the budget. DPO's settings
are the demo's.

Run from a clean checkout after `make test`: .venv/bin/python benchmarks/reinforcement.py
[--seeds 3] [--seconds 40] [--method rloo]; `--full` is 120 s of 5 seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import polars as pl
from machine import last_line

from stages import generation
from stages.generation_settings import Sampling
from stages.prompt_sources import BundledSource, read_source
from stages.task_families import score
from trainer.bootstrap import paired_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODEL = Path(__file__).parent.parent / "data" / "tiny-model"
SAMPLES, MAX_TOKENS, PROMPTS_AT_ONCE = 8, 48, 40
PROMPTS_PER_ROUND = 200
LEAST_GAP = 0.15
"""In score, between the best and the worst answer of a pair: as in configs/demo.yaml."""
HELDOUT_PER_FAMILY, HELDOUT_SAMPLES = 60, 4
DPO = {"beta": 1.0, "learning_rate": 2e-4, "lr_scheduler": "linear", "warmup_steps": 5}
ONLINE = {"learning_rate": 5e-4, "beta": 0.0}
"""Without a KL term (TRL's default for GRPO), at the better of two learning rates (2e-4, 5e-4)."""


@dataclass
class Outcome:
    """What one method made of its time."""

    policy: Path
    steps: int
    sampled_tokens: int
    cpu_seconds: float
    wall_seconds: float


def prompts_of(split: str, per_family: int, seed: int) -> pl.DataFrame:
    """Return prompts of all families in a random order."""
    source = BundledSource(train=0, heldout=0)
    source = source.model_copy(update={split: per_family * len(source.families)})
    found, _ = read_source(source, seed)
    return found.sample(fraction=1.0, shuffle=True, seed=seed)


def sampled(
    model: Path, prompts: pl.DataFrame, samples: int, seed: int
) -> Iterator[tuple[dict[str, Any], list[tuple[str, int, float]]]]:
    """Yield each prompt with its answers: text, tokens and score."""
    from stages.transformers_engine import TransformersEngine

    engine = TransformersEngine(model, threads=1)
    sampling = Sampling(samples, samples, 1.0, 1.0, MAX_TOKENS, None, seed)
    rows = {row["prompt_id"]: row for row in prompts.iter_rows(named=True)}
    requests = generation.requests_of(
        prompts.with_columns(control_token=pl.lit(None, pl.String)), sampling
    )
    batches = [
        requests[at : at + PROMPTS_AT_ONCE] for at in range(0, len(requests), PROMPTS_AT_ONCE)
    ]
    for answer in chain.from_iterable(engine.answers(batches, sampling)):
        row = rows[answer.prompt_id]
        truth = json.loads(row["ground_truth"])
        yield (
            row,
            [
                (s.text or "", s.tokens, score(row["verifier"], truth, s.text or ""))
                for s in answer.samples
            ],
        )


def success(model: Path, heldout: pl.DataFrame) -> dict[str, float]:
    """Return each held-out prompt's share of sampled answers that succeed."""
    found = sampled(model, heldout, HELDOUT_SAMPLES, 0)
    return {
        row["prompt_id"]: statistics.mean(points == 1 for _, _, points in answers)
        for row, answers in found
    }


def divergence(model: Path, heldout: pl.DataFrame) -> float:
    """Return KL(model || bundled) in nats an answer, of one sampled answer a prompt."""
    from stages.implicit_reward import ImplicitReward

    reward = ImplicitReward(model, MODEL, 1.0, 4096, "kl")
    talks = [
        [*row["messages"], {"role": "assistant", "content": answers[0][0]}]
        for row, answers in sampled(model, heldout, 1, 1)
    ]
    return statistics.mean(o.score for o in reward.score(talks) if o.score is not None)


class Clock:
    """The seconds of CPU and of the wall clock since it was made."""

    def __init__(self) -> None:
        self.cpu, self.wall = time.process_time(), time.monotonic()

    def spent(self) -> tuple[float, float]:
        """Return both."""
        return time.process_time() - self.cpu, time.monotonic() - self.wall


def train_by_dpo(prompts: pl.DataFrame, seed: int, seconds: float, folder: Path) -> Outcome:
    """Return the last policy of whole rounds that ended in time."""
    from trainer.dpo import train_dpo
    from trainer.dpo_settings import DPOTrainingConfig

    settings = {**DPO, "epochs": 2, "batch_size": 16, "max_length_tokens": 256, "threads": 1}
    clock, policy, tokens, steps = Clock(), MODEL, 0, 0
    done, number, longest = (0.0, 0.0), 0, 0.0
    # A round that would not end in time is not begun: half a round is no policy.
    while done[0] + longest <= seconds:
        batch = prompts.slice(number * PROMPTS_PER_ROUND, PROMPTS_PER_ROUND)
        rows = []
        for row, answers in sampled(policy, batch, SAMPLES, seed + number):
            tokens += sum(count for _, count, _ in answers)
            best, worst = (pick(answers, key=lambda a: a[2]) for pick in (max, min))
            if best[2] - worst[2] >= LEAST_GAP:
                rows.append((row["prompt_id"], row["messages"], best[0], worst[0]))
        names = ["pair_id", "prompt", "chosen", "rejected"]
        frame = pl.DataFrame(rows, schema=names, orient="row")
        config = DPOTrainingConfig.checked({**settings, "seed": seed})
        place = folder / f"round-{number}"
        result = train_dpo(frame, policy, policy, config, place, folder / "checkpoints")
        spent = clock.spent()
        longest = max(longest, spent[0] - done[0])
        policy, done, number = place, spent, number + 1
        steps += result.steps
    return Outcome(policy, steps, tokens, *done)


def train_online(
    method: str, prompts: pl.DataFrame, seed: int, seconds: float, folder: Path
) -> Outcome:
    """Return the policy that TRL's trainer had when the time was over."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    from stages.model_loading import load_model
    from trainer.isolation import quiet

    trainers = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}
    trainer_class, config_class = trainers[method]
    tokens = 0

    def reward(completions: list[Any], completion_ids: list[Any], **columns: Any) -> list[float]:
        nonlocal tokens
        tokens += sum(map(len, completion_ids))
        texts = [completion[0]["content"] for completion in completions]
        facts = zip(columns["family"], columns["truth"], texts, strict=True)
        return [score(family, json.loads(truth), text) for family, truth, text in facts]

    class Stop(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.clock = Clock()

        def on_step_end(self, _: Any, __: Any, control: Any, **___: Any) -> None:
            self.spent = self.clock.spent()
            control.should_training_stop = self.spent[0] >= seconds

    warnings.simplefilter("ignore")
    loaded, stop = load_model(MODEL, "AutoModelForCausalLM"), Stop()
    rows = prompts.select(prompt="messages", family="verifier", truth="ground_truth").to_dicts()
    config = config_class(
        output_dir=str(folder),
        num_generations=SAMPLES,
        per_device_train_batch_size=16 * SAMPLES,
        max_completion_length=MAX_TOKENS,
        temperature=1.0,
        max_steps=100_000,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        **ONLINE,
    )
    trainer = trainer_class(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(rows),
        callbacks=[stop],
    )
    trainer.remove_callback(PrinterCallback)
    with quiet():
        trainer.train()
    trainer.save_model(str(folder / "policy"))
    loaded.tokenizer.save_pretrained(folder / "policy")
    return Outcome(folder / "policy", trainer.state.global_step, tokens, *stop.spent)


def main() -> None:
    """Measure every seed, print a table, end with the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 1 on")
    parser.add_argument("--seconds", type=float, default=40.0, help="of one core, each method")
    parser.add_argument("--method", choices=("grpo", "rloo"), default="grpo")
    parser.add_argument("--learning-rate", type=float, help="of the online method")
    parser.add_argument("--full", action="store_true", help="5 seeds of 120 s")
    asked = parser.parse_args()
    seeds, seconds = (5, 120.0) if asked.full else (asked.seeds, asked.seconds)
    if asked.learning_rate:
        ONLINE["learning_rate"] = asked.learning_rate
    import torch

    torch.set_num_threads(1)
    heldout = prompts_of("heldout", HELDOUT_PER_FAMILY, 0)
    before = success(MODEL, heldout)
    print(f"before: {statistics.mean(before.values()):.3f} of {heldout.height} held-out prompts")
    figures: dict[str, list[float]] = defaultdict(list)
    for seed in range(1, seeds + 1):
        prompts = prompts_of("train", 800, seed)
        methods: dict[str, Callable[[Path], Outcome]] = {
            "dpo": lambda at: train_by_dpo(prompts, seed, seconds, at),  # noqa: B023
            asked.method: lambda at: train_online(asked.method, prompts, seed, seconds, at),  # noqa: B023
        }
        for name, train in methods.items():
            with tempfile.TemporaryDirectory(prefix="prefmill-benchmark-") as folder:
                outcome = train(Path(folder))
                after = success(outcome.policy, heldout)
                kl = divergence(outcome.policy, heldout)
            gaps = np.array([after[one] - before[one] for one in before])
            low, high = paired_interval(gaps, 0, 2000)
            lift = float(gaps.mean())
            print(
                f"seed {seed}  {name:<5} {outcome.cpu_seconds:5.0f} CPU s "
                f"{outcome.wall_seconds:5.0f} s  {outcome.steps:4} steps "
                f"{outcome.sampled_tokens:9,} tokens sampled  success "
                f"{statistics.mean(after.values()):.3f}  {lift:+.3f} [{low:+.3f}, {high:+.3f}]  "
                f"KL {kl:.2f}",
                flush=True,
            )
            for figure, value in (
                ("lift", lift),
                ("lift_low", low),
                ("tokens_sampled", outcome.sampled_tokens),
                ("kl_nats", kl),
                ("cpu_s", outcome.cpu_seconds),
            ):
                figures[f"{figure}_{name}"].append(value)
    means = {name: statistics.mean(values) for name, values in figures.items()}
    means |= {"seeds": seeds, "seconds": seconds}
    means["lift_dpo_minus_other"] = means["lift_dpo"] - means[f"lift_{asked.method}"]
    print(last_line("reinforcement", means))


if __name__ == "__main__":
    main()
