"""The story of one id, as JSON and as a tree that shows every character literally."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

INVISIBLE = {
    code: f"[U+{code:04X}]"
    for code in (
        *(code for code in range(0x20) if chr(code) not in "\t\n"),
        *range(0x7F, 0xA0), 0xAD, 0x61C, 0x180E, 0x200B, 0x200E, 0x200F, *range(0x2028, 0x202F),
        *range(0x2060, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFC), 0xFFFE, 0xFFFF,
        *range(0xE0000, 0xE0080),
    )
}  # fmt: skip
"""Control, direction, tag and zero-width characters, and what a reader sees in their place."""

MOST_CHARACTERS, MOST_LINES = 1000, 20
"""Of one text in the tree, unless all of it is asked for."""


@dataclass(frozen=True)
class Story:
    """What led to one thing of a ``kind``: pair, candidate, prompt, export, run, round ..."""

    kind: str
    id: str
    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The story as values that ``json.dumps`` takes."""
        return {"kind": self.kind, "id": self.id, **self.facts}


def render(story: Story, *, full: bool = False) -> Tree:
    """Return the story as a tree for a terminal. Nothing in it is read as rich's markup.

    Texts are cut after 1000 characters or 20 lines unless ``full``.
    """
    from rich.tree import Tree

    from lineage.made_of_story import ADD
    from lineage.row_story import RowStory

    tree = Tree(line((f"{story.kind} ", "bold"), (story.id, "bold cyan")))
    if add := ADD.get(story.kind):
        add(tree, story.facts)
    else:
        RowStory(story.id, full=full).add(tree, story.facts)
    return tree


def visible(text: str) -> str:
    """Return ``text`` with control and direction characters shown instead of obeyed."""
    return text.translate(INVISIBLE)


def shortened(text: str) -> str:
    """Return the beginning of a long ``text`` and how long it is, a short one as it is."""
    start = "\n".join(text[:MOST_CHARACTERS].split("\n")[:MOST_LINES])
    if len(start) == len(text):
        return text
    return f"{start} ... ({len(text):,} characters; --full shows them)"


def line(*pieces: tuple[object, str]) -> Text:
    """Return texts with their styles as one, every character visible."""
    from rich.text import Text

    return Text.assemble(*((visible(str(text)), style) for text, style in pieces))


def known(**values: object) -> str:
    """Return ``name value`` for each value that is known."""
    return ", ".join(
        f"{name.replace('_', ' ')} {number(value)}"
        for name, value in values.items()
        if value is not None
    )


def number(value: object) -> str:
    """Return a value as text, a float with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def add_round(node: Tree, row: dict[str, Any]) -> None:
    """Add what one training made and whether it was promoted."""
    verdict = ("promoted", "green") if row["promoted"] else ("not promoted", "yellow")
    gain = known(
        success_difference=row["sampled_difference"],
        low=row["sampled_low"],
        high=row["sampled_high"],
    )
    node.add(
        line(
            (f"trained in round {row['round_index']} ", ""),
            (row["round_id"], "cyan"),
            (f" of run {row['run_id']}: ", ""),
            verdict,
            (f"  {gain}", "dim"),
        )
    )


def add_training(node: Tree, row: dict[str, Any]) -> None:
    """Add what a training on a file was for."""
    node.add(
        line(
            (f"trained on a file ({row['objective']}): ", ""),
            (row["training_id"], "cyan"),
            (f" of run {row['run_id']}", ""),
        )
    )
