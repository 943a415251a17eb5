# SPDX-License-Identifier: Apache-2.0
"""Personal data in texts, found by rules of our own and replaced by what it is: [EMAIL], [IBAN], and so on.

Numbers that carry a check digit count only when it is right. What has none (a phone number, a date, a record number) needs a
form or a word beside it that no other number has. Rules find what has a form; names and addresses have none.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from . import check_digits
from .records import Row


@dataclass(frozen=True)
class Hit:
    """One piece of personal data.

    Attributes:
        place: file with page or line, as `Row.places_of` says it.
        kind: a key of `RULES`.
        text: what stood there.
    """

    place: str
    kind: str
    text: str = field(repr=False)


def _phone(text: str) -> bool:
    return 7 <= sum(c.isdigit() for c in text) <= 15


def _always(_: str) -> bool:
    return True


@dataclass(frozen=True)
class Rule:
    """A kind of data: its form, of which the group "it" is replaced; what to cut from the end of it; a check of the rest."""

    kind: str
    form: re.Pattern[str]
    check: Callable[[str], bool] = _always
    cut: Callable[[str], str] = str


_EDGE, _END = r"(?<![\w.-])", r"(?![\w-]|\.\d)"
_DATE = (
    r"(?:\d{1,2}[./-]\d{1,2}[./-](?:\d{4}|\d{2})|\d{4}[./-]\d{1,2}[./-]\d{1,2}"
    r"|\d{1,2}[ -]?(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\.?[ -]?(?:\d{4}|\d{2})(?!\d)"
    r"|\d{1,2}(?:st|nd|rd|th|\.)?\s+(?:(?:of|de)\s+)?[A-Za-zäéû]{3,10}\.?,?\s+(?:de\s+)?\d{4}|[A-Za-z]{3,9}\.?\s+\d{1,2}(?:st|nd|rd|th)?,?\s+\d{4})"
)
_BORN = (
    r"(?:\b(?:date\s+of\s+birth|birth\s*date|birthday|d\.?o\.?b\.?|geburtsdatum|geb\.?-?\s?datum"
    r"|born(?:\s+in\s+[^\d\n]{2,30}?)?(?:\s+on)?|(?:geboren|geb\.)(?:\s+in\s+[^\d\n]{2,30}?)?(?:\s+am)?"
    r"|n[ée]e?\s+le|date\s+de\s+naissance|fecha\s+de\s+nacimiento|nacid[oa]\s+el|data\s+di\s+nascita|nat[oa]\s+il)\s*(?:\([^()\n]{1,20}\)\s*)?(?:[:=|-]|is\b|was\b)?\s*(?:the\s+|el\s+)?)"
)
_RECORD = (
    r"(?:\b(?:mrn|medical\s+record(?:\s+(?:number|no\.?|#))?|patient[\s-]*(?:id|number|no\.?|#)|hospital\s+(?:number|no\.?)"
    r"|(?:fall|aufnahme|patienten)-?(?:nummer|nr\.?|id)|chart\s+(?:number|no\.?|#))\s*(?:is\s+)?[:#=(|]?\s*)"
)


def _rule(
    kind: str, form: str, check: Callable[[str], bool] = _always, *, flags: int = 0, cut: Callable[[str], str] = str
) -> Rule:
    return Rule(kind, re.compile(form, flags), check, cut)


_UK_LETTERS = r"(?![DFIQUV])[A-Z](?![DFIQUVO])[A-Z](?<!BG|GB|KN|NK|NT|TN|ZZ)"
_GERMAN_WORD = r"(?:(?i:steuer|identifikationsnummer|idnr|tin\b)[^\d\n]{0,30})"
_FRENCH = r"[12] ?\d{2} ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}"
_TAX = r"[\dLMNPQRSTUV]"  # letters stand for digits where two people would have the same code
# forms of national ids; where any number could look like one, a word has to stand before it
_NATIONAL: tuple[tuple[str, Callable[[str], bool]], ...] = (
    (_EDGE + r"(?P<it>\d{3}(?P<gap>[- ])\d{2}(?P=gap)\d{4})", check_digits.ssn),
    (_EDGE + rf"(?P<it>{_UK_LETTERS} ?\d{{2}} ?\d{{2}} ?\d{{2}} ?[A-D])", _always),
    (r"(?:(?i:\bssn|\bsocial\s+security)[^\d\n]{0,20})(?P<it>\d{9})", check_digits.ssn),
    (r"(?:NHS\D{0,20})(?P<it>\d{3}[ -]?\d{3}[ -]?\d{4})", check_digits.nhs),
    (_GERMAN_WORD + r"(?P<it>\d{2} ?\d{3} ?\d{3} ?\d{3})", check_digits.steuer_id),
    (_EDGE + r"(?P<it>\d{2} ?[0-8]\d[01]\d{3} ?[A-Z] ?\d{3})", check_digits.rentenversicherung),
    (r"(?:(?i:versicherten|krankenversicher|kvnr|egk)[^\d\n]{0,30}?)\b(?P<it>[A-Z]\d{9})", check_digits.krankenversicherung),
    (_EDGE + rf"(?P<it>{_FRENCH})", check_digits.nir),
    (_EDGE + r"(?P<it>(?:\d{8}|[XYZ]-?\d{7})-?[A-HJ-NP-TV-Z])", check_digits.dni),
    (r"(?:(?i:\b(?:dni|nie|nif))\b[^\w\n]{0,20})(?P<it>(?:\d{8}|[XYZ][ -]?\d{7})[ -]?[A-HJ-NP-TV-Z])", check_digits.dni),
    (
        _EDGE + rf"(?P<it>[A-Z]{{6}}{_TAX}{{2}}[A-EHLMPRST]{_TAX}{{2}}[A-Z]{_TAX}{{3}}[A-Z])",
        check_digits.codice_fiscale,
    ),
    (r"(?:(?i:\bbsn|burgerservicenummer|sofinummer)[^\d\n]{0,20})(?P<it>\d{9})", check_digits.bsn),
    (r"(?:(?i:\bpesel)[^\d\n]{0,20})(?P<it>\d{11})", check_digits.pesel),
    (_EDGE + r"(?P<it>\d{3}\.\d{3}\.\d{3}-\d{2})", check_digits.cpf),
    (_EDGE + r"(?P<it>[1-9]\d{5}(?:19|20)\d{9}[\dXx])", check_digits.china),
)
_PHONE_WORD = (
    r"(?:(?i:\b(?:tel|tél|telephone|phone|mobile|mobil|cell|fax|telefon|téléphone|teléfono|telefono|handy|rufnummer|call|dial)\b)[^\w\n(]{0,4}"
    r"(?:(?i:no|nr|number|nummer)\b[^\w\n]{0,3})?)"
)
# numbers that people write without a word: United States; United Kingdom; Germany, with a stroke or mobile
_US = r"(?:1[-. ])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-.])[2-9]\d{2}[-.]\d{4}"
_UK = r"07\d{3} \d{3} ?\d{3}|020 \d{4} \d{4}|01\d{3} \d{3} ?\d{3}|01\d{2} \d{3} \d{4}"
_GERMAN = r"0[1-9]\d{1,3} ?/ ?(?!(?:19|20)\d\d\b)(?=(?:[ -]?\d){5})\d{2,9}(?:[ -]\d{2,6}){0,4}|01[567]\d[ -]\d{7,8}"
_IBAN = r"(?<!\w)(?P<it>(?:[A-Z]{2}|[a-z]{2})\d{2}(?:[ -]?[A-Z0-9]){11,30})(?!\w)"
# the order decides where two would match at the same place
RULES = (
    _rule(
        "EMAIL",
        r"(?<![\w.+-])(?P<it>[\w.+%-][\w.+%'-]{0,63}@(?:[\w-]{1,63}\.){1,8}(?:[^\W\d_]{2,24}|xn--[a-z0-9-]{2,59}))(?![\w@-])",
    ),
    _rule("IBAN", _IBAN, check_digits.iban, cut=check_digits.iban_alone),
    _rule(
        "CARD",
        _EDGE
        + r"(?P<it>[2-6]\d{3}(?:[ -]?\d{4}){2}[ -]?\d{1,7}|[2-6]\d{3}(?:\.\d{4}){3}|3[0-9]\d{2}[ -]?\d{6}[ -]?\d{4,5})"
        + _END,
        check_digits.card,
    ),
    _rule("BIRTH_DATE", _BORN + rf"(?P<it>{_DATE})(?!\d)", flags=re.IGNORECASE),
    _rule("RECORD_NUMBER", _RECORD + r"(?P<it>(?=[\w-]*\d{3})[A-Z0-9][A-Z0-9-]{3,18}[A-Z0-9])\b", flags=re.IGNORECASE),
    *(_rule("NATIONAL_ID", form + _END, check) for form, check in _NATIONAL),
    _rule("PHONE", r"(?<![\w.+])(?P<it>(?:\+|\b00)[1-9]\d{0,2}(?:[ ./()-]{0,3}\d){6,13})(?![\w])", _phone),
    _rule("PHONE", _EDGE + rf"(?P<it>{_US}|{_UK}|{_GERMAN})" + _END, _phone),
    _rule("PHONE", _PHONE_WORD + r"(?P<it>\(?\d(?:[ ./()-]{0,3}\d){6,13})(?!\w)", _phone),
)
# spaces and hyphens that Word and PDF put into numbers, sign by sign
_TYPESET = {"\xa0": " ", "\u202f": " ", "\u2009": " ", "\u2010": "-", "\u2011": "-", "\u2013": "-"}
_SIGN = re.compile(r"[\d@]")  # every rule needs one of them
KINDS = tuple(dict.fromkeys(rule.kind for rule in RULES))


def find(text: str) -> list[tuple[int, int, str]]:
    """(start, end, kind) of all personal data in a text, in order; they do not overlap."""
    found: list[tuple[int, int, str]] = []
    if not _SIGN.search(text):
        return found
    for sign, plain in _TYPESET.items():
        text = text.replace(sign, plain)
    for rule in RULES:
        for match in rule.form.finditer(text):
            it = rule.cut(match["it"])
            start, end = match.start("it"), match.start("it") + len(it)
            at = bisect(found, (start, end, rule.kind))
            free = (at == 0 or found[at - 1][1] <= start) and (at == len(found) or end <= found[at][0])
            whole = end == match.end("it") or not text[end].isalnum()  # not the beginning of a longer number
            if free and whole and rule.check(it):
                found.insert(at, (start, end, rule.kind))
    return found


def redact_row(row: Row) -> tuple[Row, list[Hit]]:
    """The row with its personal data replaced by [KIND], and what was replaced; rows of token ids stay as they are."""
    hits: list[Hit] = []
    if "input_ids" in row.data:
        return row, hits
    data = {key: _redacted(value, row, hits) for key, value in row.data.items()}
    if not hits:
        return row, hits
    return Row(data, row.source, _shifted(row)), hits


def _shifted(row: Row) -> tuple[tuple[int, str], ...]:
    """Where the places of a row begin after the redaction."""
    found = find(row.data["text"]) if row.places else []
    ends = [end for _, end, _ in found]
    grown = [0, *accumulate(len(kind) + 2 - (end - start) for start, end, kind in found)]
    return tuple((at + grown[bisect(ends, at)], name) for at, name in row.places)


def _redacted(value: Any, row: Row, hits: list[Hit]) -> Any:
    """A text, or texts in lists and objects, without personal data; roles and names of keys stay."""
    if isinstance(value, list):
        return [_redacted(item, row, hits) for item in value]
    if isinstance(value, dict):
        return {key: item if key == "role" else _redacted(item, row, hits) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    return "".join(_pieces(value, row, hits))


def _pieces(text: str, row: Row, hits: list[Hit]) -> Iterator[str]:
    found = find(text)
    starts = [start for start, _, _ in found]
    places = row.places_of(starts) if row.data.get("text") is text else [row.source] * len(found)
    at = 0
    for (start, end, kind), place in zip(found, places, strict=True):
        hits.append(Hit(place, kind, text[start:end]))
        yield f"{text[at:start]}[{kind}]"
        at = end
    yield text[at:]
