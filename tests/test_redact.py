# SPDX-License-Identifier: Apache-2.0
"""Personal data: what must be found, and what must not."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest
from bombs import text_pdf
from hypothesis import given
from hypothesis import strategies as st
from small import write

from neuralforge.errors import ConfigError
from neuralforge.ingest import Dataset
from neuralforge.records import Row
from neuralforge.redact import KINDS, RULES, find

# text with <what must be found>, and its kind; numbers are the published examples of their kind
SHOULD = [
    ("mail <anna.muster+x@example.co.uk>, please", "EMAIL"),
    ("<o'neil@mail.example.org>.", "EMAIL"),
    ("<mailto:me@example.com>".replace("mailto:", ""), "EMAIL"),
    ("<jürgen@bücher.example>", "EMAIL"),
    ("card <4111 1111 1111 1111> ok", "CARD"),
    ("<5500-0000-0000-0004>", "CARD"),
    ("<378282246310005>", "CARD"),
    ("<3782 822463 10005>", "CARD"),
    ("No. <6011111111111117>, exp. 12/29", "CARD"),
    ("<DE89370400440532013000>", "IBAN"),
    ("IBAN <DE89 3704 0044 0532 0130 00> BIC", "IBAN"),
    ("<GB29 NWBK 6016 1331 9268 19>", "IBAN"),
    ("<FR14 2004 1010 0505 0001 3M02 606>", "IBAN"),
    ("<NL91ABNA0417164300>;", "IBAN"),
    ("<FR14 20041 01005 0500013M026 06>", "IBAN"),
    ("<MN12 1234 1234 5678 9123>", "IBAN"),
    ("<30569309025904>", "CARD"),
    ("<3056 930902 5904>", "CARD"),
    ("<3530111333300000>", "CARD"),
    ("<2223003122003222>", "CARD"),
    ("mail '<me@example.com>'", "EMAIL"),
    ("<me@example.xn--p1ai>", "EMAIL"),
    ("DNI: <12345678 Z>", "NATIONAL_ID"),
    ("CF <RSSMRA85T10A56NH>", "NATIONAL_ID"),
    ("fecha de nacimiento: <12 de marzo de 1975>", "BIRTH_DATE"),
    ("born on the <12th of March 1975>", "BIRTH_DATE"),
    ("her birthday is <12/03/1975>", "BIRTH_DATE"),
    ("IBAN <NO93 8601 1117 947> AND MORE", "IBAN"),
    ("SSN <219-09-9999>", "NATIONAL_ID"),
    ("<219 09 9999>", "NATIONAL_ID"),
    ("NI number <AB 12 34 56 C>", "NATIONAL_ID"),
    ("NHS No: <943 476 5919>", "NATIONAL_ID"),
    ("Steuer-ID: <86 095 742 719>", "NATIONAL_ID"),
    ("IdNr <47036892816>", "NATIONAL_ID"),
    ("sécu <2 55 08 14 168 025 38>", "NATIONAL_ID"),
    ("DNI <12345678Z>", "NATIONAL_ID"),
    ("<X-1234567-L>", "NATIONAL_ID"),
    ("CF <RSSMRA85T10A562S>", "NATIONAL_ID"),
    ("BSN: <111222333>", "NATIONAL_ID"),
    ("PESEL <44051401359>", "NATIONAL_ID"),
    ("CPF <529.982.247-25>", "NATIONAL_ID"),
    ("<11010519491231002X>", "NATIONAL_ID"),
    ("Date of birth: <12/03/1975>", "BIRTH_DATE"),
    ("DOB <1975-03-12>.", "BIRTH_DATE"),
    ("she was born on <March 12, 1975> in", "BIRTH_DATE"),
    ("born <12th March 1975>", "BIRTH_DATE"),
    ("geb. <12.03.75>", "BIRTH_DATE"),
    ("geboren am <3. März 1975>", "BIRTH_DATE"),
    ("née le <12/03/1975>", "BIRTH_DATE"),
    ("MRN: <00482913>", "RECORD_NUMBER"),
    ("medical record number <A-123456>", "RECORD_NUMBER"),
    ("Patient ID <P1234567>", "RECORD_NUMBER"),
    ("Fallnummer <2023-004711>", "RECORD_NUMBER"),
    ("call <+49 30 901820> now", "PHONE"),
    ("<+1 (415) 555-2671>", "PHONE"),
    ("<0044 20 7946 0958>", "PHONE"),
    ("<(415) 555-2671>", "PHONE"),
    ("<415-555-2671>", "PHONE"),
    ("Tel.: <030 / 901820-44>", "PHONE"),
    ("mobile number <07700 900123>", "PHONE"),
    ("Fax <(0)89 2180 0>", "PHONE"),
    ("<1-800-555-0199>", "PHONE"),
    ("<07700 900123> or", "PHONE"),
    ("<020 7946 0958>.", "PHONE"),
    ("<01632 960 001>", "PHONE"),
    ("<0161 496 0123>", "PHONE"),
    ("<030/901820>", "PHONE"),
    ("<030 / 90 18 20>", "PHONE"),
    ("<0171 1234567>", "PHONE"),
    ("<0171-1234567>", "PHONE"),
    ("Telephone: <2125550123>", "PHONE"),
    ("Rufnummer <89 123456>", "PHONE"),
    ("Tél. : <01 42 68 53 00>", "PHONE"),
    ("please call <212 555 0123> today", "PHONE"),
    ("<de89 3704 0044 0532 0130 00>", "IBAN"),
    ("<DE89\xa03704\xa00044\xa00532\xa00130\xa000>", "IBAN"),
    ("<4111\u202f1111\u202f1111\u202f1111>", "CARD"),
    ("<4111.1111.1111.1111>", "CARD"),
    ("geb. am <03.04.1975>", "BIRTH_DATE"),
    ("Geb.-Datum: <03.04.1975>", "BIRTH_DATE"),
    ("geboren in Ulm am <3. April 1975>", "BIRTH_DATE"),
    ("born in New York on <3 March 1975>", "BIRTH_DATE"),
    ("Birthdate: <03-Mar-1975>", "BIRTH_DATE"),
    ("DOB <03MAR1975>", "BIRTH_DATE"),
    ("DOB: <3 Mar 75>", "BIRTH_DATE"),
    ("DOB (mm/dd/yyyy): <03/04/1975>", "BIRTH_DATE"),
    ("Date of Birth | <03/04/1975>", "BIRTH_DATE"),
    ("Date of birth\n<03/04/1975>", "BIRTH_DATE"),
    ("SSN: <219099999>", "NATIONAL_ID"),
    ("Social Security Number <219099999>", "NATIONAL_ID"),
    ("SSN <219\u201109\u20119999>", "NATIONAL_ID"),
    ("NHS Number\n<943 476 5919>", "NATIONAL_ID"),
    ("Rentenversicherungsnummer <65 170839 J 003>", "NATIONAL_ID"),
    ("<65170839J003>", "NATIONAL_ID"),
    ("Versichertennummer: <A123456780>", "NATIONAL_ID"),
    ("Patient #: <445566>", "RECORD_NUMBER"),
    ("Fall-Nr.: <1234567>", "RECORD_NUMBER"),
    ("Aufnahmenummer <12345678>", "RECORD_NUMBER"),
    ("MRN (<12345678>)", "RECORD_NUMBER"),
]


@pytest.mark.parametrize(("marked", "kind"), SHOULD, ids=[text for text, _ in SHOULD])
def test_should_hit(marked: str, kind: str) -> None:
    start, end = marked.index("<"), marked.index(">") - 1
    text = marked.replace("<", "").replace(">", "")
    assert find(text) == [(start, end, kind)]


SHOULD_NOT = [
    "4111 1111 1111 1112",
    "0000 0000 0000 0000",
    "12345678901234567890123",
    "DE89370400440532013001",
    "DE00 0000 0000",
    "DE89370400440532013000123",
    "invoice 2023047112345673",
    "order 2024 0101 1234 5670",
    "study of 20230103 Q",
    "000-12-3456",
    "219-09 9999",
    "666-12-3456",
    "987-65-4321",
    "12345678A",
    "RSSMRA85T10A562A",
    "NHS 943 476 5918",
    "943 476 5919",
    "Steuer 86095742710",
    "BSN 111222334",
    "PESEL 44051401358",
    "44051401359",
    "529.982.247-26",
    "110105194912310021",
    "BG 12 34 56 C",
    "ISBN 978-3-16-148410-0",
    "ISBN 9783161484100",
    "127.0.0.1 and 192.168.100.200:8080",
    "version 1.2.3.4-beta",
    "the meeting of 12/03/1975",
    "born in 1975 in Ulm",
    "the patient was 45 years old",
    "patient number two",
    "the chart number of visitors",
    "on 2021-01-01 12:00:00",
    "1609459200",
    "123e4567-e89b-12d3-a456-426614174000",
    "d41d8cd98f00b204e9800998ecf8427e",
    "52.520008, 13.404954",
    "3.14159265358979",
    "a@b and @handle and x@y.T",
    "1 + 2 = 3 and 10,000,000 people in 2020-2021",
    "doi:10.1000/182",
    "pages 415-555",
    "$1,234,567.89",
    "order 20230471123",
    "Section 230.3.2",
    "+5 points, +12 %",
    "0-0-0",
    "Genesis 1:1-2:3",
    "E = mc2, n = 1000",
    "3:45 to 17:30",
    "ABCD 1234 EFGH 5678",
    "de89370400440532013001",
    "4123.123456789012",
    "4111.1111.1111.1112",
    "born in a hospital in 1975 of 12 children",
    "born 12 months 20 days later",
    "invoice 0123/2019",
    "No. 012/2020 and 2020/012345",
    "SSN: 000219999",
    "65170839J004",
    "65990839J003",
    "Versichertennummer: A123456781",
    "A123456780",
    "pages 100 200 3000",
    "01 02 03 04 05",
    "0.07700 900123",
    "calls 212 of 555",
    "the call of 1975",
]


@pytest.mark.parametrize("text", SHOULD_NOT)
def test_should_not_hit(text: str) -> None:
    assert find(text) == []


def test_every_kind_and_rule_is_in_the_table() -> None:
    assert {kind for _, kind in SHOULD} == set(KINDS)
    texts = [text.replace("<", "").replace(">", "") for text, _ in SHOULD]
    for rule in RULES:
        assert any(rule.form.search(text) for text in texts), rule


def test_rows_of_every_shape_and_their_places(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "hello\nwrite to me@example.com\n\n+49 30 901820\n")
    write(tmp_path / "b.pdf", text_pdf("call 415-555-2671", "or mail you@example.com"))
    write(tmp_path / "c.jsonl", '{"prompt": "who is me@example.com?", "completion": "SSN 219-09-9999"}\n')
    turns = '{"messages": [{"role": "user", "content": "me@example.com"}, {"role": "assistant", "content": "ok"}]}\n'
    write(tmp_path / "d.jsonl", turns)
    data = Dataset.from_path(tmp_path)
    clean = data.redact("pii")
    assert [(h.place, h.kind, h.text) for h in clean.redactions] == [
        ("a.txt:2", "EMAIL", "me@example.com"),
        ("a.txt:4", "PHONE", "+49 30 901820"),
        ("b.pdf page 1", "PHONE", "415-555-2671"),
        ("b.pdf page 2", "EMAIL", "you@example.com"),
        ("c.jsonl:1", "EMAIL", "me@example.com"),
        ("c.jsonl:1", "NATIONAL_ID", "219-09-9999"),
        ("d.jsonl:1", "EMAIL", "me@example.com"),
    ]
    assert clean[0].data["text"] == "hello\nwrite to [EMAIL]\n\n[PHONE]\n"
    assert clean[1].data["text"] == "call [PHONE]\n\nor mail [EMAIL]"
    assert clean[1].place(clean[1].data["text"].index("or")) == "b.pdf page 2"
    assert clean[2].data == {"prompt": "who is [EMAIL]?", "completion": "SSN [NATIONAL_ID]"}
    assert clean[3].data["messages"][0] == {"role": "user", "content": "[EMAIL]"}
    assert "me@example.com" not in repr(clean.redactions)
    assert data[0].data["text"].count("@") == 1  # the rows before are not changed
    assert clean.redact().redactions == clean.redactions
    assert clean.split().train.redactions == clean.redactions


def test_only_pii(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only 'pii'"):
        Dataset([Row({"text": "a"}, "a")]).redact("names")


@given(st.text(st.sampled_from("0123456789 -.@+()ABXZabc:/\n٣"), max_size=60))
def test_any_text(text: str) -> None:
    found = find(text)
    assert all(a < b for a, b, _ in found) and all(one[1] <= two[0] for one, two in pairwise(found))


def test_hits_of_a_long_text_are_placed_in_one_pass() -> None:
    lines = 40_000
    row = Row({"text": "write to me@example.com, not to him\n" * lines}, "a.txt")
    began = time.process_time()
    hits = Dataset([row]).redact().redactions
    assert [hit.place for hit in (hits[0], hits[-1])] == ["a.txt:1", f"a.txt:{lines}"]
    assert time.process_time() - began < 4  # counting lines from the start for each hit takes longer


HOSTILE = [
    "me@example.com " * 20_000,
    "1 " * 50_000,
    "a@" * 50_000,
    "a." * 50_000 + "@",
    "+1 (" * 25_000,
    "A1" * 50_000,
    "born " * 20_000,
    "tel " * 20_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=[text[:6] for text in HOSTILE])
def test_hostile_text_takes_no_long_time(text: str) -> None:
    began = time.perf_counter()
    find(text)
    assert time.perf_counter() - began < 4  # takes some tenths of a second
