"""What the lineage of a workspace says, a question a cell.

    marimo edit docs/analyst_notebook.py -- --workspace FOLDER

PREFMILL_WORKSPACE names the folder as well; without either it is `prefmill-workspace`.
"""

import marimo

app = marimo.App(width="medium", app_title="prefmill: what a run made")


@app.cell
def _():
    import os
    from pathlib import Path

    import altair as alt
    import marimo as mo

    from lineage.query import query
    from lineage.workspace import Workspace
    from stages.errors import PrefmillError

    folder = mo.cli_args().get("workspace") or os.environ.get("PREFMILL_WORKSPACE")
    workspace = Workspace(Path(str(folder or "prefmill-workspace")))

    def shown(title, frame, chart=None):
        """A heading, the chart and the rows; values are text, never markup."""
        heading = mo.md(f"## {title}")
        if frame.is_empty():
            return mo.vstack([heading, mo.plain_text("Nothing of that yet.")])
        charts = [] if chart is None else [chart]
        table = mo.ui.table(frame, selection=None, page_size=20)
        return mo.vstack([heading, *charts, table])

    return PrefmillError, alt, mo, query, shown, workspace


@app.cell
def _(PrefmillError, mo, query, workspace):
    # Every question asks through this cell, so that none is asked before there is a run.
    def ask(sql, *values):
        return query(workspace, sql, values)

    try:
        runs = ask("FROM runs ORDER BY started_at DESC")
        missing = "There is no run yet. `prefmill demo` makes one." if runs.is_empty() else ""
    except PrefmillError as error:
        runs, missing = None, str(error)
    mo.stop(
        bool(missing),
        mo.vstack([mo.md("# Nothing to show yet"), mo.plain_text(f"{workspace.root}\n{missing}")]),
    )
    chosen = mo.ui.dropdown(runs["run_id"].to_list(), value=runs["run_id"][0], label="Run")
    mo.vstack([mo.md("# What a run made"), mo.plain_text(str(workspace.root)), chosen])
    return ask, chosen


@app.cell
def _(ask, chosen, shown):
    shown(
        "The run",
        ask(
            "SELECT run_id, flow, name, round_index, status, started_at, ended_at, error "
            "FROM runs WHERE run_id = ?",
            chosen.value,
        ),
    )
    return


@app.cell
def _(alt, ask, chosen, shown):
    funnel = ask("FROM funnel WHERE run_id = ? ORDER BY split, position", chosen.value)
    steps = alt.Chart(funnel).mark_bar().encode(
        alt.X("rows:Q"),
        alt.Y("step:N", sort=alt.EncodingSortField("position"), title=None),
        alt.Row("split:N"),
        tooltip=["split", "step", "rows"],
    )  # fmt: skip
    shown("What was left after each step?", funnel, steps)
    return


@app.cell
def _(ask, chosen, shown):
    filters = ask("FROM filter_funnel WHERE run_id = ? ORDER BY split, position", chosen.value)
    shown("What did each filter find, and which one could go?", filters)
    return


@app.cell
def _(alt, ask, chosen, shown):
    # Binned in the database: the notebook holds 30 rows, of a million pairs too.
    binned = """
        WITH p AS (SELECT margin, kept FROM pair_quality WHERE run_id = ?),
        w AS (
            SELECT min(margin) AS low, greatest(max(margin) - min(margin), 1e-9) / 30 AS width
            FROM p
        )
        SELECT
            low + width * least(floor((margin - low) / width), 29) AS bin_start,
            bin_start + any_value(width) AS bin_end,
            CASE WHEN kept IS NULL THEN 'not filtered' WHEN kept THEN 'kept' ELSE 'dropped' END
                AS fate,
            count(*) AS pairs
        FROM p, w
        GROUP BY bin_start, fate
        ORDER BY bin_start, fate
    """
    margins = ask(binned, chosen.value)
    bars = alt.Chart(margins).mark_bar().encode(
        alt.X("bin_start:Q", bin="binned", title="margin"),
        alt.X2("bin_end:Q"),
        alt.Y("pairs:Q"),
        alt.Color("fate:N", title=None),
        tooltip=["bin_start", "fate", "pairs"],
    )  # fmt: skip
    shown("How far apart are chosen and rejected?", margins, bars)
    return


@app.cell
def _(ask, chosen, shown):
    quality = ask(
        "SELECT source, stratum, split, count(*) AS pairs, avg(kept::INTEGER) AS kept_share, "
        "avg(margin) AS mean_margin, avg(confidence) AS mean_confidence, "
        "avg(length_gap) AS mean_length_gap "
        "FROM pair_quality WHERE run_id = ? GROUP BY ALL ORDER BY ALL",
        chosen.value,
    )
    shown("How good are the pairs of each stratum?", quality)
    return


@app.cell
def _(alt, ask, chosen, shown):
    sources = ask("FROM source_yield WHERE run_id = ?", chosen.value)
    yields = alt.Chart(sources).mark_bar().encode(
        alt.X("kept_per_100_prompts:Q", title="kept pairs per 100 prompts"),
        alt.Y("stratum:N", sort="-x", title=None),
        alt.Row("source:N"),
        alt.Color("split:N"),
        alt.YOffset("split:N"),
        tooltip=["source", "stratum", "split", "prompts", "kept"],
    )  # fmt: skip
    shown("Which prompts are worth sampling?", sources, yields)
    return


@app.cell
def _(ask, chosen, shown):
    bias = ask("FROM length_bias WHERE run_id = ?", chosen.value)
    shown("Does length tell the chosen answer?", bias)
    return


@app.cell
def _(ask, chosen, shown):
    health = ask("FROM judge_health WHERE run_id = ?", chosen.value)
    shown("How far can each scorer be trusted?", health)
    return


@app.cell
def _(ask, chosen, shown):
    noise = ask("FROM run_noise WHERE run_id = ?", chosen.value)
    shown("How many labels are wrong?", noise)
    return


@app.cell
def _(alt, ask, chosen, shown):
    drift = ask(
        "FROM drift WHERE name = (SELECT name FROM runs WHERE run_id = ?) AND statistic = 'mean'",
        chosen.value,
    )
    history = alt.Chart(drift).mark_line(point=True).encode(
        alt.X("started_at:T", title=None),
        alt.Y("value:Q", title="mean").scale(zero=False),
        alt.Facet("measure:N", columns=3),
        tooltip=["run_id", "measure", "value"],
    )  # fmt: skip
    shown(
        "Have the runs of this name moved?",
        drift,
        history.properties(width=180, height=110).resolve_scale(y="independent"),
    )
    return


@app.cell
def _(ask, shown):
    strategies = ask("FROM strategy_comparison")
    shown("Which way of pairing makes the better dataset? (all sweeps)", strategies)
    return


@app.cell
def _(alt, ask, chosen, shown):
    cost = ask("FROM cost WHERE run_id = ? ORDER BY position", chosen.value)
    times = alt.Chart(cost).mark_bar().encode(
        alt.X("seconds:Q"),
        alt.Y("stage:N", sort=alt.EncodingSortField("position"), title=None),
        alt.Color("reused:N"),
        tooltip=["stage", "seconds", "prompt_tokens", "completion_tokens", "cost"],
    )  # fmt: skip
    shown("What did it take?", cost, times)
    return


@app.cell
def _(alt, ask, chosen, shown):
    curves = ask("FROM training_curves WHERE run_id = ?", chosen.value).drop("metrics")
    measures = ["loss", "reward_margin", "reward_accuracy", "kl"]
    long = curves.unpivot(on=measures, index="step", variable_name="measure").drop_nulls()
    lines = alt.Chart(long).mark_line(point=True).encode(
        alt.X("step:Q"),
        alt.Y("value:Q", title=None).scale(zero=False),
        alt.Facet("measure:N", columns=2, sort=measures),
        tooltip=["step", "measure", "value"],
    )  # fmt: skip
    shown(
        "How did training go?",
        curves,
        lines.properties(width=260, height=140).resolve_scale(y="independent"),
    )
    return


@app.cell
def _(alt, ask, chosen, shown):
    rounds = ask(
        "FROM rounds WHERE name = (SELECT name FROM runs WHERE run_id = ?) ORDER BY round_index",
        chosen.value,
    )
    base = alt.Chart(rounds).encode(alt.X("round_index:O", title="round"))
    interval = base.mark_errorbar().encode(
        alt.Y("sampled_low:Q", title="gain in held-out success"), alt.Y2("sampled_high:Q")
    )
    points = base.mark_point(filled=True, size=70).encode(
        alt.Y("sampled_difference:Q"),
        alt.Color("promoted:N"),
        tooltip=["run_id", "sampled_before", "sampled_after", "promoted"],
    )
    shown("Did training make the model better?", rounds, (interval + points).properties(width=300))
    return


@app.cell
def _(ask, chosen, shown):
    edges = ask("FROM lineage_edges WHERE run_id = ? ORDER BY position", chosen.value)
    shown("What was made from what?", edges)
    return


@app.cell
def _(ask, shown):
    stale = ask("FROM stale")
    shown("Which exports should be made again? (all runs)", stale)
    return


@app.cell
def _(ask, mo):
    ask  # no form without a run
    question = mo.ui.text_area(
        "SELECT reasons, count(*) AS pairs FROM pair_quality GROUP BY ALL ORDER BY pairs DESC",
        label="SQL, read-only",
        full_width=True,
    ).form()
    mo.vstack([mo.md("## A question of your own"), question])
    return (question,)


@app.cell
def _(PrefmillError, ask, mo, question):
    def answered(sql):
        try:
            return mo.ui.table(ask(sql), selection=None)
        except PrefmillError as error:
            return mo.plain_text(str(error))

    answered(question.value) if question.value else mo.plain_text("Submit it to see the answer.")
    return


if __name__ == "__main__":
    app.run()
