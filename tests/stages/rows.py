"""Tables from the few columns that a test is about; the others get a plain value."""

import polars as pl
import pyarrow as pa

from stages.tables import CANDIDATES, MESSAGES, PAIRS, PROMPTS, SCORES

PLAIN = {
    pa.string(): "x",
    pa.int64(): 1,
    pa.float64(): 0.0,
    pa.bool_(): True,
    MESSAGES: [{"role": "user", "content": "Hello?"}],
}


def table_of(table, records):
    """Return ``records`` as rows of ``table``."""
    plain = {c.name: None if c.nullable else PLAIN.get(c.type) for c in table.columns}
    unknown = {name for record in records for name in record} - set(plain)
    assert not unknown, f"{table.name} has no {unknown}"
    return pl.DataFrame([plain | record for record in records], schema=table.empty().schema)


def prompts(*records):
    return table_of(PROMPTS, [{"split": "train", **record} for record in records])


def candidates(*records):
    return table_of(CANDIDATES, [{"finish_reason": "stop", **record} for record in records])


def scores(by_prompt, scorer="rules"):
    """Return `scores` from {prompt id: {candidate id: score}}."""
    records = [
        {"prompt_id": prompt, "candidate_id": candidate, "scorer": scorer, "score": score}
        for prompt, of_prompt in by_prompt.items()
        for candidate, score in of_prompt.items()
    ]
    return table_of(SCORES, records)


def candidates_of(by_prompt):
    """Return `candidates` for the same {prompt id: {candidate id: score}}."""
    return candidates(
        *(
            {"prompt_id": p, "candidate_id": c}
            for p, of_prompt in by_prompt.items()
            for c in of_prompt
        )
    )


def pairs(*records):
    return table_of(PAIRS, list(records))


def shuffled(frame, seed):
    return frame.sample(fraction=1, shuffle=True, seed=seed)
