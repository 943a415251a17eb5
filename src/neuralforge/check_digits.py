# SPDX-License-Identifier: Apache-2.0
"""Numbers that carry a check: payment cards, IBANs and the national ids of several countries. A text in, right or wrong out.

The form of the text (how many digits, which letters) has been matched before, by the rules of `redact`.
"""

from __future__ import annotations

import re


def _digits(text: str) -> list[int]:
    return [int(c) for c in text if c.isdigit()]


def _luhn(text: str) -> bool:
    """Luhn's check (ISO/IEC 7812-1, annex B)."""
    doubled = [d * 2 - 9 * (d > 4) if i % 2 else d for i, d in enumerate(reversed(_digits(text)))]
    return sum(doubled) % 10 == 0


# (first and last number with which a scheme's cards begin, least and most digits), by the public tables of issuers
_CARDS = (
    (4, 4, 13, 19), (51, 55, 16, 16), (2221, 2720, 16, 16), (34, 34, 15, 15), (37, 37, 15, 15), (300, 305, 14, 19),
    (36, 36, 14, 19), (38, 39, 14, 19), (3528, 3589, 16, 19), (50, 50, 13, 19), (56, 69, 13, 19),
)  # fmt: skip


def card(text: str) -> bool:
    """A payment card: beginning and length of a scheme, and Luhn's check, which a tenth of all numbers pass."""
    plain = "".join(map(str, _digits(text)))
    known = any(a <= int(plain[: len(str(a))]) <= b and low <= len(plain) <= high for a, b, low, high in _CARDS)
    return known and len(set(plain)) > 1 and _luhn(text)


_IBAN_LENGTHS = {
    code: length
    for length, codes in {
        15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for code in codes.split()
}  # fmt: skip


def iban(text: str) -> bool:
    """ISO 13616: length of the country, and remainder 1 by 97 (ISO/IEC 7064)."""
    plain = re.sub(r"[\s-]", "", text).upper()
    moved = plain[4:] + plain[:4]
    return _IBAN_LENGTHS.get(plain[:2]) == len(plain) and int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def iban_alone(text: str) -> str:
    """The text up to the length that the country has; what follows may look alike."""
    length = _IBAN_LENGTHS.get(text[:2].upper(), 0)
    places = [match.end() for match in re.finditer(r"\w", text)]
    return text[: places[length - 1]] if 0 < length <= len(places) else text


def ssn(text: str) -> bool:
    """United States: no 000, 666 or 9xx in front, no part of zeros."""
    plain = "".join(map(str, _digits(text)))
    area, group, serial = plain[:3], plain[3:5], plain[5:]
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _weighted(text: str, weights: tuple[int, ...], modulus: int) -> int:
    return sum(w * d for w, d in zip(weights, _digits(text), strict=False)) % modulus


def nhs(text: str) -> bool:
    """United Kingdom, health service: modulus 11."""
    check = 11 - _weighted(text, (10, 9, 8, 7, 6, 5, 4, 3, 2), 11)
    return check % 11 == _digits(text)[9] and check != 10 and len(set(_digits(text))) > 1


def steuer_id(text: str) -> bool:
    """Germany: ISO/IEC 7064 modulus 11,10; just one digit of the first ten comes more than once, two or three times."""
    digits, product = _digits(text), 10
    for digit in digits[:10]:
        total = (digit + product) % 10 or 10
        product = total * 2 % 11
    counts = sorted(digits[:10].count(d) for d in set(digits[:10]))
    return (11 - product) % 10 == digits[10] and counts[-1] in (2, 3) and counts[-2] == 1 and digits[0] != 0


def _crosswise(text: str, weights: tuple[int, ...]) -> bool:
    """Products in place of digits, of which again the digits are added; a letter is its number in two digits, A 01."""
    plain = "".join(c if c.isdigit() else f"{ord(c) - 64:02}" for c in text if c.isalnum())
    products = (int(d) * w for d, w in zip(plain, weights, strict=False))
    return sum(p // 10 + p % 10 for p in products) % 10 == int(plain[-1])


def rentenversicherung(text: str) -> bool:
    """Germany, pension insurance: check digit by weights, and a birthday; a day above 50 tells people of one birthday apart."""
    day, month = int("".join(map(str, _digits(text)))[2:4]) % 50, int("".join(map(str, _digits(text)))[4:6])
    return 1 <= day <= 31 and 1 <= month <= 12 and _crosswise(text, (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1))


def krankenversicherung(text: str) -> bool:
    """Germany, health insurance: the part of the number that stays for life."""
    return _crosswise(text, (1, 2, 1, 2, 1, 2, 1, 2, 1, 2))


def nir(text: str) -> bool:
    """France: remainder by 97; Corsica's letters count as 19 and 18."""
    plain = re.sub(r"\s", "", text).upper().replace("2A", "19").replace("2B", "18")
    return plain.isdigit() and 97 - int(plain[:13]) % 97 == int(plain[13:])


def dni(text: str) -> bool:
    """Spain, citizens and foreigners: letter by 23."""
    plain = re.sub(r"[\s.-]", "", text).upper()
    number = plain[:-1].replace("X", "0").replace("Y", "1").replace("Z", "2")
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == plain[-1]


# what a sign counts in an odd place, A to Z; a digit counts as the letter of its number
_ODD = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def _place(sign: str) -> int:
    return int(sign) if sign.isdigit() else ord(sign) - 65


def codice_fiscale(text: str) -> bool:
    """Italy: letter by 26 over values that differ for odd and even places; letters that stand for digits count as letters."""
    plain = text.upper()
    total = sum(_ODD[_place(c)] if i % 2 == 0 else _place(c) for i, c in enumerate(plain[:15]))
    return chr(65 + total % 26) == plain[15]


def bsn(text: str) -> bool:
    """Netherlands: the test of eleven."""
    return _weighted(text, (9, 8, 7, 6, 5, 4, 3, 2, -1), 11) == 0 and any(_digits(text))


def pesel(text: str) -> bool:
    """Poland: weights 1, 3, 7, 9 modulus 10, and a month that exists."""
    month = int(text[2:4]) % 20
    return _weighted(text, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), 10) == 0 and 1 <= month <= 12 and 1 <= int(text[4:6]) <= 31


def cpf(text: str) -> bool:
    """Brazil: two check digits, modulus 11."""
    digits = _digits(text)
    for n in (9, 10):
        check = 10 * sum((n + 1 - i) * d for i, d in enumerate(digits[:n])) % 11 % 10
        if check != digits[n]:
            return False
    return len(set(digits)) > 1


def china(text: str) -> bool:
    """China, 18 places: ISO/IEC 7064 modulus 11-2, and a date."""
    weights = [2 ** (17 - i) % 11 for i in range(17)]
    check = (12 - sum(w * int(c) for w, c in zip(weights, text, strict=False)) % 11) % 11
    return "0123456789X"[check] == text[-1].upper() and "01" <= text[10:12] <= "12" and "01" <= text[12:14] <= "31"
