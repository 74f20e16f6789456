"""Which of a prompt's instructions an answer follows, strictly and loosely, as IFEval counts.

Zhou et al. 2023, arXiv 2311.07911, section 2.2: the loose verdict also looks at the answer without
its first line ("Sure, here it is:"), without its last one, and without asterisks.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from stages.instruction_checks import composed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stages.instruction_checks import Instruction


def followed(instructions: Sequence[Instruction], answer: str, *, loose: bool) -> list[bool]:
    """Return for each instruction whether the answer follows it; an empty one follows none.

    ``loose``: whether any of the answer's eight `variants` does, for each instruction by itself.
    """
    answer = composed(answer)
    texts = [text for text in (variants(answer) if loose else [answer]) if text.strip()]
    return [any(not instruction.problem(text) for text in texts) for instruction in instructions]


def variants(answer: str) -> list[str]:
    """Return the answer, and it without its first line, its last one, both; each also without *."""
    lines = answer.split("\n")
    cut = [
        "\n".join(lines[first : len(lines) - last]).strip()
        for first, last in product((0, 1), (0, 1))
    ]
    texts = [answer, *cut[1:]]
    return list(dict.fromkeys([*texts, *(text.replace("*", "") for text in texts)]))
