"""Small files of prompts, and sampling from them."""

import json

from stages.prompt_sampling import PromptSamplingConfig, sample
from stages.prompt_sources import FileSource


def sampled(*sources, seed=0):
    return sample(PromptSamplingConfig(sources=sources, seed=seed)).prompts


def file_source(path, name="mine", **rest):
    return FileSource(name=name, path=path, **rest)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def numbered(path, count, strata=("all",)):
    topics = [strata[i % len(strata)] for i in range(count)]
    return jsonl(path, [{"prompt": f"Prompt {i}", "topic": t} for i, t in enumerate(topics)])
