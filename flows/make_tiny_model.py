"""Make the tiny model: a Llama of about a million parameters that a CPU trains in minutes.

It learns the five task families from generated demonstrations (split `base` only): first from
clean ones, then from a mixture in which a share has habitual flaws. The flaws are put in on
purpose: they are what a round of preference training can correct. Run it as

    python -m flows.make_tiny_model --out data/tiny-model --seed 0
"""

import dataclasses
import json
import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from stages.task_families import (
    FAMILIES,
    Split,
    TaskPrompt,
    demonstrate,
    is_tempting,
    sample_prompts,
    score,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
SPECIAL_TOKENS = (PAD, BOS, EOS, "<|user|>", "<|assistant|>", "<|system|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}" + EOS + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MAX_POSITIONS = 256
CHUNK_PROMPTS = 200  # distinct contents drawn per chunk of demonstrations
WINDOW_BATCHES = 16  # batches of like length are formed inside windows of this size
PROGRESS_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides the model; stored in `training.json`."""

    seed: int = 0
    steps: int = 9000
    flawed_steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 3e-3
    flawed_learning_rate: float = 1e-3
    prompt_token_weight: float = 0.1
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4
    initializer_range: float = 0.08  # at the usual 0.02 a model this small barely learns
    max_vocabulary: int = 1400
    tokenizer_demonstrations: int = 10_000
    evaluation_prompts: int = 500
    family_weights: tuple[int, ...] = (6, 8, 3, 2, 2)  # in the order of FAMILIES
    flawed_family_weights: tuple[int, ...] = (1, 1, 1, 1, 1)
    flawed_share: tuple[float, ...] = (0.45, 0.25, 0.3, 0.4, 0.3)
    flawed_share_tempting: tuple[float, ...] = (0.8, 0.65, 0.75, 0.7, 0.8)


class Demonstration(NamedTuple):
    """What the model is asked and what it shall learn to answer."""

    prompt: str
    answer: str


class Trained(NamedTuple):
    """Tokens seen in one phase, and the running mean of the loss per answer token."""

    tokens: int
    loss: float


@click.command(epilog="Example: python -m flows.make_tiny_model --out /tmp/tiny --steps 500")
@click.option("--out", type=click.Path(path_type=Path), default=Path("data/tiny-model"))
@click.option("--seed", default=Settings.seed, show_default=True)
@click.option("--steps", default=Settings.steps, show_default=True, help="On clean demonstrations.")
@click.option(
    "--flawed-steps",
    default=Settings.flawed_steps,
    show_default=True,
    help="On the mixture with flawed demonstrations.",
)
@click.option(
    "--evaluation-prompts",
    default=Settings.evaluation_prompts,
    show_default=True,
    help="Held-out prompts that the record's scores are measured on.",
)
def main(out: Path, **options: Any) -> None:
    """Make the tiny model in the folder OUT: about ten minutes on one CPU core."""
    record = make_tiny_model(Settings(**options), out)
    click.echo(json.dumps(record["heldout_success"], indent=2))


def make_tiny_model(settings: Settings, out: Path) -> dict[str, Any]:
    """The record that is also written to `training.json`; `out` then holds a complete model."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    started, cpu_started = time.perf_counter(), time.process_time()
    tokenizer = build_tokenizer(settings)
    model = build_model(settings, tokenizer)
    clean = train(model, tokenizer, settings, flawed=False)
    flawed = train(model, tokenizer, settings, flawed=True)
    cpu_seconds = time.process_time() - cpu_started
    save(model, tokenizer, out)
    record: dict[str, Any] = {
        "settings": dataclasses.asdict(settings),
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "training_tokens": clean.tokens + flawed.tokens,
        "loss_after_clean_demonstrations": round(clean.loss, 4),
        "final_loss": round(flawed.loss, 4),
        "cpu_seconds": round(cpu_seconds, 1),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "heldout_success": evaluate(out, settings.evaluation_prompts, settings.seed),
        "file_bytes": {path.name: path.stat().st_size for path in sorted(out.iterdir())},
        "versions": _versions("torch", "transformers", "tokenizers", "safetensors"),
    }
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def demonstrations(
    settings: Settings, count: int, flawed: bool, stream: str
) -> Iterator[Demonstration]:
    """`count` demonstrations of split `base`; the same `stream` and settings give the same ones."""
    rng = random.Random(f"demonstrations:{stream}:{settings.seed}")
    weights = settings.flawed_family_weights if flawed else settings.family_weights
    waiting: dict[str, list[TaskPrompt]] = {family: [] for family in FAMILIES}
    for _ in range(count):
        family = rng.choices(FAMILIES, weights)[0]
        if not waiting[family]:
            waiting[family] = sample_prompts(family, "base", CHUNK_PROMPTS, rng.getrandbits(60))
        task = waiting[family].pop()
        facts = task.ground_truth
        tempting = is_tempting(family, facts)
        shares = settings.flawed_share_tempting if tempting else settings.flawed_share
        spoiled = flawed and rng.random() < shares[FAMILIES.index(family)]
        yield Demonstration(task.prompt, demonstrate(family, facts, rng, spoiled))


def build_tokenizer(settings: Settings) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer with single digits that never adds a token by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.max_vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = demonstrations(settings, settings.tokenizer_demonstrations, True, "tokenizer")
    core.train_from_iterator((text for pair in texts for text in pair), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        model_max_length=MAX_POSITIONS,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(settings: Settings, tokenizer: "PreTrainedTokenizerFast") -> "LlamaForCausalLM":
    """A freshly initialised Llama of the size in the settings; uses torch's global seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            max_position_embeddings=MAX_POSITIONS,
            initializer_range=settings.initializer_range,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def train(
    model: "LlamaForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    settings: Settings,
    flawed: bool,
) -> Trained:
    """The tokens seen and the running answer loss of one phase; changes `model` in place."""
    import torch

    phase = "flawed" if flawed else "clean"
    steps = settings.flawed_steps if flawed else settings.steps
    peak = settings.flawed_learning_rate if flawed else settings.learning_rate
    pairs = demonstrations(settings, steps * settings.batch_size, flawed, phase)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    tokens, running, shown = 0, math.nan, time.monotonic()
    model.train()
    for step, batch in enumerate(_batches(_encode(tokenizer, pairs), settings)):
        for group in optimizer.param_groups:
            group["lr"] = peak * _schedule(step, steps)
        ids, weights = _pad(batch, settings.prompt_token_weight)
        loss, answer_loss = _loss(model, ids, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += int((weights > 0).sum())
        running = answer_loss if step == 0 else 0.98 * running + 0.02 * answer_loss
        if time.monotonic() - shown > PROGRESS_SECONDS or step + 1 == steps:
            shown = time.monotonic()
            line = f"{phase}: step {step + 1} of {steps}, answer loss {running:.3f}"
            click.echo(line, err=True)
    return Trained(tokens, running)


def evaluate(folder: Path, prompts: int, seed: int) -> dict[str, dict[str, float]]:
    """Held-out success per family and their mean, `greedy` and `sampled` (temperature 1)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tasks = balanced_prompts("heldout", prompts, seed)
    result: dict[str, dict[str, float]] = {}
    for name, sampled in (("greedy", False), ("sampled", True)):
        texts = complete(model, tokenizer, [task.prompt for task in tasks], sampled, seed)
        passed = [
            (task.family, score(task.family, task.ground_truth, text) == 1.0)
            for task, text in zip(tasks, texts, strict=True)
        ]
        shares = {
            family: _mean([good for other, good in passed if other == family])
            for family in FAMILIES
        }
        result[name] = {**shares, "mean": _mean([good for _, good in passed])}
    return result


def balanced_prompts(split: Split, count: int, seed: int) -> list[TaskPrompt]:
    """About `count` prompts (at least one per family), the same number of every family."""
    each = max(1, count // len(FAMILIES))
    return [task for family in FAMILIES for task in sample_prompts(family, split, each, seed)]


def complete(
    model: Any, tokenizer: Any, prompts: Sequence[str], sampled: bool, seed: int
) -> list[str]:
    """One completion per prompt of at most 48 tokens: greedy, or sampled at temperature 1."""
    import torch

    torch.manual_seed(seed)
    model.eval()
    texts: list[str] = []
    for first in range(0, len(prompts), 256):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts[first : first + 256]]
        batch = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
        )
        with torch.no_grad():
            output = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=sampled,
                max_new_tokens=48,
                **({"temperature": 1.0, "top_k": 0} if sampled else {}),
            )
        answers = output[:, batch["input_ids"].shape[1] :]
        texts += tokenizer.batch_decode(answers, skip_special_tokens=True)
    return texts


def save(model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerFast", out: Path) -> None:
    """Write a folder that `from_pretrained` loads: half-precision weights, tokenizer, template."""
    import copy

    from transformers import GenerationConfig

    out.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(model).half()
    half.generation_config = GenerationConfig(
        pad_token_id=model.config.pad_token_id,
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
    )
    half.save_pretrained(out)
    tokenizer.save_pretrained(out)
    written = out / "tokenizer_config.json"  # transformers 4, which vLLM may use, knows this class
    written.write_text(written.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    for path in out.iterdir():
        path.chmod(0o644)  # safetensors writes 0o600


def _encode(
    tokenizer: "PreTrainedTokenizerFast", pairs: Iterable[Demonstration]
) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids of the prompt (template included) and of the answer with its EOS."""
    for prompt, answer in pairs:
        user = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(user, add_generation_prompt=True, tokenize=False)
        yield tokenizer.encode(str(text)), tokenizer.encode(answer + EOS)


def _batches(
    encoded: Iterable[tuple[list[int], list[int]]], settings: Settings
) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Batches of like length in random order, so that little is spent on padding."""
    rng = random.Random(f"batches:{settings.seed}")
    size = settings.batch_size
    window: list[tuple[list[int], list[int]]] = []

    def drain() -> Iterator[list[tuple[list[int], list[int]]]]:
        window.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        batches = [window[first : first + size] for first in range(0, len(window), size)]
        rng.shuffle(batches)
        yield from batches

    for pair in encoded:
        window.append(pair)
        if len(window) == size * WINDOW_BATCHES:
            yield from drain()
            window = []
    yield from drain()


def _pad(
    batch: list[tuple[list[int], list[int]]], prompt_weight: float
) -> tuple["Tensor", "Tensor"]:
    """Ids and loss weights, both of shape (batch, longest): 0 on padding, 1 on the answer."""
    import torch

    longest = max(len(prompt) + len(answer) for prompt, answer in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    weights = torch.zeros(len(batch), longest)
    for row, (prompt, answer) in enumerate(batch):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        weights[row, : len(prompt)] = prompt_weight
        weights[row, len(prompt) : end] = 1.0
    return ids, weights


def _loss(model: "LlamaForCausalLM", ids: "Tensor", weights: "Tensor") -> tuple["Tensor", float]:
    """The weighted loss per token to minimise, and the plain mean over answer tokens."""
    import torch

    logits = model(input_ids=ids).logits[:, :-1]
    targets, weights = ids[:, 1:], weights[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="none"
    ).view_as(weights)
    answer_loss = float(losses.detach()[weights == 1.0].mean())
    return (losses * weights).sum() / weights.sum(), answer_loss


def _schedule(step: int, steps: int) -> float:
    """The share of the peak learning rate: 50 steps up, then a cosine down to 5 %."""
    warm_up = min(1.0, (step + 1) / 50)
    return warm_up * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / max(1, steps))))


def _mean(values: Sequence[bool]) -> float:
    return round(sum(values) / len(values), 4)


def _versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in packages}


if __name__ == "__main__":
    main()
