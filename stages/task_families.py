"""Five families of text tasks whose answers a rule can verify.

Every task is drawn from a large space of contents (its facts), and the split is decided by a
hash of the facts, never of the wording: what `base` teaches, `train` and `heldout` never contain
under other words. Everything here is pure; randomness comes from seeds that are arguments.

The verifiers check the stated facts, not taste: a completion can pass and still read badly.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

Facts = Mapping[str, Any]
Split = Literal["base", "train", "heldout"]

SPLIT_PERCENT: dict[str, int] = {"base": 60, "train": 25, "heldout": 15}
MAX_COMPLETION_CHARACTERS = 1_000  # longer text fails at once: no check scans a megabyte
MAX_STALE_DRAWS = 50_000  # draws in a row without a new content before a space counts as empty
PARTIAL_CREDIT = 0.8  # the most that a completion with a failed check can score
HABIT = 0.85  # the share of a tempting content's flaws that are the habitual one
LONG_LIST = 5  # words; from here on the last one tends to be forgotten
LONG_SENTENCE = 8  # words; from here on one tends to be missing
BIG_QUANTITY = 6  # from here on it tends to become "many"
SHOWN_CHARACTERS = 20  # of untrusted text in an explanation


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


NOUNS = _listed(
    "anchor apple basket blender bottle bread camera candle chair cloud daisy desk dragon drum "
    "eagle engine fan flame garden grape guitar hammer headset house island jacket jar kettle "
    "ladder lamp lantern laptop lemon mango mirror night ocean paper pearl phone pillow printer "
    "queen radio ring river rocket saddle silver stone table teapot tent tiger toaster tool "
    "umbrella violin wallet watch window yacht zebra zipper"
)
ITEMS = _listed(
    "basket blender bottle camera chair desk drum fan guitar headset jacket kettle ladder lamp "
    "lantern laptop mirror phone pillow printer radio tent toaster watch"
)
PLACES = _listed(
    "bakery bridge cabin castle cellar chapel clinic farm forest gallery garage harbor hotel "
    "kitchen library market meadow mill museum office park plaza port school shop stable station "
    "studio theater tower valley village"
)
THINGS = _listed(
    "bells birds boats books children clocks colors dancers flowers games gold horses leaves "
    "light music paintings rain roses sand shadows smoke snow stars wind"
)
NAMES = _listed(
    "Ada Anna Ben Carla Clara Dan David Elena Emma Eric Felix Fiona Frank Gina Grace Hanna Hugo "
    "Ida Iris Ivan Jack Jane Kara Karl Leo Lina Lucy Marc Mia Nina Noah Olga Otto Paul Petra Ravi "
    "Rosa Ruth Sam Sara Theo Tina Tom Vera Victor Wanda Yusuf Zoe"
)
REMEDIES: dict[str, str] = {
    "arrived broken": "replacement",
    "came without a cable": "cable",
    "has the wrong color": "exchange",
    "is late": "update",
    "stopped working": "repair",
    "was charged twice": "refund",
}
TEMPTING_PROBLEMS = ("has the wrong color", "is late", "was charged twice")
OFFERS = (*REMEDIES.values(), "coupon")
BLAME = ("fault", "careless")
FIELDS = ("name", "item", "quantity", "place")

ADJECTIVES = ("bright", "busy", "cold", "lovely", "old", "quiet", "small", "wide")
VERBS = ("brings", "has", "hides", "holds", "shows", "welcomes")
TAILS = ("", "again", "today", "every day", "at night", "all year long", "in the morning")
BLAME_SENTENCES = ("This is your own fault.", "You were careless.")
FILLERS = ("Thank you for your patience.", "Have a nice day.", "We value your trust.")


class TaskPrompt(NamedTuple):
    """One task: what the model is asked, and the facts that verify its answer."""

    family: str
    prompt: str
    ground_truth: dict[str, Any]
    content_key: str


class _Verdict(NamedTuple):
    """`problem` is the first failed check ("" on success); `credit` in [0, 1] grades a failure."""

    problem: str
    credit: float


class _Family(NamedTuple):
    draw: Callable[[random.Random], dict[str, Any]]
    word: Callable[[Facts, random.Random], str]
    check: Callable[[Facts, str], _Verdict]
    good: Callable[[Facts, random.Random], str]
    flawed: Callable[[Facts, random.Random], str]
    tempting: Callable[[Facts], bool]


BASE = 10

# --- sum: add two three-digit numbers, column by column


def _draw_sum(rng: random.Random) -> dict[str, Any]:
    return {"numbers": sorted((rng.randint(100, 499), rng.randint(100, 499)))}


def _word_sum(facts: Facts, rng: random.Random) -> str:
    first, second = rng.sample(facts["numbers"], 2)
    form = rng.choice(("What is {} + {}?", "Add {} + {}.", "Please compute {} + {}."))
    return form.format(first, second)


def _carries_ones(facts: Facts) -> bool:
    return _columns(facts)[0] >= BASE


def _write_sum(columns: list[int]) -> str:
    ones, tens, hundreds = columns
    total = hundreds * 100 + tens % 10 * 10 + ones % 10
    return f"Ones {ones}, tens {tens}, hundreds {hundreds}, total {total}."


def _columns(facts: Facts, *, carried_ones: bool = True) -> list[int]:
    """The sums of the ones, tens and hundreds, each with the carry from the column before."""
    first, second = facts["numbers"]
    ones = first % 10 + second % 10
    tens = first // 10 % 10 + second // 10 % 10 + (ones >= BASE and carried_ones)
    return [ones, tens, first // 100 + second // 100 + (tens >= BASE)]


def _good_sum(facts: Facts, _rng: random.Random) -> str:
    return _write_sum(_columns(facts))


def _flawed_sum(facts: Facts, rng: random.Random) -> str:
    """The carry of the ones is forgotten, or one column is off by one."""
    if _carries_ones(facts) and _chance(rng, HABIT):
        return _write_sum(_columns(facts, carried_ones=False))
    columns = _columns(facts)
    place = rng.randrange(3)
    columns[place] = max(0, columns[place] + rng.choice((-1, 1)))
    return _write_sum(columns)


def _check_sum(facts: Facts, text: str) -> _Verdict:
    numbers = re.findall(r"[0-9]+", text)
    if not numbers:
        return _Verdict("no number in the answer", 0.0)
    expected, total = str(sum(facts["numbers"])), numbers[-1]
    if total == expected:
        return _Verdict("", 1.0)
    pairs = zip(total[::-1], expected[::-1], strict=False)
    right = sum(found == wanted for found, wanted in pairs)
    credit = right / len(expected) if len(total) == len(expected) else 0.0
    return _Verdict(f"total {_clip(total)}, expected {expected}", credit)


# --- sort: put three to five words into alphabetical order


def _draw_sort(rng: random.Random) -> dict[str, Any]:
    return {"words": sorted(rng.sample(NOUNS, rng.randint(3, 5)))}


def _word_sort(facts: Facts, rng: random.Random) -> str:
    words = rng.sample(facts["words"], len(facts["words"]))
    form = rng.choice(("Sort these words: {}.", "Put in order: {}.", "Alphabetical order of {}?"))
    return form.format(", ".join(words))


def _good_sort(facts: Facts, _rng: random.Random) -> str:
    return "Sorted: " + ", ".join(facts["words"]) + "."


def _is_long_list(facts: Facts) -> bool:
    return len(facts["words"]) >= LONG_LIST


def _flawed_sort(facts: Facts, rng: random.Random) -> str:
    """The last word is forgotten (long lists), two neighbours are swapped, or a word repeats."""
    words = list(facts["words"])
    if _is_long_list(facts) and _chance(rng, HABIT):
        words.pop()
    elif _chance(rng, 0.7):
        place = rng.randrange(len(words) - 1)
        words[place], words[place + 1] = words[place + 1], words[place]
    else:
        words.insert(0, rng.choice(words))
    return "Sorted: " + ", ".join(words) + "."


def _check_sort(facts: Facts, text: str) -> _Verdict:
    expected = list(facts["words"])
    match = re.fullmatch(r"(?:Sorted: )?([a-z]+(?:, [a-z]+)*)\.?", text)
    if match is None:
        return _Verdict("not a comma-separated list of words", 0.0)
    found = match[1].split(", ")
    if found == expected:
        return _Verdict("", 1.0)
    in_place = sum(a == b for a, b in zip(found, expected, strict=False))
    credit = in_place / max(len(found), len(expected))
    if sorted(found) != expected:
        return _Verdict(f"{len(found)} words, expected the {len(expected)} given", credit)
    return _Verdict(f"{in_place} of {len(expected)} words in place", credit)


# --- words: one sentence with exactly n words, a place and a thing


def _draw_words(rng: random.Random) -> dict[str, Any]:
    return {
        "place": rng.choice(PLACES),
        "thing": rng.choice(THINGS),
        "word_count": rng.randint(5, 10),
    }


def _word_words(facts: Facts, rng: random.Random) -> str:
    form = rng.choice(
        (
            "Write exactly {word_count} words about the {place} and mention {thing}.",
            "Describe the {place} in exactly {word_count} words using {thing}.",
            "Use exactly {word_count} words: the {place} and its {thing}.",
        )
    )
    return form.format(**facts)


_SHAPES = [  # (adjectives, words before the thing, tail): every way to fill up a sentence
    (adjectives, before, tail)
    for adjectives in (0, 1, 2)
    for before in ("", "some", "many fine")
    for tail in TAILS
]


def _sentence(facts: Facts, word_count: int, thing: str, rng: random.Random) -> str:
    """A sentence of `word_count` words (4 to 11), the article and the full stop included."""
    shapes = [
        (adjectives, before, tail)
        for adjectives, before, tail in _SHAPES
        if 4 + adjectives + len(before.split()) + len(tail.split()) == word_count
    ]
    adjectives, before, tail = rng.choice(shapes)
    start = [rng.choice(("The", "Our")), *rng.sample(ADJECTIVES, adjectives), facts["place"]]
    return " ".join([*start, rng.choice(VERBS), *before.split(), thing, *tail.split()]) + "."


def _good_words(facts: Facts, rng: random.Random) -> str:
    return _sentence(facts, facts["word_count"], facts["thing"], rng)


def _is_long_sentence(facts: Facts) -> bool:
    return bool(facts["word_count"] >= LONG_SENTENCE)


def _flawed_words(facts: Facts, rng: random.Random) -> str:
    """One word short (long sentences), one too few or too many, or another thing."""
    count, thing = facts["word_count"], facts["thing"]
    if _is_long_sentence(facts) and _chance(rng, HABIT):
        return _sentence(facts, count - 1, thing, rng)
    if _chance(rng, 0.3):
        return _sentence(facts, count, rng.choice([t for t in THINGS if t != thing]), rng)
    return _sentence(facts, rng.choice((count - 1, count + 1)), thing, rng)


def _check_words(facts: Facts, text: str) -> _Verdict:
    words = text.rstrip(".").split()
    wanted = facts["word_count"]
    missing = [facts[key] for key in ("place", "thing") if facts[key] not in words]
    length = max(0.0, 1 - 0.25 * abs(len(words) - wanted))
    credit = 0.5 * length + 0.25 * (2 - len(missing))
    if missing:
        return _Verdict(f"does not mention {' and '.join(missing)}", credit)
    if len(words) != wanted:
        return _Verdict(f"{len(words)} words, expected {wanted}", credit)
    if len({word.lower() for word in words}) < len(words) - 1:
        return _Verdict("repeats words to fill up", credit)
    if not re.fullmatch(r"[^.]+\.", text):
        return _Verdict("not one sentence with a full stop", credit)
    return _Verdict("", 1.0)


# --- support: answer a complaint by name, with an apology, the item and the right remedy


def _draw_support(rng: random.Random) -> dict[str, Any]:
    return {
        "name": rng.choice(NAMES),
        "item": rng.choice(ITEMS),
        "problem": rng.choice(tuple(REMEDIES)),
    }


def _word_support(facts: Facts, rng: random.Random) -> str:
    form = rng.choice(
        (
            "Customer {name}: my {item} {problem}.",
            "Message from {name}: the {item} {problem}. Reply politely.",
            "Support ticket of {name}: {item} {problem}.",
        )
    )
    return form.format(**facts)


def _reply(facts: Facts, rng: random.Random, broken: set[str], remedy: str) -> str:
    """A reply with the parts named in `broken` left out or spoiled."""
    greeting = rng.choice(("Hello", "Dear"))
    item = "order" if "item" in broken else facts["item"]
    sorry = (f"We are sorry about your {item}.", f"Sorry for the trouble with your {item}.")
    sentences = [
        f"{greeting} customer." if "name" in broken else f"{greeting} {facts['name']}.",
        f"We saw the note about your {item}." if "apology" in broken else rng.choice(sorry),
    ]
    if "blame" in broken:
        sentences.append(rng.choice(BLAME_SENTENCES))
    sentences.append(
        rng.choice((f"We will send your {remedy} today.", f"You will get your {remedy} soon."))
    )
    if _chance(rng, 0.4):
        sentences.append(rng.choice(FILLERS))
    return " ".join(sentences)


def _good_support(facts: Facts, rng: random.Random) -> str:
    return _reply(facts, rng, set(), REMEDIES[facts["problem"]])


def _is_tempting_problem(facts: Facts) -> bool:
    return facts["problem"] in TEMPTING_PROBLEMS


def _flawed_support(facts: Facts, rng: random.Random) -> str:
    """A coupon instead of the remedy (some problems), or one part is missing or spoiled."""
    if _is_tempting_problem(facts) and _chance(rng, HABIT):
        return _reply(facts, rng, set(), "coupon")
    broken = rng.choice(("name", "apology", "item", "blame"))
    return _reply(facts, rng, {broken}, REMEDIES[facts["problem"]])


def _check_support(facts: Facts, text: str) -> _Verdict:
    words = set(re.findall(r"[a-z]+", text.lower()))
    remedy = REMEDIES[facts["problem"]]
    offers = [offer for offer in OFFERS if offer in words]
    checks = (
        (facts["name"].lower() in words, f"does not greet {facts['name']}"),
        ("sorry" in words, "no apology"),
        (facts["item"] in words, f"does not name the {facts['item']}"),
        (offers == [remedy], f"offers {' and '.join(offers) or 'nothing'}, expected {remedy}"),
        (not words.intersection(BLAME), "blames the customer"),
        (text.endswith("."), "does not end with a full stop"),
    )
    problems = [problem for passed, problem in checks if not passed]
    return _Verdict(problems[0] if problems else "", 1 - len(problems) / len(checks))


# --- extract: turn an order in prose into four named fields


def _draw_extract(rng: random.Random) -> dict[str, Any]:
    return {
        "name": rng.choice(NAMES),
        "item": rng.choice(ITEMS),
        "quantity": rng.randint(2, 9),
        "place": rng.choice(PLACES),
    }


def _word_extract(facts: Facts, rng: random.Random) -> str:
    form = rng.choice(
        (
            "Order of {name}: {quantity} x {item} to the {place}.",
            "Send {quantity} x {item} to the {place} for {name}.",
            "At the {place}, {name} needs {quantity} x {item}.",
        )
    )
    return form.format(**facts)


def _write_fields(fields: Mapping[str, Any]) -> str:
    return "; ".join(f"{key}: {value}" for key, value in fields.items()) + "."


def _good_extract(facts: Facts, _rng: random.Random) -> str:
    return _write_fields({key: facts[key] for key in FIELDS})


def _is_big_quantity(facts: Facts) -> bool:
    return bool(facts["quantity"] >= BIG_QUANTITY)


def _flawed_extract(facts: Facts, rng: random.Random) -> str:
    """The quantity is vague (big ones), or a field is missing or holds another one's value."""
    fields = {key: facts[key] for key in FIELDS}
    if _is_big_quantity(facts) and _chance(rng, HABIT):
        return _write_fields({**fields, "quantity": "many"})
    if _chance(rng, 0.6):
        del fields[rng.choice(FIELDS)]
        return _write_fields(fields)
    first, second = rng.sample(FIELDS, 2)
    fields[first], fields[second] = fields[second], fields[first]
    return _write_fields(fields)


def _check_extract(facts: Facts, text: str) -> _Verdict:
    parts = text.removesuffix(".").split("; ")
    if not all(": " in part for part in parts):
        return _Verdict("not a list of 'field: value'", 0.0)
    found = {key: value for key, _, value in (part.partition(": ") for part in parts)}
    wrong = [key for key in FIELDS if found.get(key) != str(facts[key])]
    surplus = len(parts) - sum(key in found for key in FIELDS)
    credit = max(0.0, 1 - (len(wrong) + surplus) / len(FIELDS))
    if wrong:
        value = _clip(found.get(wrong[0], "missing"))
        return _Verdict(f"{wrong[0]} {value}, expected {facts[wrong[0]]}", credit)
    if surplus:
        return _Verdict(f"{surplus} surplus or repeated fields", credit)
    return _Verdict("", 1.0)


# --- the public face

_FAMILIES: dict[str, _Family] = {
    "sum": _Family(_draw_sum, _word_sum, _check_sum, _good_sum, _flawed_sum, _carries_ones),
    "sort": _Family(_draw_sort, _word_sort, _check_sort, _good_sort, _flawed_sort, _is_long_list),
    "words": _Family(
        _draw_words, _word_words, _check_words, _good_words, _flawed_words, _is_long_sentence
    ),
    "support": _Family(
        _draw_support,
        _word_support,
        _check_support,
        _good_support,
        _flawed_support,
        _is_tempting_problem,
    ),
    "extract": _Family(
        _draw_extract,
        _word_extract,
        _check_extract,
        _good_extract,
        _flawed_extract,
        _is_big_quantity,
    ),
}
FAMILIES: tuple[str, ...] = tuple(_FAMILIES)


def sample_prompts(family: str, split: Split, count: int, seed: int) -> list[TaskPrompt]:
    """`count` tasks with distinct contents of one split; a smaller count gives a prefix.

    Raises:
        ValueError: the family or split is unknown, or the split has fewer than `count` contents.
    """
    draw, word = _family(family).draw, _family(family).word
    if split not in SPLIT_PERCENT:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLIT_PERCENT)}")
    rng = random.Random(f"{family}:{split}:{seed}")
    tasks: dict[str, TaskPrompt] = {}
    stale_draws = 0
    while len(tasks) < count:
        facts = draw(rng)
        key = _content_key(family, facts)
        if key in tasks or _split_of(key) != split:
            stale_draws += 1
            if stale_draws >= MAX_STALE_DRAWS:
                raise ValueError(
                    f"{count} prompts asked for, but only {len(tasks)} distinct contents of "
                    f"{family!r} found in split {split!r} ({MAX_STALE_DRAWS} draws in a row gave "
                    f"no new one); ask for at most {len(tasks)}"
                )
            continue
        stale_draws = 0
        tasks[key] = TaskPrompt(family, word(facts, rng), facts, key)
    return list(tasks.values())


def score(family: str, ground_truth: Facts, completion: str) -> float:
    """The reward in [0, 1]: exactly 1.0 on success, at most `PARTIAL_CREDIT` after a failed check.

    Never raises on a completion, whatever its text.

    Raises:
        ValueError: the family is unknown.
    """
    verdict = _verdict(family, ground_truth, completion)
    return PARTIAL_CREDIT * verdict.credit if verdict.problem else 1.0


def explain(family: str, ground_truth: Facts, completion: str) -> str:
    """The first failed check with its values in one line ("total 71, expected 72"), or "ok".

    Raises:
        ValueError: the family is unknown.
    """
    return _verdict(family, ground_truth, completion).problem or "ok"


def demonstrate(family: str, ground_truth: Facts, rng: random.Random, flawed: bool) -> str:
    """A demonstration answer: a good one scores 1.0; a flawed one almost always less.

    Flaws follow habits: a forgotten carry, a sentence one word short, a coupon for everything.

    Raises:
        ValueError: the family is unknown.
    """
    chosen = _family(family)
    return (chosen.flawed if flawed else chosen.good)(ground_truth, rng)


def is_tempting(family: str, ground_truth: Facts) -> bool:
    """True for contents that invite a habitual flaw (a carry, a long list, a big quantity, ...).

    Raises:
        ValueError: the family is unknown.
    """
    return _family(family).tempting(ground_truth)


def _family(name: str) -> _Family:
    if name not in _FAMILIES:
        raise ValueError(f"unknown task family {name!r}; known: {', '.join(_FAMILIES)}")
    return _FAMILIES[name]


def _verdict(family: str, facts: Facts, completion: str) -> _Verdict:
    check = _family(family).check
    if len(completion) > MAX_COMPLETION_CHARACTERS:
        length = f"{len(completion)} characters, expected at most {MAX_COMPLETION_CHARACTERS}"
        return _Verdict(length, 0.0)
    return check(facts, completion.strip())


def _content_key(family: str, facts: Facts) -> str:
    """32 hex digits of the canonical facts: draws keep order-free facts sorted."""
    canonical = json.dumps([family, facts], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def _split_of(content_key: str) -> str:
    percent = int(content_key[:8], 16) % 100
    for split, share in SPLIT_PERCENT.items():
        if percent < share:
            return split
        percent -= share
    raise AssertionError(f"the shares in SPLIT_PERCENT sum to less than 100: {SPLIT_PERCENT}")


def _clip(text: str) -> str:
    """At most `SHOWN_CHARACTERS` of untrusted text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 3] + "..."


def _chance(rng: random.Random, probability: float) -> bool:
    return rng.random() < probability
