"""DPO with shared prompts and cached reference log-probabilities against plain TRL.

Run from a clean checkout after `make test`: .venv/bin/python benchmarks/training.py
A Llama of 30M random weights, prompts four times as long as the completions, fp32 on a CPU. In
turns: TRL's DPOTrainer as it is; TRL at its strongest (only completion positions scored, as it does
on a GPU, and the reference's log-probabilities computed before); ours cold (the reference's
log-probabilities computed first) and warm (they are cached). The same pairs, order and loss.
`--device cuda` measures on a GPU; that was never run.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import last_line

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

AT_LEAST = {"speedup_cold": 2.0, "speedup_warm": 2.8, "speedup_over_strongest": 1.6}
AT_MOST = {"max_abs_loss_diff": 1e-5, "max_rel_grad_diff": 1e-4}
PROMPT_BYTES, COMPLETION_BYTES = 256, 64
SIZES = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Measured:
    """One training: seconds, CPU seconds, the losses of its steps and the first gradients."""

    wall: float
    cpu: float
    losses: list[float]
    gradients: dict[str, Any]


def main() -> None:
    """Measure, print a table and the line of JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments.add_argument("--pairs", type=int, default=16)
    arguments.add_argument("--batch", type=int, default=4)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--full", action="store_true", help="64 pairs, five repeats")
    asked = arguments.parse_args()
    require_device(asked.device)
    pairs, repeats = (64, 5) if asked.full else (asked.pairs, asked.repeats)
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder))
        rows = make_pairs(pairs)
        arms = ("plain", "strongest", "cold", "warm")
        runs: dict[str, list[Measured]] = {arm: [] for arm in arms}
        for repeat in range(repeats):
            for arm in arms:
                work = Path(folder) / str(repeat)
                runs[arm].append(train(arm, rows, model, asked.batch, work))
            print(f"round {repeat + 1} of {repeats}: {seconds(runs, repeat)}", flush=True)
    report(runs)


def require_device(device: str) -> None:
    """Stop where the device asked for is not there, or would be taken in place of the CPU."""
    import torch

    if (device == "cuda") != torch.cuda.is_available():
        sys.exit(f"--device {device}: CUDA is {'' if torch.cuda.is_available() else 'not '}there")


def seconds(runs: dict[str, list[Measured]], repeat: int) -> str:
    """Return the seconds of one round."""
    return ", ".join(f"{arm} {of_arm[repeat].wall:.1f} s" for arm, of_arm in runs.items())


def report(runs: dict[str, list[Measured]]) -> None:
    """Print ratios with their spread, then the line of JSON."""
    figures = {}
    for name, slow, fast in (
        ("speedup_cold", "plain", "cold"),
        ("speedup_warm", "plain", "warm"),
        ("speedup_over_strongest", "strongest", "warm"),
    ):
        both = list(zip(runs[slow], runs[fast], strict=True))
        wall = [s.wall / f.wall for s, f in both]
        cpu = [s.cpu / f.cpu for s, f in both]
        figures[name] = statistics.median(wall)
        figures[f"{name}_cpu"] = statistics.median(cpu)
        spread = f"{min(wall):.2f} to {max(wall):.2f}"
        print(f"{name}: {figures[name]:.2f} ({spread}; of CPU time {statistics.median(cpu):.2f})")
    plain, ours = runs["plain"][0], runs["warm"][0]
    figures["max_abs_loss_diff"] = max(
        abs(a - b) for a, b in zip(plain.losses, ours.losses, strict=True)
    )
    figures["max_rel_grad_diff"] = max(
        ((plain.gradients[name] - gradient).norm() / plain.gradients[name].norm()).item()
        for name, gradient in ours.gradients.items()
    )
    print(f"losses of plain TRL's steps: {', '.join(f'{loss:.6f}' for loss in plain.losses)}")
    print(last_line("training", figures, at_most=AT_MOST, at_least=AT_LEAST))


def make_model(folder: Path) -> Path:
    """Write the model and a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    special = ["<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>"]
    alphabet = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|eos|>"
    )
    fast.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}<|eos|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **ids))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters")
    model.save_pretrained(folder / "model")
    fast.save_pretrained(folder / "model")
    return folder / "model"


def make_pairs(count: int) -> pl.DataFrame:
    """Return pairs of random letters; lengths vary by a quarter around the means."""
    import numpy as np
    import polars as pl

    random = np.random.default_rng(0)

    def text(mean: int) -> str:
        length = int(random.integers(mean * 3 // 4, mean * 5 // 4))
        return "".join(random.choice(list("abcdefgh "), length))

    return pl.DataFrame(
        {
            "pair_id": [f"pair_{place:04d}" for place in range(count)],
            "prompt": [[{"role": "user", "content": text(PROMPT_BYTES)}] for _ in range(count)],
            "chosen": [text(COMPLETION_BYTES) for _ in range(count)],
            "rejected": [text(COMPLETION_BYTES) for _ in range(count)],
        }
    )


def train(arm: str, rows: pl.DataFrame, model: Path, batch: int, work: Path) -> Measured:
    """Return one epoch of one arm; loading the models is not timed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer import trl_trainer
    from trainer.dpo import metrics_frame
    from trainer.dpo_settings import DPOTrainingConfig

    config = DPOTrainingConfig(
        batch_size=batch, learning_rate=1e-5, warmup_ratio=0.0, checkpoint_every_steps=10_000
    )
    callback = trl_trainer.RunCallback(work / arm, None)
    models = [AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32) for _ in range(2)]
    tokenizer = AutoTokenizer.from_pretrained(model)
    torch.manual_seed(0)
    with compact_scoring() if arm == "strongest" else contextlib.nullcontext():
        trainer = trl_trainer.build_trainer(tuple(models), tokenizer, rows, config, callback)
        if arm in {"cold", "warm"}:
            reason, _ = trl_trainer.share_prompts_in(trainer)
            assert reason is None, reason
        gradients = first_gradients(trainer)
        wall, cpu = time.monotonic(), time.process_time()
        if arm != "plain":
            # Cold and warm share a folder, so warm finds what cold computed.
            folder = work / ("strongest" if arm == "strongest" else "ours")
            trl_trainer.cache_reference(trainer, folder, {"reference": "benchmark"})
        if arm == "strongest":  # computed before the training, as ours is when warm
            wall, cpu = time.monotonic(), time.process_time()
        trainer.train()
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    metrics = metrics_frame(trainer.state.log_history)
    losses = metrics.filter(metric="loss").sort("step")["value"].to_list()
    return Measured(wall, cpu, losses, gradients)


def first_gradients(trainer: Any) -> dict[str, Any]:
    """Return the gradients of the first batch, before any step."""
    import torch

    rows = range(trainer.args.per_device_train_batch_size)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in rows])
    trainer.model.train()
    with torch.random.fork_rng():
        trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).backward()
    named = trainer.model.named_parameters()
    found = {name: parameter.grad.clone() for name, parameter in named}
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    trainer._total_train_tokens = 0
    return found


@contextlib.contextmanager
def compact_scoring() -> Iterator[None]:
    """Have TRL score completion positions only, as it does where Triton runs."""
    from trl.trainer import utils

    before = utils._use_triton
    utils._use_triton = lambda _: True
    try:
        yield
    finally:
        utils._use_triton = before


if __name__ == "__main__":
    main()
