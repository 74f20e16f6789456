"""The run's stages as a graph: a line each, and an arc from every output to what reads it."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

from flows.report_numbers import count, seconds
from flows.report_svg import BLUE, GRID, INK, MUTED
from lineage.story import visible

LINE = 24
WIDTH = 430
SPINE = 76
"""Where the stages' dots stand; arcs have the room left of it."""
MAX_NAME = 26


class Node(NamedTuple):
    """One stage of a run, or a run whose outputs this one reads."""

    name: str
    key: str
    """What its output is called by those that read it."""
    inputs: tuple[str, ...]
    """Keys of the outputs it reads."""
    table: str = ""
    """The table it makes."""
    rows: int = 0
    seconds: float | None = None
    reused: bool = False


def lineage_plot(nodes: tuple[Node, ...]) -> Markup | None:
    """Return the graph as SVG, top to bottom; None without stages.

    An arc that only repeats what a longer way says (prompts to pairs, past the scores) is faint.
    """
    if not nodes:
        return None
    places = {node.key: place for place, node in enumerate(nodes)}
    edges = [(places[k], places[n.key]) for n in nodes for k in n.inputs if k in places]
    direct = _direct(edges)
    # The faint arcs lie under the others.
    longest = max((end - start for start, end in edges), default=1)
    arcs = [
        _arc(start, end, longest, strong=(start, end) in direct)
        for start, end in sorted(edges, key=direct.__contains__)
    ]
    lines = [_line(place, node) for place, node in enumerate(nodes)]
    box = f"0 0 {WIDTH} {LINE * len(nodes)}"
    svg = Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="{}" aria-hidden="true">{}</svg>')
    return svg.format(box, Markup("").join([*arcs, *lines]))


def _direct(edges: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """Return the edges without which something could not be reached; edges lead down."""
    below: dict[int, set[int]] = {}
    direct = set()
    for start in sorted({start for start, _ in edges}, reverse=True):
        reached: set[int] = set()
        for end in sorted(end for first, end in edges if first == start):
            if end not in reached:
                direct.add((start, end))
            reached |= {end} | below.get(end, set())
        below[start] = reached
    return direct


def _middle(place: int) -> float:
    return LINE * (place + 0.5)


def _arc(start: int, end: int, longest: int, *, strong: bool) -> Markup:
    reach = (SPINE - 6) * (end - start) / longest if end - start > 1 else 0
    first, last = _middle(start), _middle(end)
    bend = SPINE - reach * 4 / 3
    return Markup('<path d="M{} {}C{} {} {} {} {} {}" fill="none" stroke="{}" {}/>').format(
        SPINE, first, round(bend), first, round(bend), last, SPINE, last,
        MUTED if strong else GRID, Markup('stroke-width="1.5"') if strong else "",
    )  # fmt: skip


def _line(place: int, node: Node) -> Markup:
    name = visible(node.name)
    short = name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}\u2026"
    made = f"{count(node.rows)} {visible(node.table.replace('_', ' '))}" if node.table else ""
    took = "reused" if node.reused else "" if node.seconds is None else seconds(node.seconds)
    middle = _middle(place)
    text = Markup('<text x="{}" y="{}" font-size="11.5" fill="{}"{}>{}</text>')
    end = Markup(' text-anchor="end"')
    return Markup("").join([
        Markup('<circle cx="{}" cy="{}" r="4.5" fill="{}"><title>{}</title></circle>').format(
            SPINE, middle, MUTED if node.reused else BLUE, name
        ),
        text.format(SPINE + 12, middle + 4, INK, "", short),
        text.format(WIDTH - 54, middle + 4, MUTED, end, made),
        text.format(WIDTH, middle + 4, MUTED, end, took),
    ])  # fmt: skip
