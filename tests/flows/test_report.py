from __future__ import annotations

import re
from html.parser import HTMLParser

import polars as pl
import pytest

from flows import report_charts, report_svg
from flows.report import write_report
from flows.report_data import report_run
from flows.report_examples import differences, examples
from flows.report_facts import ReportData
from flows.report_graph import Node, lineage_plot
from flows.report_tables import costs, filters, funnels, with_labels
from flows.report_verdict import verdict
from lineage.database import publish
from lineage.workspace import Workspace
from stages.errors import DataError
from stages.tables import EVALUATIONS, GATES, ROUNDS
from tests.flows.report_samples import (
    HOSTILE,
    RUN,
    evaluation,
    example,
    filter_rows,
    full,
    make_pairs,
    table,
)
from tests.lineage.small_workspace import write_small_workspace

PLOTS_OF_FULL = 11

SHOWN = (
    "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;{{7*7}}[U+202E][U+0007]&#34;&#39;&amp;]]&gt;"
)


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


@pytest.fixture(scope="module")
def full_page(tmp_path_factory):
    return written(full(), tmp_path_factory.mktemp("full"))


def test_a_full_report_shows_every_part(full_page):
    page = full_page
    headings = re.findall(r"<h2 id=\"(\w+)\"", page)
    assert headings == [
        "gate", "lift", "capabilities", "funnel", "pairs", "scorers", "noise", "training",
        "examples", "effort", "record",
    ]  # fmt: skip
    assert page.count("<svg ") == PLOTS_OF_FULL
    assert "Held-out success rose from 31.2\u202f% to 45.0\u202f%." in page
    assert "took 3 min 02 s" in page


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
        report_svg.inlined("x", "<svg><script>alert(1)</script></svg>")
    with pytest.raises(ValueError, match="onload"):
        report_svg.inlined("x", '<svg onload="alert(1)"></svg>')


def test_the_page_asks_for_nothing_from_outside(full_page):
    page = full_page
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
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["report.html"]


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
        rounds=table(ROUNDS, ("r1", 1, "e", "b", "b", "policy", "c", "models/c", 5, 3, promoted)),
    )
    found = verdict(data)
    assert found.state == state
    assert words in found.headline
    assert ("includes no change" in found.detail[1]) == (low < 0 < high)
    assert ("Not met: lower_end" in found.detail[0]) == (low <= 0)


def test_a_policy_promoted_by_force_is_called_so():
    data = ReportData(
        run=RUN,
        evaluations=table(EVALUATIONS, evaluation(-0.02, 0.18)),
        gates=table(GATES, ("r1", "lower_end", -0.02, 0.0, False)),
        rounds=table(ROUNDS, ("r1", 1, "e", "b", "b", "policy", "c", "models/c", 5, 3, True)),
    )
    assert verdict(data).label == "Promoted by force"


def test_a_stratum_that_measurably_fell_is_marked(tmp_path):
    sums = ("r1", "success", "sampled", "sums", 100, 0.5, 0.4, -0.1, -0.15, -0.05)
    sorts = ("r1", "success", "sampled", "sorts", 100, 0.5, 0.4, -0.1, -0.25, 0.05)
    rows = table(EVALUATIONS, evaluation(0.1, 0.2), sums, sorts)
    page = written(ReportData(run=RUN, evaluations=rows), tmp_path)
    assert 'sums <span class="tag broken">fell</span>' in page
    assert "sorts <span" not in page


def test_a_failed_run_says_what_where_and_what_to_do(tmp_path):
    error = DataError("no pairs", expected="some. Or more", where="stage pair", remedy="loosen it")
    run = {**RUN, "status": "failed", "error": f"DataError: {error}"}
    stages = full().stage_runs.with_columns(stage=pl.lit("score"))
    data = ReportData(
        run=run, failed_stage="pair", stage_runs=stages, validations=full().validations
    )
    found = verdict(data)
    assert (found.label, found.headline) == ("Failed", "This run failed in stage pair.")
    assert found.error == (
        ("What happened", "DataError: no pairs."),
        ("Expected", "some. Or more."),
        ("Where", "stage pair."),
        ("What to do", "loosen it."),
        ("How far it came", "The last finished stage is score; 1 are finished."),
    )
    page = written(data, tmp_path)
    assert page.index("loosen it.") < page.index("<h2"), "it stands before all else"


def test_an_error_of_another_kind_is_told_whole():
    found = verdict(ReportData(run={**RUN, "status": "failed", "error": "KeyError: <b>"}))
    assert found.error[0] == ("What happened", "KeyError: <b>")
    assert found.error[1] == ("How far it came", "No stage is finished.")


def test_a_run_under_way_and_one_not_filtered_say_so():
    assert verdict(ReportData(run={**RUN, "status": "running"})).label == "Running"
    pairs = make_pairs().with_columns(kept=pl.lit(None, pl.Boolean))
    found = verdict(ReportData(run=RUN, pairs=pairs))
    assert found.headline == "40 pairs were made and not filtered."
    assert report_svg.PURPLE in report_charts.margins(pairs)


def test_a_card_alone_tells_what_regressed():
    card = full("copying").capabilities
    found = verdict(ReportData(run=RUN, capabilities=card))
    assert found.detail == ("Regressed: copying, copying, all of copying.",)
    found = verdict(ReportData(run=RUN, capabilities=card.with_columns(regressed=False)))
    assert found.headline == "No capability has regressed."


def test_the_last_of_several_rounds_is_shown(tmp_path):
    rounds = table(
        ROUNDS,
        ("r2", 2, "e2", "w1", "w1", "policy", "w2", "m/2", 5, 3, False),
        ("r1", 1, "e1", "w0", "w0", "policy", "w1", "m/1", 5, 3, True),
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
        ReportData(
            run=RUN, funnel=full().funnel, filters=frame.sample(fraction=1, shuffle=True, seed=1)
        ),
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


def test_a_text_that_was_removed_is_said_to_be():
    (shown,) = examples(example(chosen=None))
    assert shown["chosen"] == ([("", False)], "the text is not stored any more")


def test_the_lineage_graph_names_stages_and_their_rows_in_order():
    nodes = (
        Node("prompts", "a", (), "prompts", 10, 1.0),
        Node("generate", "b", ("a",), "candidates", 1234, 65.0),
        Node("pair", "c", ("a", "b"), "pairs", 5, 0.1, reused=True),
    )
    plot = lineage_plot(nodes)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", plot)
    assert texts == [
        "prompts", "10 prompts", "1.0\u202fs", "generate", "1,234 candidates", "1 min 05 s",
        "pair", "5 pairs", "reused",
    ]  # fmt: skip
    # prompts to pair repeats prompts, generate, pair: two of the three arcs are strong.
    assert (plot.count("<path"), plot.count("stroke-width")) == (3, 2)
    assert lineage_plot(()) is None


def test_what_a_run_took_by_hand():
    # 0.25 for 30 pairs kept of 40: 8.33 a thousand.
    found = dict(costs(full()))
    assert found["Cost at the configured prices"] == "0.25 (8.33 per 1,000 pairs kept)"
    assert found["Tokens written by models"] == "1,500 (50,000 per 1,000 pairs kept)"


def test_how_a_scorer_sees_the_labels_by_hand():
    assert with_labels(full("a").judged_margins) == {
        "a": "The chosen one scores higher in 50.0\u202f% of pairs, lower in 25.0\u202f%.",
        "b": "The chosen one scores higher in 100.0\u202f% of pairs, lower in 0.0\u202f%.",
    }


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


@pytest.mark.parametrize("broken", [b"PAR1 cut short", None])
def test_a_broken_part_file_is_an_error_that_names_the_run(tmp_path, broken):
    workspace = Workspace(tmp_path)
    write_small_workspace(workspace)
    for part in workspace.store.glob("pairs/*/*.parquet"):
        part.write_bytes(broken) if broken else part.unlink()
    publish(workspace)  # sets the part aside
    with pytest.raises(DataError, match=r"cannot be read.*run refresh_a1.*start the run again"):
        report_run(workspace, "refresh_a1")
