"""Personal data and secrets: what has the shape and the checksum counts, and nothing else."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.sensitive_text import SHAPES, personal_data, secrets

# From the standards' own examples and issuers' test numbers: none of them is anybody's.
FOUND = {
    "email": [
        "Write to anna.k+news@mail.university.ac.uk today.",
        "連絡先はanna@firma.jpです",
        "<a href='mailto:o_1@163.com'>",
    ],
    "phone": [
        "Call +49 30 901820 or",
        "call +1 (212) 736-5000.",
        "+33 1 53 76 00 00",
        "+442079460018",
        "(212) 736-5000",
        "212-736-5000",
        "1-212-736-5000",
    ],
    "iban": [
        "GB82WEST12345698765432",
        "DE89 3704 0044 0532 0130 00 BELONGS TO",
        "BE68 5390 0754 7034 OK",  # a group in capitals follows
        "NO9386011117947.",
    ],
    "credit_card": [
        "4111111111111111",
        "5555-5555-5555-4444",
        "3782 822463 10005",
        "card 6011 0009 9013 9424, valid",
    ],
    "ip_address": ["at 8.8.8.8:53", "[2606:4700:4700::1111]"],
    "us_ssn": ["SSN: 219-09-9999."],
}
NOT_FOUND = {
    "email": [
        "@functools.cache",
        "a@b",
        "git@github.com:org/repo.git",
        "logo@2x.png",
        "me@example.com",
        "me@mail.example.org",
        "root@localhost",
        "me@host.local",
    ],
    "phone": [
        "3 +49650936 = 49650939",
        "2 + 464277503",
        "253 933 9069",  # three numbers as well
        "13981750064",
        "2021-09-01",
        "(212) 555-0123",  # for films
        "+123",
        "127.0.0.1",
        "012-345-6789",
    ],
    "iban": ["GB82WEST12345698765433", "DE8937040044053201300", "XX82WEST12345698765432"],
    "credit_card": [
        "4111111111111112",
        "0.4111111111111111",
        "1234567812345670",  # right check digit, no issuer
        "41111111111111111",
        "4111 1111 11111111",
    ],
    "ip_address": [
        "version 1.2.3.4",
        "v8.8.8.8",
        "8.8.8.8.8",
        "8.8.8.0/24",
        "192.168.0.1",
        "127.0.0.1",
        "203.0.113.7",  # for documentation
        "999.8.8.8",
        "12:30:45",
        "std::vector",
        "2001:db8::1",
    ],
    "us_ssn": ["000-12-3456", "666-12-3456", "912-12-3456", "123-00-4567", "123-45-0000", "1-2-3"],
}


def counts(texts, *kinds):
    return personal_data(pl.Series(texts, dtype=pl.String), kinds).to_list()


@pytest.mark.parametrize("kind", SHAPES)
def test_each_kind_is_found_where_it_is_and_nowhere_else(kind):
    assert counts(FOUND[kind], kind) == [1] * len(FOUND[kind])
    assert counts(NOT_FOUND[kind], kind) == [0] * len(NOT_FOUND[kind])
    both = f"{FOUND[kind][0]} and {FOUND[kind][1 % len(FOUND[kind])]} and {NOT_FOUND[kind][0]}"
    assert counts([both, None, ""], kind) == [2, None, 0]


def test_kinds_add_up_and_only_those_asked_for_count():
    texts = ["ask anna@firma.de, +49 30 901820; 219-09-9999", None, "none"]
    assert counts(texts, "email") == [1, None, 0]
    assert counts(texts, "email", "phone", "us_ssn") == [3, None, 0]
    assert counts([], *SHAPES) == []


@given(st.text(max_size=60))
def test_any_text_can_be_searched(text):
    alone = counts([text], *SHAPES)
    assert counts([text, "x", text], *SHAPES) == [*alone, 0, *alone]
    assert secrets(pl.Series([text], dtype=pl.String))[0] >= 0


@given(st.integers(0, 9), st.integers(0, 15))
def test_one_wrong_digit_is_no_card_number(digit, place):
    right = "5555555555554444"
    wrong = right[:place] + str(digit) + right[place + 1 :]
    assert counts([wrong], "credit_card") == [int(wrong == right)]


# In pieces: whole, they would look like leaks to whatever scans this repository.
KEYS = [
    "AKIA" + "IOSFODNN7EXAMPLE",
    "ghp_" + "aB3" * 12,
    "github_pat_" + "a" * 22 + "_" + "b" * 59,
    "glpat-" + "x-Y_z" * 4,
    "xoxb-" + "123456789012-1234567890123-" + "Ab1" * 8,
    "https://hooks.slack.com/services/" + "T0000/B0000/" + "x" * 24,
    "sk_live_" + "a1B2" * 6,
    "AIza" + "a-_B1" * 7,
    "sk-" + "a1" * 10 + "T3BlbkFJ" + "b2" * 10,
    "sk-proj-" + "a_-b" * 18 + "T3BlbkFJ" + "b_-2" * 18,
    "sk-ant-api03-" + "a_-b" * 23,
    "hf_" + "aB" * 17,
    "npm_" + "a1B" * 12,
    "pypi-" + "AgEIcHlwaS5vcmc" + "a_-b" * 20,
    "SG." + "a_-b1" * 4 + "ab." + "c_-d" * 10 + "efg",
    "SK" + "0f" * 16,
    "123456789:" + "AA" + "a_-" * 11,
    "0f" * 16 + "-us12",
    "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0In0." + "a_-" * 5,
    "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIE",
]
NO_KEYS = [
    "task-" + "a" * 40,
    "sk-learn",
    "ghp_short",
    "hf_hub_download",
    "AIzaTooShort",
    "eyJ.eyJ.x",
    "-----BEGIN PUBLIC KEY-----\nMIIE",
    "BEGIN RSA PRIVATE KEY",
    "da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "password = 'hunter2'",
]


def test_secrets_are_known_by_their_shape():
    assert secrets(pl.Series([f"key `{key}`," for key in KEYS])).to_list() == [1] * len(KEYS)
    assert secrets(pl.Series(NO_KEYS)).to_list() == [0] * len(NO_KEYS)
    assert secrets(pl.Series([" ".join(KEYS[:3]), None, ""])).to_list() == [3, None, 0]
