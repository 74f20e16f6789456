from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import pytest

from flows.artifacts import artifact_key, funnel_rows, literal, show_run, summary
from lineage.database import publish
from lineage.workspace import Workspace
from tests.flows.report_samples import RUN, full
from tests.lineage.small_workspace import write_small_workspace

HOSTILE = "a_b *c* [d](http://e) `f` <img src=x> &lt; | # g\n\n1. h \\ www.i.org"


@pytest.mark.parametrize(
    ("name", "key"), [("demo", "demo"), ("It's Ünï_1 ", "it-s-n-1"), ("\u540d", "run")]
)
def test_a_key_has_only_what_prefect_allows(name, key):
    assert artifact_key(name) == key


def test_markdown_obeys_nothing_in_a_text():
    assert literal(HOSTILE) == (
        "a\\_b \\*c\\* \\[d\\]\\(http\\:\\/\\/e\\) \\`f\\` &lt;img src\\=x&gt; &amp;lt\\; \\| "
        "\\# g 1\\. h \\\\ www\\.i\\.org"
    )
    html = rendered(literal(HOSTILE))
    assert re.findall(r"<\w+", html) == ["<p"], "no emphasis, link, code, image or heading"


def rendered(markdown):
    from markdown_it import MarkdownIt

    return MarkdownIt("gfm-like", {"linkify": False}).render(markdown)


def test_the_summary_tells_verdict_gate_checks_and_places():
    text = summary(full("plain"), Path("/w/runs/r/report.html"))
    html = rendered(text)
    assert "<h2>Promoted</h2>" in html
    assert "Held-out success rose from 31.2 % to 45.0 %." in html
    assert re.search(r"<td>plain</td>\s*<td[^>]*>0.1</td>\s*<td[^>]*>0</td>\s*<td>yes</td>", html)
    assert "<li>plain, plain: plain</li>" in html, "the expectation that does not hold"
    assert "<p>Report: /w/runs/r/report.html</p>" in html


def test_the_summary_of_a_failed_run_says_what_to_do_and_is_only_text():
    run = {**RUN, "status": "failed", "error": f"DataError: {HOSTILE}. To mend it: {HOSTILE}."}
    html = rendered(summary(replace(full(HOSTILE), run=run), Path("/w")))
    assert "What to do: a_b *c* [d]" in html
    assert not re.findall(r"<(img|a|code|em)\b", html)


def test_the_funnel_has_a_row_a_step():
    rows = funnel_rows(full("short"))
    assert [(r["step"], r["rows"]) for r in rows] == [
        ("prompts", 10), ("pairs", 8), ("dropped: short", 3), ("kept", 5),
    ]  # fmt: skip
    assert rows[-1]["share"] == "62.5\u202f% of pairs"


def test_a_flow_leaves_its_artifacts_with_prefect(prefect_server, tmp_path):
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    workspace = Workspace(tmp_path)
    write_small_workspace(workspace)
    publish(workspace)

    async def stored():
        async with get_client() as client:
            return {found.key: found for found in await client.read_artifacts()}

    with temporary_settings({PREFECT_API_URL: prefect_server}):
        flow(show_run, name="shows", validate_parameters=False)(workspace, "dpo_round_b2")
        found = asyncio.run(stored())
    assert found["small-round-funnel"].type == "table"
    assert "report.html" in found["small-round-report"].data
    assert found["small-round-summary"].description == "dpo_round_b2"
    assert (tmp_path / "runs" / "dpo_round_b2" / "report.html").is_file()


def test_outside_a_flow_only_the_pages_are_written(tmp_path):
    workspace = Workspace(tmp_path)
    write_small_workspace(workspace)
    publish(workspace)
    assert show_run(workspace, "refresh_a1").read_text().startswith("<!DOCTYPE html>")
