"""The job of `curation.py` through distilabel 1.5.3; runs in an environment of its own.

Groups the answers of a prompt, formats best over worst for DPO, removes near-duplicate pairs
(prompt, chosen and rejected together, as ours) by MinHash over characters (its word tokenizer needs
a download; with words it takes as long) and writes Parquet and JSON Lines.
"""

# Without deferred annotations: distilabel reads a step's.
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
from distilabel.pipeline import Pipeline
from distilabel.steps import (
    FormatTextGenerationDPO,
    GroupColumns,
    LoadDataFromDicts,
    MinHashDedup,
    StepInput,
    step,
)
from distilabel.typing import StepOutput

ROWS_AT_ONCE = 1000


@step(inputs=["instruction", "chosen", "rejected"], outputs=["text"])
def join_texts(inputs: StepInput) -> StepOutput:
    """Give each pair its whole text."""
    for row in inputs:
        answers = [row[role][-1]["content"] for role in ("chosen", "rejected")]
        row["text"] = "\n".join([row["instruction"], *answers])
    yield inputs


def main() -> None:
    """Make pairs of the candidates in a folder of `curation.py`, print the pipeline's seconds."""
    rows = read(Path(sys.argv[1]))
    answers = [f"answer_{place}" for place in range(len(rows[0]) - 2)]
    with tempfile.TemporaryDirectory() as folder, Pipeline(cache_dir=folder) as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=ROWS_AT_ONCE)
        group = GroupColumns(
            columns=answers, output_columns=["generations"], input_batch_size=ROWS_AT_ONCE
        )
        form = FormatTextGenerationDPO(input_batch_size=ROWS_AT_ONCE)
        alone = MinHashDedup(
            tokenizer="ngrams",
            n=5,
            threshold=0.8,
            storage="dict",
            input_batch_size=ROWS_AT_ONCE,
        )
        join = join_texts(input_batch_size=ROWS_AT_ONCE)
        load >> group >> form >> join >> alone
        started = time.monotonic()
        pairs = pipeline.run(use_cache=False)["default"]["train"]
        pairs.to_parquet(Path(folder) / "pairs.parquet")
        pairs.to_json(Path(folder) / "pairs.jsonl")
        seconds = time.monotonic() - started
    print(json.dumps({"seconds": seconds, "pairs": len(pairs)}))


def read(folder: Path) -> list[dict[str, object]]:
    """Return a row per prompt: instruction, answers and ratings."""
    tables = {
        name: pq.read_table(folder / "store" / name, partitioning=None).to_pydict()
        for name in ("prompts", "candidates", "scores")
    }
    scores = dict(zip(tables["scores"]["candidate_id"], tables["scores"]["score"], strict=True))
    answers: dict[str, list[tuple[str, float]]] = defaultdict(list)
    of_candidates = (tables["candidates"][n] for n in ("prompt_id", "candidate_id", "completion"))
    for prompt, candidate, text in zip(*of_candidates, strict=True):
        answers[prompt].append((text, scores[candidate]))
    return [
        {
            "instruction": messages[0]["content"],
            **{f"answer_{place}": text for place, (text, _) in enumerate(answers[prompt])},
            "ratings": [score for _, score in answers[prompt]],
        }
        for prompt, messages in zip(
            tables["prompts"]["prompt_id"], tables["prompts"]["messages"], strict=True
        )
    ]


if __name__ == "__main__":
    main()
