"""Personal data and secrets in texts, by shape and checksum: how many, never which."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Literal, NamedTuple

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PersonalData = Literal["email", "phone", "iban", "credit_card", "ip_address", "us_ssn"]

NOBODYS_DOMAIN = re.compile(
    r"(?i)(?:@|\.)(?:example\.(?:com|net|org)|example|invalid|test|local|localhost)$"
)
"""Set aside for examples and local networks (RFC 2606, 6761, 6762)."""

NO_ADDRESS = re.compile(r"(?i)^git@|\.(?:png|jpe?g|gif|svg|webp)$")
"""A repository (git@host) or an image in twice its size (logo@2x.png)."""

IBAN_LENGTHS = {
    country: int(length)
    for country, length in re.findall(
        r"(\w\w)(\d\d)",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 "
        "DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 "
        "IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 "
        "MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 "
        "SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30",
    )
}
"""Characters of an IBAN by country (the IBAN registry of SWIFT)."""

CARD_NUMBERS = re.compile(
    r"4\d{15}|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14}|3(?:0[0-5]|[689]\d)\d{11}"
)
"""Visa, Mastercard, American Express, Discover, JCB, UnionPay and Diners Club."""

SECRETS = (
    r"\b(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[0-9A-Z]{16}\b",  # AWS access key ids
    r"\bAccountKey=[A-Za-z0-9+/=]{88}",  # Azure storage
    r"\bAIza[\w-]{35}",  # Google
    r"\bgh[opsur]_[A-Za-z0-9]{36}|\bgithub_pat_\w{22}_\w{59}",
    r"\bgl(?:pat|dt|ft|rt|cbt|ptt)-[\w-]{20,50}",  # GitLab
    r"\bxox[abposr]-(?:\d+-)+[A-Za-z0-9]+",  # Slack, and its webhooks
    r"https://hooks\.slack\.com/services/T\w+/B\w+/\w+",
    r"\b[rs]k_live_[0-9A-Za-z]{24}",  # Stripe
    r"\bsk-[\w-]*[\w-]{20}T3BlbkFJ[\w-]{20}",  # OpenAI: the middle is base64 for "OpenAI"
    r"\bsk-ant-[a-z]+\d\d-[\w-]{80}",  # Anthropic
    r"\bhf_[A-Za-z]{34}\b",  # Hugging Face
    r"\bnpm_[A-Za-z0-9]{36}\b",
    r"\bpypi-Ag[\w-]{80}",
    r"\bSG\.[\w-]{22}\.[\w-]{43}",  # SendGrid
    r"\b(?:AC|SK)[0-9a-f]{32}\b",  # Twilio
    r"\b\d{8,10}:AA[\w-]{33}",  # Telegram
    r"\b[MNO][\w-]{23,25}\.[\w-]{6}\.[\w-]{27}",  # Discord
    r"\b[0-9a-f]{32}-us\d{1,2}\b",  # Mailchimp
    r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",  # JSON web tokens: both parts begin with {"
    r"-----BEGIN (?:[A-Z0-9]+ ){0,2}PRIVATE KEY(?: BLOCK)?-----\s+[\w+/=:]",
)
"""Keys whose issuers gave them a shape of their own, after the plugins of detect-secrets 1.5."""


class _Shape(NamedTuple):
    """What a kind looks like, and whether a text of that shape is one."""

    pattern: str
    is_one: Callable[[str], bool]


def personal_data(texts: pl.Series, kinds: Iterable[PersonalData]) -> pl.Series:
    """Return how many pieces of personal data of these kinds each text holds.

    Structured kinds alone: names and postal addresses have no shape of their own. docs/filters.md
    says how often each kind is missed and mistaken.
    """
    found = texts.is_null().cast(pl.UInt32) * 0
    for kind in kinds:
        found += _count(texts, SHAPES[kind])
    return found


def secrets(texts: pl.Series) -> pl.Series:
    """Return how many keys and tokens with a shape of `SECRETS` each text holds."""
    return texts.str.count_matches(ASCII + "|".join(SECRETS))


def _count(texts: pl.Series, shape: _Shape) -> pl.Series:
    """Return how many findings each text holds; each different one is checked once."""
    found = texts.str.extract_all(ASCII + shape.pattern)
    ones = [text for text in found.explode().drop_nulls().unique() if shape.is_one(text)]
    return found.list.eval(pl.element().is_in(ones)).list.sum().cast(pl.UInt32)


def _is_email(text: str) -> bool:
    return not (NOBODYS_DOMAIN.search(text) or NO_ADDRESS.search(text))


def _is_phone(text: str) -> bool:
    """Return whether it is no sum and as long as a number may be, and not one for films."""
    digits = re.sub(r"\D", "", text)
    fictional = re.search(r"55501\d\d$", digits)
    return "+" not in text[1:] and 8 <= len(digits) <= 15 and not fictional  # noqa: PLR2004


def _is_iban(text: str) -> bool:
    """Return whether the country's length and the two check digits are right (ISO 13616)."""
    length, compact = IBAN_LENGTHS.get(text[:2], 0), text.replace(" ", "")
    if " " in text:
        compact = compact[:length]  # what follows may be a word in capitals
    turned = compact[4:] + compact[:4]
    return len(compact) == length and int("".join(str(int(c, 36)) for c in turned)) % 97 == 1


def _is_credit_card(text: str) -> bool:
    """Return whether an issuer has such numbers and the check digit is right (Luhn)."""
    digits = re.sub(r"[ -]", "", text)
    if not CARD_NUMBERS.fullmatch(digits):
        return False
    doubled = [sum(divmod(2 * int(d), 10)) for d in digits[-2::-2]]
    return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def _is_ip_address(text: str) -> bool:
    """Return whether anyone can have it: it isn't private, reserved, a version or a network."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _is_us_ssn(text: str) -> bool:
    area, group, serial = text.split("-")
    return area not in {"000", "666"} and area < "900" and group != "00" and serial != "0000"


ASCII = "(?-u)"
"""Of a pattern: letters, digits and word boundaries are ASCII's, also within Japanese."""

SHAPES: dict[str, _Shape] = {
    "email": _Shape(r"\b[\w.%+-]+@(?:[\w-]+\.)+[A-Za-z]{2,24}\b", _is_email),
    # A digit before the plus makes it a sum.
    "phone": _Shape(
        r"(?:[\d)=]\s?)?\+[1-9]\d{0,3}(?:[ .-]?\(?\d{1,4}\)?){2,6}\b"
        r"|\([2-9]\d\d\) ?[2-9]\d\d[-. ]\d{4}\b"
        r"|\b(?:1[-.])?[2-9]\d\d(?:-[2-9]\d\d-|\.[2-9]\d\d\.)\d{4}\b",
        _is_phone,
    ),
    "iban": _Shape(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", _is_iban),
    # A point before the digits makes them decimals.
    "credit_card": _Shape(
        r"[.]?\b(?:\d{14,16}|\d{4}(?: \d{4}){3}|\d{4}(?:-\d{4}){3}|3\d{3}[ -]\d{6}[ -]\d{4,5})\b",
        _is_credit_card,
    ),
    # With what makes it something else: `version 1.2.3.4`, `1.2.3.4.5`, `1.2.3.0/24`.
    "ip_address": _Shape(
        r"(?:\b[vV](?:ersion)?[ .]?)?\b\d{1,3}(?:\.\d{1,3}){3,}\b(?:/\d+)?"
        r"|\b[23][0-9a-fA-F]{3}:[0-9a-fA-F:]{2,34}[0-9a-fA-F]\b",
        _is_ip_address,
    ),
    "us_ssn": _Shape(r"\b\d{3}-\d{2}-\d{4}\b", _is_us_ssn),
}
