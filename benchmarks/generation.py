"""Generation against bare clients and distilabel, on a local stub server and on vLLM.

Run from a clean checkout after `make test`: .venv/bin/python benchmarks/generation.py
Figures: requests/s against the `openai` client at the same concurrency, on a stub that answers
after 50 ms; seconds per 1,000 prompts against distilabel, start-up apart; output tokens/s against
bare requests to the same vLLM server (left out where `make vllm` has not been run). Ours is what a
run does: planned, asked, journaled, validated and written as Parquet; for requests/s the client
alone. Runs alternate, figures are medians, CPU is that of the client's process, and `core_share`
says how much of a core a busy loop got before each run: 1 on a machine that nobody else uses.
`cpu_ratio_to_raw` is the CPU of client and vLLM server together for a token, bare over ours.
With --full every measurement is repeated 9 times instead of 5.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import last_line
from peers import install_distilabel
from timing import in_turn, median_of, noise, timed

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

GOALS = {
    "tokens_ratio_to_raw": 0.97,
    "requests_ratio_to_openai_client": 5.0,
    "speedup_over_distilabel": 8.0,
}
IN_FLIGHT, SAMPLES, REQUESTS = 128, 8, 6000
LATENCY_MS = 50
MAX_TOKENS = 64
SIZES = (100, 2100)
"""Prompts of a short and a long job: the difference of their times has no start-up in it."""
VLLM_PROMPTS = 1280
VLLM_TRIED_PROMPTS = 320
VLLM_CONCURRENCY = (16, 32, 64, 128)


@contextlib.contextmanager
def stub() -> Iterator[str]:
    """Yield the address of a stub server in a process of its own."""
    command = [sys.executable, "benchmarks/stub_server.py", str(LATENCY_MS)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def prompts(count: int) -> pl.DataFrame:
    """Return what generation needs of a `prompts` table."""
    import polars as pl

    questions = [[{"role": "user", "content": f"question {i}"}] for i in range(count)]
    names = [f"prompt_{i:06d}" for i in range(count)]
    return pl.DataFrame(
        {"prompt_id": names, "messages": questions, "source": "benchmark", "split": "train"}
    )


def requests(count: int) -> list[Any]:
    """Return one request per prompt."""
    from stages.generation import Request

    rows = prompts(count).select("prompt_id", "messages").rows()
    return [Request(name, turns, i, SAMPLES) for i, (name, turns) in enumerate(rows)]


@contextlib.contextmanager
def engine_on(url: str, model: str, in_flight: int, *, token_ids: bool) -> Iterator[Any]:
    """Yield our engine, as it runs by default but for the concurrency."""
    from stages.endpoint_settings import EndpointConfig
    from stages.endpoints import EndpointPool
    from stages.openai_engine import KnownModel, OpenAIEngine, OpenAISettings

    with EndpointPool(EndpointConfig(base_urls=(url,), maximum_in_flight=in_flight)) as pool:
        settings = OpenAISettings(token_ids=token_ids)
        yield OpenAIEngine(pool, model, KnownModel(model, ""), settings)


def sampling_of(samples: int = SAMPLES) -> Any:
    """Return how every client samples."""
    from stages.generation_settings import Sampling

    return Sampling(samples, samples, 1.0, 1.0, MAX_TOKENS, None, 0)


def ours(url: str, asked: list[Any]) -> None:
    """Answer the requests by our engine."""
    with engine_on(url, "stub-model", IN_FLIGHT, token_ids=False) as engine:
        answers = list(chain.from_iterable(engine.answers([asked], sampling_of())))
    assert len(answers) == len(asked)
    assert not any(answer.missing for answer in answers)


def openai_client(url: str, asked: list[Any]) -> None:
    """Answer them by the `openai` client under `asyncio.gather`."""
    from openai import AsyncOpenAI

    async def run() -> None:
        turns = asyncio.Semaphore(IN_FLIGHT)
        async with AsyncOpenAI(base_url=url, api_key="none") as client:

            async def ask(one: Any) -> int:
                async with turns:
                    answer = await client.chat.completions.create(
                        model="stub-model",
                        messages=one.messages,
                        n=SAMPLES,
                        seed=one.seed,
                        temperature=1.0,
                        top_p=1.0,
                        max_tokens=MAX_TOKENS,
                    )
                return len(answer.choices)

            counts = await asyncio.gather(*map(ask, asked))
        assert set(counts) == {SAMPLES}

    asyncio.run(run())


def requests_ratio_to_openai_client(repeats: int) -> dict[str, float]:
    """Return requests/s and CPU of both clients and of bare requests, and the medians' ratio."""
    asked = requests(REQUESTS)
    with stub() as url:
        openai_client(url, asked[:IN_FLIGHT])  # the first import takes a second
        ours(url, asked[:IN_FLIGHT])
        runs = in_turn(
            repeats,
            openai_client=lambda: openai_client(url, asked),
            ours=lambda: ours(url, asked),
            bare=lambda: raw_requests(url, "stub-model", REQUESTS, IN_FLIGHT),
        )
    figures = {}
    for name, of_one in runs.items():
        figures[f"requests_per_s_{name}"] = REQUESTS / median_of(of_one, "wall")
        figures[f"cpu_ms_per_request_{name}"] = 1000 * median_of(of_one, "cpu") / REQUESTS
    ratio = median_of(runs["openai_client"], "wall") / median_of(runs["ours"], "wall")
    return {**figures, "requests_ratio_to_openai_client": ratio, **noise(runs)}


@dataclass(frozen=True)
class Started:
    """A generator whose engine is there already."""

    started: Any
    sampling: Any
    name: str = "benchmark"

    @contextlib.contextmanager
    def engine(self, *_: object) -> Iterator[Any]:
        """Yield it."""
        yield self.started


def curated(engine: Any, count: int) -> int:
    """Answer prompts as a run's `generate` stage does; return the completions' tokens."""
    from flows.answering import answer_prompts
    from flows.configuration import resolve
    from flows.stage_runner import RunContext, StageSpec, StageWriter
    from lineage.workspace import Workspace

    with tempfile.TemporaryDirectory() as folder:
        context = RunContext(Workspace(Path(folder)), "benchmark")
        spec = StageSpec("generate", 1, {}, (), ("candidates",))
        writer = StageWriter(context, spec, lambda _done, _total: None)
        generator: Any = Started(engine, sampling_of())
        answer_prompts(writer, prompts(count), generator, resolve({"name": "benchmark"}, ""))
        written = writer.read(writer.dataset("candidates"), ["completion", "completion_tokens"])
    assert written["completion"].count() == count * SAMPLES
    return int(written["completion_tokens"].sum())


def curated_on_stub(url: str, count: int) -> None:
    """Answer prompts of the stub server."""
    with engine_on(url, "stub-model", IN_FLIGHT, token_ids=False) as engine:
        curated(engine, count)


def distilabel(python: Path, url: str, count: int) -> float:
    """Return the seconds that distilabel's pipeline takes."""
    job = ROOT / "benchmarks" / "distilabel_job.py"
    arguments = [url, str(count), str(SAMPLES), str(IN_FLIGHT)]
    done = subprocess.run(
        [str(python), str(job), *arguments],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["completions"] == count * SAMPLES
    return float(measured["seconds"])


def speedup_over_distilabel(repeats: int) -> dict[str, float]:
    """Return the seconds per 1,000 prompts of both, start-up apart, and their ratio."""
    python = install_distilabel()
    per_1000 = 1000 / (SIZES[1] - SIZES[0])
    seconds: dict[str, list[float]] = {"ours": [], "distilabel": []}
    with stub() as url:
        curated_on_stub(url, IN_FLIGHT)
        for _ in range(repeats):
            theirs = [distilabel(python, url, size) for size in SIZES]
            own = [timed(lambda n=size: curated_on_stub(url, n)).wall for size in SIZES]  # type: ignore[misc]
            seconds["distilabel"].append((theirs[1] - theirs[0]) * per_1000)
            seconds["ours"].append((own[1] - own[0]) * per_1000)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds_per_1000_ours": medians["ours"],
        "seconds_per_1000_distilabel": medians["distilabel"],
        "speedup_over_distilabel": medians["distilabel"] / medians["ours"],
    }


def raw_requests(url: str, model: str, count: int, in_flight: int) -> int:
    """Answer the prompts by bare requests, nothing kept; return the completions' tokens."""
    import aiohttp
    import orjson

    waiting = iter(requests(count))

    async def worker(session: Any) -> int:
        tokens = 0
        for one in waiting:
            body = {
                "model": model,
                "messages": one.messages,
                "n": SAMPLES,
                "seed": one.seed,
                "temperature": 1.0,
                "top_p": 1.0,
                "max_tokens": MAX_TOKENS,
            }
            async with session.post(f"{url}/chat/completions", data=orjson.dumps(body)) as answer:
                tokens += orjson.loads(await answer.read())["usage"]["completion_tokens"]
        return tokens

    async def run() -> int:
        json_type = {"Content-Type": "application/json"}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, headers=json_type) as session:
            return sum(await asyncio.gather(*(worker(session) for _ in range(in_flight))))

    return asyncio.run(run())


def tokens_ratio_to_raw(repeats: int) -> dict[str, float]:
    """Return output tokens/s and CPU of both on one vLLM server, and the median ratio of pairs.

    Bare requests get the best of several concurrencies, found first; our engine finds its own.
    Client and server share the machine's cores, so that the client's own work shows.
    """
    from flows.vllm_server import DEFAULT_PYTHON, ManagedServer, ServerSpec
    from stages.endpoint_settings import EndpointConfig
    from stages.vllm_settings import VllmServerConfig

    if not DEFAULT_PYTHON.exists():
        print("tokens_ratio_to_raw is left out: run `make vllm` first")
        return {}
    with tempfile.TemporaryDirectory() as folder:
        spec = ServerSpec(str(ROOT / "data" / "tiny-model"), "tiny", VllmServerConfig())
        server = ManagedServer(spec, Path(folder) / "vllm.log")
        server.start()
        try:
            url, default = server.base_url, EndpointConfig().maximum_in_flight
            with engine_on(url, "tiny", default, token_ids=True) as engine:
                curated(engine, VLLM_TRIED_PROMPTS)  # the first import and requests are slow
                tried = {
                    n: timed(lambda n=n: raw_requests(url, "tiny", VLLM_TRIED_PROMPTS, n)).wall  # type: ignore[misc]
                    for n in VLLM_CONCURRENCY
                }
                best = min(tried, key=tried.__getitem__)
                return compared(url, engine, best, repeats)
        finally:
            server.stop()


def compared(url: str, engine: Any, in_flight: int, repeats: int) -> dict[str, float]:
    """Return what our engine and bare requests take in turn, as figures.

    Where client and server share busy cores, tokens/s go with the CPU that both need for a token:
    `cpu_ratio_to_raw` compares that, and who else uses the machine has less of a say in it.
    """
    tokens: dict[str, list[int]] = {"raw": [], "ours": []}
    runs = in_turn(
        repeats,
        raw=lambda: tokens["raw"].append(raw_requests(url, "tiny", VLLM_PROMPTS, in_flight)),
        ours=lambda: tokens["ours"].append(curated(engine, VLLM_PROMPTS)),
    )
    rates = {
        name: [count / run.wall for count, run in zip(tokens[name], runs[name], strict=True)]
        for name in runs
    }
    ratios = sorted(own / raw for own, raw in zip(rates["ours"], rates["raw"], strict=True))
    work = [
        sum((raw.cpu, raw.server_cpu)) / of_raw * of_ours / sum((own.cpu, own.server_cpu))
        for raw, own, of_raw, of_ours in zip(*runs.values(), *tokens.values(), strict=True)
    ]
    figures = {"raw_in_flight": float(in_flight), "cpu_ratio_to_raw": statistics.median(work)}
    for name, of_one in runs.items():
        figures[f"tokens_per_s_{name}"] = statistics.median(rates[name])
        figures[f"cpu_ms_per_request_on_vllm_{name}"] = (
            1000 * median_of(of_one, "cpu") / VLLM_PROMPTS
        )
    return {
        **figures,
        "tokens_ratio_to_raw": statistics.median(ratios),
        "tokens_ratio_lowest": ratios[0],
        "tokens_ratio_highest": ratios[-1],
        **{f"{name}_on_vllm": value for name, value in noise(runs).items()},
    }


def main() -> None:
    """Measure, print a table, end with the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="9 repetitions")
    parser.add_argument("--only", choices=sorted(GOALS), help="one of the figures with a goal")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    for measure in (requests_ratio_to_openai_client, speedup_over_distilabel, tokens_ratio_to_raw):
        if options.only in {None, measure.__name__}:
            figures |= measure(9 if options.full else 5)
    for name, value in figures.items():
        print(f"{name:<34} {value:9.2f}")
    print(last_line("generation", figures, at_least=GOALS))


if __name__ == "__main__":
    main()
