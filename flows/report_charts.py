"""The report's plots. Data are binned in polars first: a million pairs cost what a hundred do."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import polars as pl

from flows.report_svg import BLUE, INK, MUTED, ORANGE, PURPLE, as_svg, values_of
from lineage.story import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from markupsafe import Markup

WIDTH, HEIGHT = 380, 190
MAX_BINS, MAX_POINTS, MAX_STRATA, MAX_SCORERS = 30, 240, 24, 12
FEW_POINTS = 12
PANELS_IN_A_ROW = 4
DASHES = [[1, 0], [6, 3], [2, 2]]

CURVES: dict[str, dict[str, str]] = {
    "Loss": {"loss": BLUE},
    "Implicit rewards": {
        "rewards/margins": PURPLE,
        "rewards/chosen": BLUE,
        "rewards/rejected": ORANGE,
    },
    "Reward accuracy": {"rewards/accuracies": BLUE},
    "Log-probabilities": {"logps/chosen": BLUE, "logps/rejected": ORANGE},
    "KL from the reference": {"kl": BLUE},
}
"""Panel to the metrics it shows (TRL's names) and their colours."""


KEPT = (
    pl.when(pl.col("kept").is_null())
    .then(pl.lit("not filtered"))
    .when("kept")
    .then(pl.lit("kept"))
    .otherwise(pl.lit("dropped"))
)
KEPT_COLOURS = {"kept": BLUE, "dropped": ORANGE, "not filtered": PURPLE}
ROUND_COLOURS = {"start": MUTED, "promoted": BLUE, "held": ORANGE}


def margins(pairs: pl.DataFrame) -> Markup | None:
    """Return the distribution of margins, kept pairs under dropped ones; None without pairs."""
    bins = _binned(pairs.select(value="margin", state=KEPT))
    return _bars("margins", bins, ("chosen score \u2212 rejected score", "pairs")) if bins else None


def scores(pairs: pl.DataFrame) -> Markup | None:
    """Return the distributions of chosen and rejected scores of kept pairs; None without any."""
    import altair as alt

    kept = pairs.filter("kept")
    sides = [kept.select(value=f"{s}_score", state=pl.lit(s)) for s in ("chosen", "rejected")]
    bins = _binned(pl.concat(sides))
    if not bins:
        return None
    base = alt.Chart(alt.Data(values=bins)).encode(
        x=alt.X("start:Q", bin="binned", title="score", axis=alt.Axis(grid=False)),
        x2="end:Q",
        y=alt.Y("pairs:Q", stack=None, title="pairs", axis=alt.Axis(tickMinStep=1, tickCount=5)),
        color=_series("state", {"chosen": BLUE, "rejected": ORANGE}),
    )
    chart = base.mark_bar(fillOpacity=0.5, binSpacing=1)
    return as_svg("scores", chart.properties(width=WIDTH, height=HEIGHT))


def wrongness(pairs: pl.DataFrame) -> Markup | None:
    """Return the distribution of how probably labels are wrong; None where that is not known."""
    if "confidence" not in pairs.columns:
        return None
    bins = _binned(pairs.select(value=1.0 - pl.col("confidence"), state=KEPT).drop_nulls("value"))
    return (
        _bars("wrongness", bins, ("probability that the label is wrong", "pairs")) if bins else None
    )


def of_scorers(frame: pl.DataFrame, value: str, title: str) -> dict[str, Markup]:
    """Return by scorer the distribution of ``value``, with zero marked where it has two sides."""
    drawn: dict[str, Markup] = {}
    if frame.is_empty():
        return drawn
    states, rows_are = (KEPT, "pairs") if "kept" in frame.columns else (pl.lit(""), "answers")
    for (name,), rows in sorted(frame.partition_by("scorer", as_dict=True).items())[:MAX_SCORERS]:
        bins = _binned(rows.select(value=value, state=states).drop_nulls("value"))
        if bins:
            # Ids within the page; a scorer's name may hold anything.
            plot_name = f"{value}-{len(drawn)}"
            drawn[str(name)] = _bars(plot_name, bins, (title, rows_are), zero=bins[0]["start"] < 0)
    return drawn


def length_gaps(pairs: pl.DataFrame) -> Markup | None:
    """Return how much longer the chosen completions are; None without pairs."""
    gap = (pl.col("chosen_tokens") - pl.col("rejected_tokens")).cast(pl.Float64)
    bins = _binned(pairs.select(value=gap, state=KEPT))
    titles = ("chosen \u2212 rejected length, tokens", "pairs")
    return _bars("gaps", bins, titles, zero=True) if bins else None


def length_preference(pairs: pl.DataFrame) -> Markup | None:
    """Return how often the longer completion is chosen, by length gap; None without gaps."""
    import altair as alt

    rows = length_preference_rows(pairs)
    if rows.is_empty():
        return None
    base = alt.Chart(values_of(rows))
    x = alt.X("gap:N", sort=None, title="length gap, tokens", axis=alt.Axis(labelAngle=0))
    scale = alt.Scale(domain=[0, 1])
    y = alt.Y("share:Q", scale=scale, title="longer one chosen", axis=alt.Axis(format="%"))
    colour = _series("state", _present(rows["state"]))
    offset = alt.XOffset("state:N", sort=["kept", "dropped"])
    chart = alt.layer(
        _mark("y", 0.5, MUTED),
        base.mark_rule(strokeWidth=2).encode(
            x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour, xOffset=offset
        ),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            x=x, y=y, color=colour, xOffset=offset, shape=_shape("state", ["kept", "dropped"])
        ),
    )
    return as_svg("preference", chart.properties(width=WIDTH, height=HEIGHT))


def length_preference_rows(pairs: pl.DataFrame) -> pl.DataFrame:
    """Return gap, state, share, low, high: the share of longer-chosen pairs with its interval.

    Pairs of equal length say nothing. The interval is Wilson's at 95 %.
    """
    gap = pl.col("chosen_tokens") - pl.col("rejected_tokens")
    edges, labels = [4, 16, 64, 256], ["1-4", "5-16", "17-64", "65-256", ">256"]
    z = 1.96
    n, p = pl.col("n"), pl.col("share")
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)).sqrt() / (1 + z * z / n)
    return (
        pairs.filter(gap != 0)
        .group_by(
            KEPT.alias("state"),
            gap.abs().cut(edges, labels=labels).alias("gap"),
        )
        .agg(pl.len().alias("n"), (gap > 0).mean().alias("share"))
        .with_columns((centre - half).alias("low"), (centre + half).alias("high"))
        .with_columns(
            pl.col("gap")
            .cast(pl.String)
            .replace_strict(labels, range(5), return_dtype=pl.Int64)
            .alias("place")
        )
        .sort("place", "state")
        .select(pl.col("gap").cast(pl.String), "state", "n", "share", "low", "high")
    )


def lift(evaluations: pl.DataFrame, percent: bool) -> Markup | None:
    """Return the change in each stratum with its interval, per decoding; None without any."""
    import altair as alt

    if evaluations.is_empty():
        return None
    factor = 100 if percent else 1
    rows = evaluations.with_columns(
        pl.col("difference", "low", "high") * factor,
        stratum=pl.col("stratum").replace("all", "all held-out"),
        first=pl.col("stratum") == "all",
    )
    order = rows.group_by("stratum").agg(pl.col("first").any(), pl.col("difference").max())
    names = order.sort("first", "difference", descending=True)["stratum"].head(MAX_STRATA).to_list()
    rows = rows.filter(pl.col("stratum").is_in(names))
    decodings = [d for d in ("sampled", "greedy") if d in rows["decoding"].to_list()]
    base = alt.Chart(values_of(rows.select("stratum", "decoding", "difference", "low", "high")))
    y = alt.Y("stratum:N", sort=[visible(n) for n in names], title=None)
    offset = alt.YOffset("decoding:N", sort=decodings)
    colour = _series("decoding", dict(zip(decodings, (BLUE, ORANGE), strict=False)))
    title = "change, percentage points" if percent else "change"
    chart = alt.layer(
        _mark("x", 0.0, INK),
        base.mark_rule(strokeWidth=2).encode(
            x=alt.X("low:Q", title=title), x2="high:Q", y=y, yOffset=offset, color=colour
        ),
        base.mark_point(filled=True, size=64, opacity=1).encode(
            x="difference:Q", y=y, yOffset=offset, color=colour, shape=_shape("decoding", decodings)
        ),
    )
    height = alt.Step(17 if len(decodings) > 1 else 26)
    return as_svg("lift", chart.properties(width=WIDTH - 90, height=height))


def strategies(rows: pl.DataFrame) -> Markup | None:
    """Return a panel per measure, a dot per dataset; ``rows``: name, measure, value, in order."""
    import altair as alt

    known = rows.drop_nulls("value")
    if known.is_empty():
        return None
    names = [visible(name) for name in rows["name"].unique(maintain_order=True)]
    measures = known["measure"].unique(maintain_order=True).to_list()

    def panel(measure: str) -> Any:
        first = measures.index(measure) % PANELS_IN_A_ROW == 0
        labels = alt.Axis(labelLimit=320) if first else None
        ticks = alt.Axis(tickCount=3, format=".3~r")
        x = alt.X("value:Q", title=measure, scale=alt.Scale(zero=False), axis=ticks)
        y = alt.Y("name:N", sort=names, title=None, axis=labels, scale=alt.Scale(domain=names))
        base = alt.Chart(values_of(known.filter(measure=measure)))
        dots = base.mark_point(filled=True, size=60, opacity=1, color=BLUE).encode(x=x, y=y)
        return dots.properties(width=150, height=alt.Step(22))

    rows_of_panels = [
        alt.hconcat(*map(panel, measures[first : first + PANELS_IN_A_ROW]))
        for first in range(0, len(measures), PANELS_IN_A_ROW)
    ]
    return as_svg("strategies", alt.vconcat(*rows_of_panels))


def training_curves(metrics: pl.DataFrame) -> list[tuple[str, Markup]]:
    """Return (title, plot) for each panel of ``CURVES`` with values; ``metrics`` is one round's."""
    import altair as alt

    drawn = []
    for title, colours in CURVES.items():
        rows = _thinned(metrics.filter(pl.col("metric").is_in(list(colours))))
        present = {m: c for m, c in colours.items() if m in rows["metric"].to_list()}
        if not present:
            continue
        line = alt.Chart(values_of(rows)).mark_line(
            strokeWidth=2, point=rows.height <= len(present) * FEW_POINTS
        )
        legend = None if len(present) == 1 else alt.Legend()
        places = sorted(set(rows["step"]))
        # A short training has a tick a step: Vega would put some between two.
        values = places if len(places) <= FEW_POINTS else alt.Undefined
        steps = alt.Axis(format="d", tickCount=6, values=values)
        dashes = alt.Scale(domain=list(present), range=DASHES[: len(present)])
        chart = line.encode(
            x=alt.X("step:Q", title="step", axis=steps),
            y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)),
            color=_series("metric", present),
            strokeDash=alt.StrokeDash("metric:N", scale=dashes, title=None, legend=legend),
        )
        name = re.sub(r"\W+", "-", title.lower())
        drawn.append((title, as_svg(name, chart.properties(width=WIDTH, height=150))))
    return drawn


def by_round(
    name: str, rows: pl.DataFrame, title: str, level: float | None = None, *, percent: bool = False
) -> Markup | None:
    """Return a value per round, a dot each; None without values.

    ``rows``: round, value, low, high (null: no interval) and state (promoted, held, start). A
    dashed line stands at ``level``.
    """
    import altair as alt

    known = rows.drop_nulls("value")
    if known.is_empty():
        return None
    base = alt.Chart(values_of(known))
    ticks = alt.Axis(format="d", values=sorted(set(known["round"])), grid=False)
    scale = alt.Scale(padding=24, nice=False, zero=False)
    x = alt.X("round:Q", title="round", axis=ticks, scale=scale)
    shown = alt.Axis(format="%" if percent else alt.Undefined, tickCount=5)
    y = alt.Y("value:Q", title=title, scale=alt.Scale(zero=False), axis=shown)
    present = {s: c for s, c in ROUND_COLOURS.items() if s in known["state"].to_list()}
    layers = [
        base.mark_line(color=MUTED, strokeWidth=1).encode(x=x, y=y),
        base.mark_rule(strokeWidth=2).transform_filter("isValid(datum.low)").encode(
            x=x, y=alt.Y("low:Q", title=title), y2="high:Q",
            color=_series("state", present),
        ),
        base.mark_point(filled=True, size=70, opacity=1).encode(
            x=x, y=y, color=_series("state", present),
            shape=_shape("state", list(present)),
        ),
    ]  # fmt: skip
    if level is not None:
        layers.insert(0, _mark("y", level, INK))
    return as_svg(name, alt.layer(*layers).properties(width=WIDTH, height=HEIGHT))


def _bars(
    name: str, bins: list[dict[str, Any]], titles: tuple[str, str], zero: bool = False
) -> Markup:
    """Return the bins as stacked bars; ``titles`` of the values and of what is counted."""
    import altair as alt

    chart: Any = (
        alt.Chart(alt.Data(values=bins))
        .mark_bar(stroke=None, binSpacing=1)
        .encode(
            x=alt.X("start:Q", bin="binned", title=titles[0], axis=alt.Axis(grid=False)),
            x2="end:Q",
            y=alt.Y("pairs:Q", title=titles[1], axis=alt.Axis(tickMinStep=1, tickCount=5)),
            color=_series("state", _present(b["state"] for b in bins)),
            order=alt.Order("state:N", sort="descending"),
        )
    )
    if zero:
        chart = alt.layer(chart, _mark("x", 0.0, INK))
    return as_svg(name, chart.properties(width=WIDTH, height=HEIGHT))


def _mark(axis: str, value: float, colour: str) -> Any:
    """Return a dashed line across the plot at ``value``."""
    import altair as alt

    line = alt.Chart(values_of(pl.DataFrame({axis: [value]})))
    return line.mark_rule(color=colour, strokeDash=[4, 3]).encode(**{axis: f"{axis}:Q"})


def _present(states: Iterable[str]) -> dict[str, str]:
    """Return the colours of the states that there are; one colour if they are no states."""
    found = set(states)
    return {s: c for s, c in KEPT_COLOURS.items() if s in found} or dict.fromkeys(found, BLUE)


def _binned(pairs: pl.DataFrame) -> list[dict[str, Any]]:
    """Return start, end, state and pairs per bin of ``value``; outliers count in the end bins."""
    pairs = pairs.filter(pl.col("value").is_finite())
    if pairs.is_empty():
        return []
    low, high = (pairs["value"].quantile(q, "nearest") or 0.0 for q in (0.002, 0.998))
    step = _nice_step((high - low) / MAX_BINS)
    first, last = math.floor(low / step), math.floor(high / step)
    place = (pl.col("value") / step).floor().clip(first, last)
    counts = pairs.group_by(place.alias("place"), "state").len("pairs").sort("place", "state")
    return [
        {"start": row["place"] * step, "end": (row["place"] + 1) * step,
         "state": row["state"], "pairs": row["pairs"]}
        for row in counts.iter_rows(named=True)
    ]  # fmt: skip


def _nice_step(raw: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten at or above ``raw``."""
    if raw <= 0:
        return 0.1
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))


def _thinned(metrics: pl.DataFrame) -> pl.DataFrame:
    """Return at most a few hundred points per metric: means over equal stretches of steps."""
    finite = metrics.filter(pl.col("value").is_finite()).select("step", "metric", "value")
    if finite.is_empty():
        return finite
    stretch = int(finite["step"].max() or 1) // MAX_POINTS + 1  # type: ignore[arg-type]
    means = finite.group_by("metric", pl.col("step") // stretch).agg(
        pl.col("step").last().alias("last"), pl.col("value").mean()
    )
    return means.select(pl.col("last").alias("step"), "metric", "value").sort("metric", "step")


def _series(field: str, colours: dict[str, str]) -> Any:
    """Return the colour of each series, with a legend where there are several."""
    import altair as alt

    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    legend = alt.Legend() if len(colours) > 1 else None
    return alt.Color(f"{field}:N", scale=scale, title=None, legend=legend)


def _shape(field: str, domain: Sequence[str]) -> Any:
    import altair as alt

    shapes = ["circle", "diamond", "square"][: len(domain)]
    scale = alt.Scale(domain=list(domain), range=shapes)
    return alt.Shape(f"{field}:N", scale=scale, title=None)
