"""The rules that a prompt can name in its `verifier` column, and what each needs to know.

`VERIFIERS` is the registry: name to the reader of its ground truth. What it returns checks any
completion, never raises, and is made (so the ground truth is checked) before anything is scored.
"""

from __future__ import annotations

import functools
import json
import time
from contextvars import ContextVar
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import pydantic

from stages import task_families
from stages.answer_text import (
    OK,
    Verdict,
    code_block,
    one_line,
    share,
    strict_json,
    without_fence,
)
from stages.code_sandbox import Job, run_tests
from stages.configuration import NOT_EMPTY, Config
from stages.errors import ConfigError, DataError, nearest
from stages.instruction_checks import Instructions, Phrase
from stages.numeric_answers import Percent, Take, UnreadableNumberError, answered_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHECK_SECONDS = 1.0
"""The most that one pattern or schema may take; what takes longer is missing, not wrong."""


class Check(Protocol):
    """A ground truth that has been read: it checks completions."""

    def check(self, text: str) -> Verdict:
        """Return the verdict on an answer."""
        ...


class FamilyTruth:
    """The facts of a bundled task family."""

    def __init__(self, family: str, facts: Any) -> None:
        self.family, self.facts = family, facts
        # This answer makes every family look its facts up, so wrong facts raise here.
        self.check("number: 1")

    def check(self, text: str) -> Verdict:
        """Return the family's own verdict."""
        score = task_families.score(self.family, self.facts, text)
        return Verdict(score, task_families.explain(self.family, self.facts, text))


class ExactMatch(Config):
    """The answer is one of the texts, after the same normalisation of both."""

    answers: Annotated[tuple[Phrase, ...], NOT_EMPTY]
    ignore_case: bool = False
    ignore_whitespace: bool = False
    ignore_punctuation: bool = False

    @pydantic.model_validator(mode="after")
    def _none_vanishes(self) -> ExactMatch:
        for answer in self.answers:
            if not self._plain(answer):
                raise ValueError(f"answers: nothing is left of {answer!r} to compare")
        return self

    def _plain(self, text: str) -> str:
        import unicodedata

        text = unicodedata.normalize("NFC", text)
        if self.ignore_case:
            text = text.casefold()
        if self.ignore_punctuation:
            text = "".join(c for c in text if not unicodedata.category(c).startswith("P"))
        # Runs of white space count as one space; removing all would join "2 3" to "23".
        return " ".join(text.split()) if self.ignore_whitespace else text.strip()

    def check(self, text: str) -> Verdict:
        """Return success for one of the answers."""
        found = self._plain(text)
        if found in {self._plain(answer) for answer in self.answers}:
            return OK
        wanted = " or ".join(repr(one_line(answer, 40)) for answer in self.answers[:3])
        return Verdict(0.0, f"{one_line(text, 40)!r}, expected {wanted}")


class Numeric(Config):
    """The answer's number equals `answer` within either tolerance."""

    answer: pydantic.StrictInt | pydantic.StrictFloat | pydantic.StrictStr
    absolute_tolerance: pydantic.NonNegativeFloat = 0.0
    relative_tolerance: pydantic.NonNegativeFloat = 0.0
    take: Take = "marked_or_last"
    percent: Percent = "missing"

    @pydantic.model_validator(mode="after")
    def _is_a_number(self) -> Numeric:
        _ = self._expected
        return self

    @functools.cached_property
    def _expected(self) -> Fraction:
        value = answered_number(str(self.answer), "last", self.percent)
        if value is None:
            raise ValueError(f"answer: no number in {self.answer!r:.80}")
        return value

    def check(self, text: str) -> Verdict:
        """Return success for the right number, and no verdict on one that can't be read."""
        try:
            found = answered_number(text, self.take, self.percent)
        except UnreadableNumberError as error:
            return Verdict(None, one_line(str(error), 200))
        if found is None:
            return Verdict(0.0, "no number in the answer")
        distance = abs(found - self._expected)
        # Tolerances are written in decimal: 0.1 means a tenth, not its nearest float.
        absolute = Fraction(str(self.absolute_tolerance))
        relative = Fraction(str(self.relative_tolerance)) * abs(self._expected)
        if distance <= max(absolute, relative):
            return OK
        return Verdict(0.0, f"number {_shown(found)}, expected {one_line(str(self.answer), 40)}")


def _shown(value: Fraction) -> str:
    try:
        return f"{float(value):.12g}"
    except OverflowError:
        return "too large to show"


class Regex(Config):
    """The pattern matches (or, with `must_match: false`, does not)."""

    pattern: Annotated[str, pydantic.StringConstraints(min_length=1)]
    match: Literal["search", "full"] = "search"
    must_match: bool = True
    ignore_case: bool = False
    dot_matches_newline: bool = False

    @pydantic.field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        _pattern(pattern)
        return pattern

    def check(self, text: str) -> Verdict:
        """Return whether the pattern matches; no verdict when that takes too long."""
        import regex

        flags = self.ignore_case * regex.IGNORECASE | self.dot_matches_newline * regex.DOTALL
        compiled = _pattern(self.pattern, int(flags))
        look = compiled.fullmatch if self.match == "full" else compiled.search
        try:
            found = look(text.strip(), timeout=CHECK_SECONDS) is not None
        except (TimeoutError, MemoryError) as error:
            return Verdict(None, f"the pattern could not be matched: {type(error).__name__}")
        if found == self.must_match:
            return OK
        return Verdict(0.0, f"{'a' if found else 'no'} match of {one_line(self.pattern)!r}")


@functools.lru_cache(maxsize=1_000)
def _pattern(pattern: str, flags: int = 0) -> Any:
    import regex

    try:
        return regex.compile(pattern, flags)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"no regular expression: {error}") from None


class JsonValid(Config):
    """The answer is JSON, has the keys and fits the schema."""

    model_config = pydantic.ConfigDict(protected_namespaces=())

    required_keys: tuple[Phrase, ...] = ()
    json_schema: dict[str, Any] | bool | None = None
    allow_fence: bool = False

    @pydantic.field_validator("json_schema")
    @classmethod
    def _usable(cls, schema: dict[str, Any] | bool | None) -> dict[str, Any] | bool | None:
        if schema is not None:
            _require_usable(schema)
        return schema

    def check(self, text: str) -> Verdict:
        """Return the share met of: it parses, each key is there, the schema holds."""
        try:
            value = strict_json(without_fence(text) if self.allow_fence else text)
        except ValueError as error:
            return Verdict(0.0, f"not JSON: {one_line(str(error))}")
        has = value if isinstance(value, dict) else {}
        problems = [f"no key {key!r}" for key in self.required_keys if key not in has]
        if self.json_schema is not None:
            try:
                if broken := _broken(self.json_schema, value):
                    problems.append(broken)
            except (TimeoutError, RecursionError, OverflowError) as error:
                return Verdict(None, f"the schema could not be checked: {type(error).__name__}")
        return share(problems, 1 + len(self.required_keys) + (self.json_schema is not None))


_deadline: ContextVar[float] = ContextVar("_deadline")


def _broken(schema: dict[str, Any] | bool, value: Any) -> str:
    """Return where and how ``value`` breaks the schema first, or ""."""
    import referencing

    token = _deadline.set(time.monotonic() + CHECK_SECONDS)
    try:
        # Without a registry of its own, jsonschema would fetch references from the network.
        validator = _validator_class(_dialect(schema))(schema, registry=referencing.Registry())
        error = next(validator.iter_errors(value), None)
    finally:
        _deadline.reset(token)
    return "" if error is None else f"{one_line(error.json_path, 60)}: {one_line(error.message)}"


def _dialect(schema: dict[str, Any] | bool) -> Any:
    import jsonschema

    return jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)


@functools.cache
def _validator_class(dialect: Any) -> Any:
    """Return the dialect with the keywords bounded whose time can explode on an untrusted value."""
    import jsonschema

    known = dialect.VALIDATORS
    follow = {name: known[name] for name in ("$ref", "$dynamicRef") if name in known}

    def pattern(_validator: Any, wanted: str, instance: Any, _schema: Any) -> Iterator[Any]:
        if isinstance(instance, str):
            left = max(0.001, _deadline.get() - time.monotonic())
            if not _pattern(wanted).search(instance, timeout=left):
                yield jsonschema.ValidationError(f"does not match {one_line(wanted, 40)!r}")

    def unique_items(_validator: Any, wanted: bool, instance: Any, _schema: Any) -> Iterator[Any]:
        if wanted and isinstance(instance, list):
            # jsonschema compares all pairs when items cannot be sorted.
            texts = {json.dumps(_same_numbers(item), sort_keys=True) for item in instance}
            if len(texts) < len(instance):
                yield jsonschema.ValidationError("items are not unique")

    def bounded(name: str) -> Callable[..., Iterator[Any]]:
        def keyword(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
            if time.monotonic() > _deadline.get():
                raise TimeoutError
            yield from follow[name](validator, value, instance, schema) or ()

        return keyword

    keywords = {"pattern": pattern, "uniqueItems": unique_items}
    return jsonschema.validators.extend(dialect, {**keywords, **{n: bounded(n) for n in follow}})


def _same_numbers(value: Any) -> Any:
    """Return ``value`` with whole floats as integers: JSON Schema takes 1.0 and 1 for equal."""
    if isinstance(value, dict):
        return {key: _same_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_same_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _require_usable(schema: dict[str, Any] | bool) -> None:
    """Raise ``ValueError`` for a schema that is none, or that we can't apply safely."""
    import jsonschema
    import referencing.exceptions
    import referencing.jsonschema

    dialect = _dialect(schema)
    try:
        dialect.check_schema(schema)
        default = referencing.jsonschema.DRAFT202012
        resource = referencing.Resource.from_contents(schema, default_specification=default)
        resolver = referencing.Registry().with_resource("", resource).resolver()
        for key, value in _keywords(schema):
            if key == "patternProperties":
                raise ValueError("patternProperties is not supported")
            if key in {"$ref", "$dynamicRef"} and isinstance(value, str):
                if not value.startswith("#"):
                    raise ValueError(f"{key} {value!r} leads out of the schema")
                resolver.lookup(value)
            if key == "pattern" and isinstance(value, str):
                _pattern(value)
    except jsonschema.SchemaError as error:
        raise ValueError(f"no JSON schema: {error.json_path}: {one_line(error.message)}") from None
    except referencing.exceptions.Unresolvable as error:
        raise ValueError(f"a reference leads nowhere: {error.ref!r}") from None


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, at any depth."""
    waiting = [schema]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield from item.items()
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


class PythonTests(Config):
    """The answer's code passes the tests, each a piece of Python that raises when it fails."""

    tests: Annotated[tuple[Phrase, ...], NOT_EMPTY]
    setup: str = ""
    timeout_seconds: Annotated[float, pydantic.Field(ge=0.5, le=60)] = 10.0
    memory_mb: Annotated[int, pydantic.Field(ge=64, le=8192)] = 512

    @pydantic.field_validator("tests", "setup")
    @classmethod
    def _compile(cls, code: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for source in [code] if isinstance(code, str) else code:
            try:
                compile(source, "test", "exec", dont_inherit=True)
            except (SyntaxError, RecursionError, MemoryError) as error:
                raise ValueError(f"not Python: {error}") from None
        return code

    def check(self, text: str) -> Verdict:
        """Return the share of tests passed; no verdict when the sandbox does not start."""
        code, limits = code_block(text), (self.timeout_seconds, self.memory_mb)
        outcome = run_tests(Job(code, self.tests, self.setup, *limits))
        if outcome.passed is None:
            return Verdict(None, outcome.problem)
        if outcome.passed == len(self.tests):
            return OK
        raw = f"{outcome.passed} of {len(self.tests)} tests passed; {outcome.problem}"
        return Verdict(outcome.passed / len(self.tests), raw)


VERIFIERS: dict[str, Callable[[Any], Check]] = {
    **{name: functools.partial(FamilyTruth, name) for name in task_families.FAMILIES},
    "exact_match": ExactMatch.checked,
    "numeric": Numeric.checked,
    "json_valid": JsonValid.checked,
    "regex": Regex.checked,
    "instructions": Instructions.checked,
    "python_tests": PythonTests.checked,
}
RUNS_CODE = frozenset({"python_tests"})
"""The verifiers that run what the model wrote: a scorer must allow it."""


def require_known(verifier: str) -> None:
    """Raise ``DataError``, with the nearest names, unless ``verifier`` is in the registry."""
    if verifier not in VERIFIERS:
        raise DataError(
            f"unknown verifier {verifier!r}{nearest(verifier, list(VERIFIERS))}",
            expected=f"one of {', '.join(VERIFIERS)}",
            where="the prompts' `verifier` column",
        )


def read_ground_truth(verifier: str, ground_truth: str, where: str) -> Check:
    """Return the check that ``ground_truth`` gives for answers.

    Raises:
        DataError: the verifier is unknown, or the ground truth not what it needs (names the key).
    """
    require_known(verifier)
    try:
        return VERIFIERS[verifier](json.loads(ground_truth))
    except ConfigError as error:
        why = error.found.rstrip(".")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        why = repr(error)
    raise DataError(
        f"the ground truth {ground_truth[:80]!r} is not what verifier {verifier!r} needs: {why}",
        expected="a JSON object with the facts that the verifier checks (docs/verifiers.md)",
        where=where,
    )
