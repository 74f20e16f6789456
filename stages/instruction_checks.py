"""Instructions that a rule can check, in the style of IFEval (Zhou et al. 2023, arXiv 2311.07911).

Each class is one kind of instruction; `problem` says in one phrase what is not met, or "". The
kinds are the paper's (table 1) where they need no model; docs/verifiers.md says where the count
differs from the reference implementation's.
"""

# ruff: noqa: D102 - the module says what every `problem` returns

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Literal

import pydantic
import regex

from stages.answer_text import Verdict, one_line, share, strict_json, without_fence
from stages.configuration import NOT_EMPTY, Config

Relation = Literal["at least", "at most", "exactly"]


def composed(text: str) -> str:
    """Return ``text`` in NFC, as every instruction reads it: accents belong to their letters."""
    return unicodedata.normalize("NFC", text)


Phrase = Annotated[
    str,
    pydantic.StringConstraints(min_length=1, strip_whitespace=True),
    pydantic.AfterValidator(composed),
]
Phrases = Annotated[tuple[Phrase, ...], NOT_EMPTY]

# A letter's marks belong to it; Python's own \w has no vowel signs of Hindi, say.
_LETTER = r"[\w\p{M}]"
_WORD = regex.compile(rf"{_LETTER}++(?:['\u2019-]{_LETTER}++)*+")
# Not a sentence's end: a number that starts a list item, and the period of an abbreviation.
_NO_END = re.compile(
    r"(?:(?:^|(?<=\n))[ \t]*+[0-9]{1,9}|\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|cf|e\.g|i\.e))\.(?=\s)"
)
# The lookbehind lets a run of marks be tried once: a megabyte of dots takes one pass.
_END = re.compile(
    r"(?<![.!?\u2026])[.!?\u2026]++[\"'\u201d\u2019)\]*_]*+(?=\s|$)|(?<![\u3002\uff01\uff1f])[\u3002\uff01\uff1f]++"
    r"|(?<![\u0964\u0965\u061f\u06d4])[\u0964\u0965\u061f\u06d4]++"
)
_BULLET = re.compile(r"^[ \t]*+[-*+\u2022][ \t]++\S", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
_HIGHLIGHT = re.compile(r"\*\*([^*\n]+)\*\*|\*([^*\n]+)\*")


class _Counted(Config):
    """An instruction about how often something occurs."""

    relation: Relation = "at least"
    count: pydantic.NonNegativeInt

    def compared(self, found: int, what: str) -> str:
        met = {
            "at least": found >= self.count,
            "at most": found <= self.count,
            "exactly": found == self.count,
        }
        return "" if met[self.relation] else f"{found} {what}, not {self.relation} {self.count}"


class WordCount(_Counted):
    """How many words; don't and well-known are one each."""

    kind: Literal["word_count"] = "word_count"

    def problem(self, text: str) -> str:
        return self.compared(sum(1 for _ in _WORD.finditer(text)), "words")


class SentenceCount(_Counted):
    """How many sentences; a last one without a full stop counts."""

    kind: Literal["sentence_count"] = "sentence_count"

    def problem(self, text: str) -> str:
        text = _NO_END.sub("", text)
        ends = [match.end() for match in _END.finditer(text)]
        rest = text[ends[-1] :] if ends else text
        return self.compared(len(ends) + bool(_WORD.search(rest)), "sentences")


class ParagraphCount(_Counted):
    """How many paragraphs."""

    kind: Literal["paragraph_count"] = "paragraph_count"
    separator: Literal["blank_line", "***"] = "blank_line"

    def problem(self, text: str) -> str:
        found, in_paragraph = 0, False
        for line in text.splitlines():
            divides = not line.strip() if self.separator == "blank_line" else line.strip() == "***"
            found += not divides and bool(line.strip()) and not in_paragraph
            in_paragraph = not divides and (in_paragraph or bool(line.strip()))
        return self.compared(found, "paragraphs")


class KeywordsPresent(Config):
    """Every keyword occurs as a whole word, in any case."""

    kind: Literal["keywords_present"] = "keywords_present"
    words: Phrases

    def problem(self, text: str) -> str:
        absent = [word for word in self.words if not _occurrences(word, text)]
        return f"without {', '.join(map(repr, absent))}" if absent else ""


class KeywordsAbsent(Config):
    """No keyword occurs as a whole word, in any case."""

    kind: Literal["keywords_absent"] = "keywords_absent"
    words: Phrases

    def problem(self, text: str) -> str:
        present = [word for word in self.words if _occurrences(word, text)]
        return f"with {', '.join(map(repr, present))}" if present else ""


class KeywordFrequency(_Counted):
    """How often a keyword occurs as a whole word, in any case."""

    kind: Literal["keyword_frequency"] = "keyword_frequency"
    word: Phrase

    def problem(self, text: str) -> str:
        return self.compared(_occurrences(self.word, text), f"times {self.word!r}")


class AllUppercase(Config):
    """Every letter that has a case is a capital, and there is one."""

    kind: Literal["all_uppercase"] = "all_uppercase"

    def problem(self, text: str) -> str:
        return "" if text.isupper() else "not all in capitals"


class AllLowercase(Config):
    """No letter is a capital, and there is a small one."""

    kind: Literal["all_lowercase"] = "all_lowercase"

    def problem(self, text: str) -> str:
        return "" if text.islower() else "not all in small letters"


class NoCommas(Config):
    """No comma, of any script's usual kinds."""

    kind: Literal["no_commas"] = "no_commas"

    def problem(self, text: str) -> str:
        found = sum(text.count(comma) for comma in ",\uff0c\u3001\u060c")
        return f"{found} commas" if found else ""


class StartsWith(Config):
    """The text starts with the phrase, in any case; white space before it is passed over."""

    kind: Literal["starts_with"] = "starts_with"
    phrase: Phrase

    def problem(self, text: str) -> str:
        start = text.lstrip()[: 2 * len(self.phrase)].casefold()
        return "" if start.startswith(self.phrase.casefold()) else f"no start {self.phrase!r}"


class EndsWith(Config):
    """The text ends with the phrase, in any case; quotes and white space after it don't count."""

    kind: Literal["ends_with"] = "ends_with"
    phrase: Phrase

    def problem(self, text: str) -> str:
        ends = (text.rstrip(), text.rstrip().rstrip('"\u201d').rstrip())
        wanted = self.phrase.casefold()
        met = any(end[-2 * len(self.phrase) :].casefold().endswith(wanted) for end in ends)
        return "" if met else f"no end {self.phrase!r}"


class BulletPoints(_Counted):
    """How many lines are a bullet point (-, *, + or a dot, then a space)."""

    kind: Literal["bullet_points"] = "bullet_points"

    def problem(self, text: str) -> str:
        return self.compared(sum(1 for _ in _BULLET.finditer(text)), "bullet points")


class WrappedInQuotes(Config):
    """The whole text stands in double quotes."""

    kind: Literal["wrapped_in_quotes"] = "wrapped_in_quotes"

    def problem(self, text: str) -> str:
        text = text.strip()
        quoted = text[:1] + text[-1:] in ('""', "\u201c\u201d", "\u201e\u201d", "\u201e\u201c")
        return "" if quoted and len(text) > len('""') else "not wrapped in double quotes"


class JsonFormat(Config):
    """The whole text is JSON; a Markdown fence around it is allowed."""

    kind: Literal["json_format"] = "json_format"

    def problem(self, text: str) -> str:
        try:
            strict_json(without_fence(text))
        except ValueError as error:
            return f"not JSON: {one_line(str(error))}"
        return ""


class Placeholders(_Counted):
    """How many placeholders in square brackets, like [name]."""

    kind: Literal["placeholders"] = "placeholders"

    def problem(self, text: str) -> str:
        return self.compared(sum(1 for _ in _PLACEHOLDER.finditer(text)), "placeholders")


class Postscript(Config):
    """A line starts with the marker, in any case, and says something after it."""

    kind: Literal["postscript"] = "postscript"
    marker: Literal["P.S.", "P.P.S"] = "P.S."

    def problem(self, text: str) -> str:
        wanted = re.sub(r"[ .]", "", self.marker).casefold()
        for line in text.splitlines():
            start = re.match(r"\s{0,100}((?:p\.?\s?){1,2}s\b\.?)(?=[\s:]*\w)", line, re.IGNORECASE)
            if start and re.sub(r"[\s.]", "", start[1]).casefold() == wanted:
                return ""
        return f"no postscript {self.marker}"


class HighlightedSections(_Counted):
    """How many parts are highlighted with *one* or **two** asterisks."""

    kind: Literal["highlighted_sections"] = "highlighted_sections"

    def problem(self, text: str) -> str:
        found = sum(bool((m[1] or m[2]).strip()) for m in _HIGHLIGHT.finditer(text))
        return self.compared(found, "highlighted sections")


Instruction = Annotated[
    WordCount
    | SentenceCount
    | ParagraphCount
    | KeywordsPresent
    | KeywordsAbsent
    | KeywordFrequency
    | AllUppercase
    | AllLowercase
    | NoCommas
    | StartsWith
    | EndsWith
    | BulletPoints
    | WrappedInQuotes
    | JsonFormat
    | Placeholders
    | Postscript
    | HighlightedSections,
    pydantic.Field(discriminator="kind"),
]


class Instructions(Config):
    """Every instruction is met; a part of them gives that share."""

    instructions: Annotated[tuple[Instruction, ...], NOT_EMPTY]

    def check(self, text: str) -> Verdict:
        """Return the share of instructions met and every problem."""
        text = composed(text)
        if not text.strip():
            # Else an empty answer would meet "no commas" and "at most 50 words".
            return Verdict(0.0, "empty")
        problems = [problem for item in self.instructions if (problem := item.problem(text))]
        return share(problems, len(self.instructions))


def _occurrences(phrase: str, text: str) -> int:
    pattern = rf"(?<!{_LETTER}){regex.escape(phrase, special_only=True)}(?!{_LETTER})"
    return sum(1 for _ in regex.finditer(pattern, text, regex.IGNORECASE))
