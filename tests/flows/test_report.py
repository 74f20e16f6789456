from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import polars as pl
import pytest

from flows import report_charts
from flows.report import (
    ReportData,
    differences,
    examples,
    filters,
    funnels,
    verdict,
    write_report,
)
from stages.tables import EVALUATIONS, GATES, ROUNDS, STAGE_RUNS, VALIDATIONS

HOSTILE = "<script>alert('x')</script>{{7*7}}\u202e\x07\"'&]]>"
SHOWN = (
    "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;{{7*7}}[U+202E][U+0007]&#34;&#39;&amp;]]&gt;"
)
RUN = {
    "run_id": "dpo_round-1", "flow": "dpo_round", "name": "demo", "round_index": 1,
    "code_version": "0.1.0", "status": "completed", "error": None,
    "started_at": datetime(2026, 11, 21, 9, 30, tzinfo=UTC),
    "ended_at": datetime(2026, 11, 21, 9, 33, 2, tzinfo=UTC),
}  # fmt: skip


def table(schema, *rows):
    return pl.DataFrame(rows, schema=schema.empty().schema, orient="row")


def evaluation(low, high, *, decoding="sampled", stratum="all", before=0.312, after=0.45):
    difference = after - before
    return ("r1", "success", decoding, stratum, 500, before, after, difference, low, high)


def make_pairs(rows=40):
    i = pl.int_range(rows)
    return pl.select(
        pair_id="p" + i.cast(pl.String), stratum=pl.lit("copying"), split=pl.lit("train"),
        scorer=pl.lit("rules"), margin=i / rows, chosen_score=i / rows, rejected_score=i * 0.0,
        chosen_tokens=i % 7 + 1, rejected_tokens=i % 5 + 1, kept=i >= rows // 4,
        reasons=pl.lit([], pl.List(pl.String)),
    )  # fmt: skip


def example(kind="best kept", prompt="Count.", chosen="1 2 3", rejected="1 2 4"):
    columns = ["kind", "pair_id", "prompt", "chosen", "rejected"]
    row = pl.DataFrame([[kind, "p1", prompt, chosen, rejected]], schema=columns, orient="row")
    return row.with_columns(margin=0.5, chosen_score=1.0, rejected_score=0.5)


def filter_rows(*filters):
    """Return `filter_funnel` of one split from (filter, drops, pairs left)."""
    rows = [
        {"split": "train", "position": place, "filter": name, "reason": name, "limit": None,
         "pairs_in": drops + out, "first_drops": drops, "pairs_out": out, "rulings": drops,
         "only_drops": drops, "unmeasured": 0}
        for place, (name, drops, out) in enumerate(filters)
    ]  # fmt: skip
    return pl.DataFrame(rows)


def full(text="plain"):
    """Return a report's data with ``text`` wherever data may hold any text."""
    stratum = [evaluation(0.1, 0.2), evaluation(-0.1, 0.2, stratum=text, decoding="greedy")]
    metrics = [("r1", s, m, 1.0 / s) for s in (1, 2, 3) for m in ("loss", "rewards/chosen", text)]
    return ReportData(
        run={**RUN, "name": text},
        funnel=pl.DataFrame(
            [("train", 0, "prompts", 10), ("train", 1, "pairs", 8),
             ("train", 2, f"dropped: {text}", 3), ("train", 3, "kept", 5)],
            schema=["split", "position", "step", "rows"], orient="row",
        ),
        filters=filter_rows((text, 3, 5)),
        pairs=make_pairs().with_columns(stratum=pl.lit(text), scorer=pl.lit(text)),
        examples=pl.concat([example(f"dropped: {text}", text, text, text + " more"), example()]),
        training_metrics=pl.DataFrame(
            metrics, schema=["round_id", "step", "metric", "value"], orient="row"
        ),
        evaluations=table(EVALUATIONS, *stratum),
        gates=table(GATES, ("r1", text, 0.1, 0.0, True)),
        rounds=table(ROUNDS, ("r1", 1, "e1", text, text, text, text, 5, 3, True)),
        validations=table(VALIDATIONS, (text, text, text, "should", False, 10, 1, text))
        .with_columns(stage=pl.lit(text)),
        stage_runs=table(STAGE_RUNS, ("x", text, 0, text, "reused", text, 2.5, RUN["ended_at"])),
        config={text: [text]},
    )  # fmt: skip


class Page(HTMLParser):
    """Collects the elements and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.attributes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def written(data, tmp_path):
    return write_report(data, tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_full_report_shows_every_part(tmp_path):
    page = written(full(), tmp_path)
    headings = re.findall(r"<h2 id=\"(\w+)\"", page)
    assert headings == ["gate", "lift", "funnel", "pairs", "training", "examples", "record"]
    assert page.count("<svg ") == 7
    assert "Held-out success rose from 31.2\u202f% to 45.0\u202f%." in page
    assert "took 3 min 02 s" in page
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["report.html"]


def test_texts_from_data_are_only_ever_text(tmp_path):
    page = written(full(HOSTILE), tmp_path)
    parsed = Page(page)
    assert "script" not in parsed.elements
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert page.count(SHOWN) > 15
    assert "{{7*7}}" in parsed.text
    assert not set(page) & set("\u202e\x07")


def test_a_hostile_stratum_is_escaped_in_the_plot():
    plot = report_charts.lift(
        table(EVALUATIONS, evaluation(0.1, 0.2, stratum="</text><script>alert(1)</script>")), True
    )
    assert "<script" not in plot
    assert "&lt;/text&gt;&lt;script&gt;" in plot


def test_a_plot_with_more_than_drawing_is_refused():
    with pytest.raises(ValueError, match="<script>"):
        report_charts._inlined("x", "<svg><script>alert(1)</script></svg>")
    with pytest.raises(ValueError, match="onload"):
        report_charts._inlined("x", '<svg onload="alert(1)"></svg>')


def test_the_page_asks_for_nothing_from_outside(tmp_path):
    page = written(full(), tmp_path)
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "default-src 'none'" in page
    assert not {"link", "img", "iframe", "object"} & set(Page(page).elements)


@pytest.mark.parametrize("columns", [True, False])
def test_a_run_with_nothing_still_has_a_report(tmp_path, columns):
    everything = full()
    frames = {
        name: value.clear() if columns else pl.DataFrame()
        for name, value in vars(everything).items()
        if isinstance(value, pl.DataFrame)
    }
    page = written(ReportData(run={"name": "empty"}, **frames), tmp_path)
    assert "No pairs were made." in page
    assert "No model was trained." in page
    assert "<svg" not in page


def test_a_long_completion_is_shortened_and_says_so(tmp_path):
    data = ReportData(run=RUN, examples=example(chosen="word " * 20_480, rejected="x" * 102_400))
    page = written(data, tmp_path)
    assert page.count("shortened: 2,000 of 102,400 characters") == 2
    assert len(page) < 40_000


@pytest.mark.parametrize(
    ("low", "high", "promoted", "state", "words"),
    [
        (0.10, 0.18, True, "promoted", "rose from"),
        (-0.02, 0.18, False, "held", "did not change measurably"),
        (-0.18, -0.1, False, "held", "fell from"),
        (-0.02, 0.18, True, "promoted", "did not change measurably"),
    ],
)
def test_the_verdict_says_no_more_than_the_interval(low, high, promoted, state, words):
    data = ReportData(
        run=RUN,
        evaluations=table(EVALUATIONS, evaluation(low, high)),
        gates=table(GATES, ("r1", "lower_end", low, 0.0, low > 0)),
        rounds=table(ROUNDS, ("r1", 1, "e", "b", "b", "c", "models/c", 5, 3, promoted)),
    )
    found = verdict(data)
    assert found.state == state
    assert words in found.headline
    assert ("includes no change" in found.detail[0]) == (low < 0 < high)
    assert any("Not met: lower_end" in line for line in found.detail) == (low <= 0)


def test_a_policy_promoted_by_force_is_called_so():
    data = ReportData(
        run=RUN,
        evaluations=table(EVALUATIONS, evaluation(-0.02, 0.18)),
        gates=table(GATES, ("r1", "lower_end", -0.02, 0.0, False)),
        rounds=table(ROUNDS, ("r1", 1, "e", "b", "b", "c", "models/c", 5, 3, True)),
    )
    assert verdict(data).label == "Promoted by force"


def test_a_stratum_that_measurably_fell_is_marked(tmp_path):
    sums = ("r1", "success", "sampled", "sums", 100, 0.5, 0.4, -0.1, -0.15, -0.05)
    sorts = ("r1", "success", "sampled", "sorts", 100, 0.5, 0.4, -0.1, -0.25, 0.05)
    rows = table(EVALUATIONS, evaluation(0.1, 0.2), sums, sorts)
    page = written(ReportData(run=RUN, evaluations=rows), tmp_path)
    assert 'sums <span class="tag broken">fell</span>' in page
    assert "sorts <span" not in page


def test_a_failed_run_says_so_first():
    found = verdict(ReportData(run={**RUN, "status": "failed", "error": "disk full"}))
    assert (found.label, found.detail) == ("Failed", ("disk full",))


def test_the_last_of_several_rounds_is_shown(tmp_path):
    rounds = table(
        ROUNDS,
        ("r2", 2, "e2", "w1", "w1", "w2", "m/2", 5, 3, False),
        ("r1", 1, "e1", "w0", "w0", "w1", "m/1", 5, 3, True),
    )
    second = ("r2", "success", "sampled", "all", 500, 0.45, 0.46, 0.01, -0.01, 0.03)
    data = ReportData(
        run=RUN, rounds=rounds, evaluations=table(EVALUATIONS, evaluation(0.1, 0.2), second)
    )
    assert verdict(data).state == "held"
    assert '<h2 id="rounds">' in written(data, tmp_path)


def test_what_else_changed_is_told(tmp_path):
    longer = ("r1", "completion_tokens", "sampled", "all", 500, 20.0, 31.5, 11.5, 10.1, 12.9)
    data = ReportData(run=RUN, evaluations=table(EVALUATIONS, evaluation(0.1, 0.2), longer))
    page = written(data, tmp_path)
    assert "completion tokens</th>" in page
    assert "10.1 to 12.9" in page


def test_every_filter_shows_what_it_leaves(tmp_path):
    frame = filter_rows(("margin", 3, 9), ("secrets", 0, 9), ("language", 6, 3))
    page = write_report(
        replace(full(), filters=frame.sample(fraction=1, shuffle=True, seed=1)),
        tmp_path / "report.html",
    ).read_text()
    table = page[page.index("What each filter leaves") :]
    table = table[: table.index("</table>")]
    names = re.findall(r'<th scope="row">(\w+)</th>', table)
    assert names == ["margin", "secrets", "language"]
    assert re.findall(r"width:([\d.]+)%", table) == ["75.00", "75.00", "25.00"]
    assert filters(frame.with_columns(rulings=0)) == filters(pl.DataFrame()) == {}


def test_funnel_steps_compare_with_what_they_came_from():
    rows = [("prompts", 10), ("candidates", 80), ("pairs", 20), ("dropped: a_b", 5), ("kept", 15)]
    frame = pl.DataFrame(
        [("train", i, step, n) for i, (step, n) in enumerate(rows)],
        schema=["split", "position", "step", "rows"], orient="row",
    )  # fmt: skip
    (funnel,) = funnels(frame)
    notes = [step["note"].replace("\u202f", " ") for step in funnel["steps"]]
    assert notes == [
        "",
        "8 per prompt",
        "25.0 % of candidates",
        "25.0 % of pairs",
        "75.0 % of pairs",
    ]
    assert [step["width"] for step in funnel["steps"]] == [12.5, 100, 25, 6.25, 18.75]
    assert [step["name"] for step in funnel["steps"] if step["dropped"]] == ["a_b"]


def test_differences_are_by_word_and_lose_nothing():
    first, second = "the red  fox\nruns fast", "the blue  fox\nruns"
    marked = differences(first, second)
    assert ["".join(text for text, _ in side) for side in marked] == [first, second]
    assert [[text for text, own in side if own] for side in marked] == [["red", "fast"], ["blue"]]


def test_texts_with_nothing_in_common_are_not_marked():
    assert differences("a b c", "x y z") == ([("a b c", False)], [("x y z", False)])
    assert differences("", "") == ([], [])


def test_an_empty_completion_is_called_empty():
    (shown,) = examples(example(rejected=""))
    assert shown["rejected"] == ([("", False)], "empty")


def test_length_preference_by_hand():
    gaps = [(9, 1, True), (9, 1, True), (1, 9, True), (5, 5, True), (40, 1, False)]
    pairs = pl.DataFrame(gaps, schema=["chosen_tokens", "rejected_tokens", "kept"], orient="row")
    rows = report_charts.length_preference_rows(pairs)
    assert rows.select("gap", "state", "n").rows() == [("5-16", "kept", 3), ("17-64", "dropped", 1)]
    # Wilson at 2 of 3: centre (2/3 + 3.8416/6) / (1 + 3.8416/3) = 0.5731, half width 0.3654.
    assert rows["low"][0] == pytest.approx(0.2077, abs=2e-4)
    assert rows["high"][0] == pytest.approx(0.9385, abs=2e-4)


def test_bins_count_every_pair_once_and_outliers_at_the_ends():
    values = pl.DataFrame({"value": [*(i / 1000 for i in range(1000)), 1e9, float("inf")]})
    bins = report_charts._binned(values.with_columns(state=pl.lit("kept")))
    assert sum(b["pairs"] for b in bins) == 1001
    assert len(bins) <= report_charts.MAX_BINS + 2
    assert bins[-1]["end"] < 2


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_equal_margins_are_drawn(margin):
    assert "<svg" in report_charts.margins(make_pairs().with_columns(margin=margin))


@pytest.mark.browser
def test_chromium_shows_a_script_as_text(tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    path = write_report(full("<script>document.title='broken'</script>"), tmp_path / "r.html")
    arguments = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run([chromium, *arguments], capture_output=True, timeout=60, check=True)
    page = Page(done.stdout.decode())
    assert "script" not in page.elements
    assert "<title>broken" not in done.stdout.decode()
    assert page.elements.count("svg") == 7
