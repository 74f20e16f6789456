"""Strict and loose verdicts on instructions, against answers read by hand."""

import pytest

from stages.instruction_checks import AllUppercase, NoCommas, StartsWith, WordCount
from stages.instruction_following import followed, variants

SHORT = WordCount(relation="at most", count=2)
UPPER, NO_COMMAS, START = AllUppercase(), NoCommas(), StartsWith(phrase="Dear")


@pytest.mark.parametrize(
    ("instruction", "answer", "strict", "loose"),
    [
        (NO_COMMAS, "No comma here", True, True),
        (NO_COMMAS, "Sure, here it is:\nNo comma here", False, True),  # first line
        (NO_COMMAS, "No comma here\nHope that helps, bye", False, True),  # last line
        (NO_COMMAS, "Sure, yes:\nNo comma here\nThat is it, bye", False, True),  # both
        (NO_COMMAS, "One, two\nthree, four\nfive, six", False, False),
        (START, "**Dear** all", False, True),  # asterisks
        (UPPER, "Well:\n*LOUD*\nok", False, True),
        (SHORT, "only these words are left", False, False),
        (SHORT, "only\n\nthese words", False, True),
        (NO_COMMAS, "", False, False),
        (NO_COMMAS, " \n ", False, False),
        # Cut to nothing, "at most" and "no" would be met by what was never said.
        (NO_COMMAS, "One, two", False, False),
        (SHORT, "three words here\nand three more", False, False),
    ],
)
def test_the_loose_verdict_overlooks_a_line_around_the_answer_and_marks(
    instruction, answer, strict, loose
):
    assert followed([instruction], answer, loose=False) == [strict]
    assert followed([instruction], answer, loose=True) == [loose]


def test_each_instruction_may_be_met_by_another_variant():
    answer = "Dear all\nthis, here"
    assert followed([START, NO_COMMAS], answer, loose=False) == [True, False]
    assert followed([START, NO_COMMAS], answer, loose=True) == [True, True]


def test_the_variants_of_an_answer_of_three_lines():
    cut = ["a\n*b*\nc", "a\n*b*", "*b*\nc", "*b*"]
    assert variants(cut[0]) == [*cut, "a\nb\nc", "a\nb", "b\nc", "b"]
