"""MinHash libraries against prefmill's own: speed, memory, error, and whether runs agree.

Run from a clean checkout after `make test`: .venv/bin/python benchmarks/near_duplicates.py
The libraries are installed into build/minhash (a minute or two, once). All measure the same texts
of 60 words by word 3-grams and 128 permutations, on one core, a process each, interleaved; the
exact similarity of each text and its mutation is known. `signature` is what must be kept of a text.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Rows = NDArray[np.unsignedinteger]

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
ENVIRONMENT = ROOT / "build" / "minhash"
OURS = ["numba", "numpy", "polars", "pyarrow", "pydantic"]
PACKAGES = ["rensa==0.5.0", "datasketch==2.0.0", "datatrove[processing]==0.10.1"]
MARK = ".installed-with-numba"
WORDS, NGRAM, PERMUTATIONS = 60, 3, 128
AT_MOST = {"clusters_s": 60.0, "clusters_gb": 1.0}
AT_LEAST = {"speedup_over_libraries": 1.5}
"""Less would not be worth code of our own."""


def mutated_texts(count: int) -> tuple[list[str], list[str]]:
    """Return texts and their mutations, in which 0 to 11 words are others."""
    draw = np.random.default_rng(0)
    words = np.minimum((draw.pareto(1.1, (count, WORDS)) * 20).astype(int), 10**6)
    other = words.copy()
    for row, changes in zip(other, draw.integers(0, 12, count), strict=True):
        row[draw.integers(0, WORDS, changes)] = draw.integers(10**6, 10**7, changes)
    return [_text(row) for row in words], [_text(row) for row in other]


def _text(row: NDArray[np.int64]) -> str:
    return " ".join(f"{number:x}" for number in row.tolist())


def ngrams_of(text: str) -> list[str]:
    """Return the word n-grams as the libraries take them."""
    words = text.split()
    return [" ".join(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]


def exact(texts: list[str], others: list[str]) -> NDArray[np.float64]:
    """Return the Jaccard similarity of each text and its mutation."""
    pairs = ((set(ngrams_of(a)), set(ngrams_of(b))) for a, b in zip(texts, others, strict=True))
    return np.array([len(a & b) / len(a | b) for a, b in pairs])


def prefmill(texts: list[str]) -> Rows:
    """Signatures of stages/near_duplicates.py."""
    import polars as pl

    from stages.near_duplicates import NearDuplicateConfig, signatures

    return signatures(pl.Series(texts), NearDuplicateConfig(ngram_words=NGRAM)).to_numpy()


def rensa_hashed(texts: list[str]) -> Rows:
    """Rensa over our n-gram hashes: its fastest way in."""
    import polars as pl
    from rensa import RMinHash

    from stages.word_ngrams import TextBytes, blocks, ngrams_of

    def signed(block: pl.Series) -> Rows:
        ngrams = ngrams_of(TextBytes.of(block, marks=True), NGRAM)
        offsets = ngrams.offsets.astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            ngrams.hashes, offsets, PERMUTATIONS, 0
        )
        return np.array(matrix.to_rows(), np.uint32)

    return np.concatenate([signed(block) for block in blocks(pl.Series(texts))])


def rensa(texts: list[str]) -> Rows:
    """Rensa over n-grams as strings."""
    from rensa import RMinHash

    def signed(part: list[str]) -> Rows:
        tokens = [ngrams_of(text) for text in part]
        rows = RMinHash.digest_matrix_from_token_sets(tokens, PERMUTATIONS, 0).to_rows()
        return np.array(rows, np.uint32)

    return np.concatenate([signed(texts[i : i + 2000]) for i in range(0, len(texts), 2000)])


def datasketch(texts: list[str]) -> Rows:
    """Datasketch, a text at a time."""
    from datasketch import MinHash

    def signed(text: str) -> Rows:
        sketch = MinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update_batch([ngram.encode() for ngram in ngrams_of(text)])
        return sketch.digest().astype(np.uint64)

    return np.stack([signed(text) for text in texts])


def datatrove(texts: list[str]) -> Rows:
    """Datatrove's signature step without its files and its tokenizer."""
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig, create_hash_func
    from datatrove.utils.word_tokenizers import WhitespaceTokenizer

    hashing = HashConfig(precision=64)
    hashed = create_hash_func(hashing)
    step = MinhashDedupSignature(
        output_folder=str(ENVIRONMENT / "unused"),
        config=MinhashConfig(num_buckets=16, hashes_per_bucket=8, hash_config=hashing),
        language=WhitespaceTokenizer(),  # English needs spaCy
    )

    def signed(text: str) -> Rows:
        shingles = np.fromiter((hashed(ngram) for ngram in ngrams_of(text)), np.uint64)
        return np.array(step.get_signature(shingles.reshape(-1, 1)), np.uint64).ravel()

    return np.stack([signed(text) for text in texts])


CONTENDERS: dict[str, Callable[[list[str]], Rows]] = {
    each.__name__: each for each in (prefmill, rensa_hashed, rensa, datasketch, datatrove)
}
SLOW = ("datasketch", "datatrove")
"""They take a text a call and get a tenth of the texts."""


def memory_mb(*, anew: bool = False) -> float:
    """Return the most memory that this process has held, with ``anew`` that it holds now."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again from here
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(name: str, count: int) -> dict[str, float | str]:
    """Return one contender's figures, measured in this process."""
    texts, others = mutated_texts(count // 10 if name in SLOW else count)
    CONTENDERS[name](texts[:100])  # imports are no part of the speed
    before = memory_mb(anew=True)
    start, cpu = time.perf_counter(), time.process_time()
    rows = CONTENDERS[name](texts)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    after = memory_mb()
    compared = 2000
    chance = 1 / 256 if rows.dtype == np.uint8 else 0
    equal = (rows[:compared] == CONTENDERS[name](others[:compared])).mean(axis=1)
    error = (equal - chance) / (1 - chance) - exact(texts[:compared], others[:compared])
    return {
        "texts_per_s": len(texts) / seconds,
        "cpu_us": cpu_seconds / len(texts) * 1e6,
        "memory_mb": after - before,
        "bytes": rows.shape[1] * rows.itemsize,
        "bias": float(error.mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "digest": hashlib.sha256(rows[:1000].tobytes()).hexdigest(),
    }


def installed() -> Path:
    """Return the interpreter of the libraries' environment, made on first use."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / MARK).exists():
        print(f"installing {', '.join(PACKAGES)} into {ENVIRONMENT.relative_to(ROOT)} ...")
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        ours = ["-c", str(ROOT / "constraints.txt"), *OURS]
        pip = [str(python), "-m", "pip", "install", "-qq"]
        subprocess.run([*pip, *ours], check=True)
        subprocess.run([*pip, *PACKAGES], check=True)
        (ENVIRONMENT / MARK).touch()
    return python


def in_a_process(python: Path, name: str, count: int) -> dict[str, float | str]:
    """Return what ``measure`` gives in a fresh process on one core."""
    one_core = dict.fromkeys(("POLARS_MAX_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    seeded = os.environ | one_core | {"PYTHONHASHSEED": "random"}
    command = [str(python), __file__, "--measure", name, "--texts", str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=seeded)
    figures: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return figures


def clusters_of(count: int) -> dict[str, float | str]:
    """Return seconds and memory of signatures and clusters of ``count`` texts, a tenth mutated."""
    import polars as pl

    from stages.near_duplicates import NearDuplicateConfig, representatives, signatures

    config = NearDuplicateConfig()
    texts, others = mutated_texts(count // 10)
    draw = np.random.default_rng(1)
    rows = [*texts, *others]
    # The same words in another order have hardly an n-gram in common.
    rows += [" ".join(draw.permutation(text.split())) for text in texts for _ in range(8)]
    series = pl.Series(rows)
    del rows, texts, others
    before = memory_mb(anew=True)
    start = time.perf_counter()
    found = signatures(series, config)
    signed = time.perf_counter()
    first = representatives(found, pl.Series(range(len(found))), config)
    end = time.perf_counter()
    after = memory_mb()
    return {
        "signatures_s": signed - start,
        "seconds": end - start,
        "memory_gb": (after - before) / 1024,
        "removed": int((first != pl.Series(range(len(first)), dtype=pl.UInt32)).sum()),
    }


def table(runs: list[dict[str, dict[str, float | str]]]) -> dict[str, dict[str, float]]:
    """Print the contenders' medians; return them."""
    print(f"{'':14} texts/s  CPU us/text  extra MB  signature B     bias    RMSE  runs agree")
    medians: dict[str, dict[str, float]] = {}
    for name in CONTENDERS:
        of = [dict(run[name]) for run in runs]
        agree = "yes" if len({run.pop("digest") for run in of}) == 1 else "NO"
        middle = {key: statistics.median(float(run[key]) for run in of) for key in of[0]}
        medians[name] = middle
        print(
            f"{name:14} {middle['texts_per_s']:7,.0f}  {middle['cpu_us']:11.1f}  "
            f"{middle['memory_mb']:8.1f}  {middle['bytes']:11.0f}  {middle['bias']:+.4f}  "
            f"{middle['rmse']:.4f}  {agree:>10}"
        )
    return medians


def main() -> None:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clustered", type=int, default=1_000_000)
    parser.add_argument("--measure", choices=[*CONTENDERS, "clusters"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        clusters = asked.measure == "clusters"
        found = clusters_of(asked.texts) if clusters else measure(asked.measure, asked.texts)
        print(json.dumps(found))
        return
    from machine import last_line

    python = installed()
    repeats = range(asked.repeats)
    runs = [{n: in_a_process(python, n, asked.texts) for n in CONTENDERS} for _ in repeats]
    medians = table(runs)
    clustered = in_a_process(Path(sys.executable), "clusters", asked.clustered)
    seconds, memory = (float(clustered[key]) for key in ("seconds", "memory_gb"))
    print(
        f"{asked.clustered:,} texts: {float(clustered['signatures_s']):.1f} s to signatures, "
        f"{seconds:.1f} s to clusters, {memory:.2f} GB more, {clustered['removed']} removed"
    )
    own = medians.pop("prefmill")
    figures = {
        "speedup_over_libraries": min(m["cpu_us"] for m in medians.values()) / own["cpu_us"],
        "rmse": own["rmse"],
        "clusters_s": seconds,
        "clusters_gb": memory,
    }
    print(last_line("near_duplicates", figures, at_most=AT_MOST, at_least=AT_LEAST))


if __name__ == "__main__":
    main()
