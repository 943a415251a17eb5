# SPDX-License-Identifier: Apache-2.0
"""Writes csrc/tokenizer/unicode_tables.c: what the tokenizer has to know of each code point.

The version is that of the pattern engines of `tokenizers` and `tiktoken`, so that newly assigned characters are cut alike:

    pip install unicodedata2==16.0.0
    python tools/make_unicode_tables.py > csrc/tokenizer/unicode_tables.c
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain

import unicodedata2 as ud

VERSION = "16.0.0"
BLOCK = 128
CODES = 0x110000
# Unicode property White_Space; fixed for a long time, and not in unicodedata
WHITE = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
LETTER, NUMBER, SPACE, UPPER, LOWER, MARK, WORD = (1 << i for i in range(7))
CLASSES = {
    "Lu": LETTER | UPPER | WORD,
    "Lt": LETTER | UPPER | WORD,
    "Lm": LETTER | UPPER | LOWER | WORD,
    "Lo": LETTER | UPPER | LOWER | WORD,
    "Ll": LETTER | LOWER | WORD,
    "Mn": MARK | UPPER | LOWER | WORD,
    "Mc": MARK | UPPER | LOWER | WORD,
    "Me": MARK | UPPER | LOWER | WORD,
    "Nd": NUMBER | WORD,
    "Nl": NUMBER | WORD,
    "No": NUMBER,
    "Pc": WORD,
}
HANGUL = range(0xAC00, 0xD7A4)


def pages(values: Sequence[int]) -> tuple[list[int], list[int]]:
    """Two stages: the number of the block of each BLOCK code points, and the different blocks one after the other."""
    known: dict[tuple[int, ...], int] = {}
    first = [known.setdefault(tuple(values[i : i + BLOCK]), len(known)) for i in range(0, len(values), BLOCK)]
    return first, [value for block in known for value in block]


def array(kind: str, name: str, values: Iterable[int]) -> str:
    words = [str(v) for v in values]
    lines, line = [], ""
    for word in words:
        if len(line) + len(word) > 120:
            lines.append(line)
            line = ""
        line += word + ","
    return f"const {kind} {name}[{len(words)}] = {{\n" + "\n".join([*lines, line]) + "\n};\n"


def decompositions(kinds: tuple[str, ...]) -> dict[int, tuple[int, ...]]:
    """{code: its full decomposition}, Hangul left out."""
    single = {}
    for code in range(CODES):
        fields = ud.decomposition(chr(code)).split() if code not in HANGUL else []
        if fields and (not fields[0].startswith("<") or "compatibility" in kinds):
            single[code] = [int(f, 16) for f in fields if not f.startswith("<")]

    def full(code: int) -> tuple[int, ...]:
        return tuple(c for part in single[code] for c in full(part)) if code in single else (code,)

    return {code: full(code) for code in single}


def compositions() -> list[tuple[int, int, int]]:
    """(first, second, whole) of every pair that NFC joins, sorted."""
    out = []
    for code in range(CODES):
        fields = ud.decomposition(chr(code)).split() if code not in HANGUL else []
        if len(fields) == 2 and not fields[0].startswith("<") and ud.normalize("NFC", chr(code)) == chr(code):
            out.append((int(fields[0], 16), int(fields[1], 16), code))
    return sorted(out)


def quick(form: str, seconds: set[int]) -> list[bool]:
    """For each code point: text of such characters alone is in that form already."""
    return [
        0xD800 <= c < 0xE000 or (ud.combining(chr(c)) == 0 and c not in seconds and ud.normalize(form, chr(c)) == chr(c))
        for c in range(CODES)
    ]


def main() -> None:
    if ud.unidata_version != VERSION:
        sys.exit(f"unicodedata2 {VERSION} is needed, this is {ud.unidata_version}")
    pairs = compositions()
    seconds = {b for _, b, _ in pairs} | {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}
    nfc, nfkc = quick("NFC", seconds), quick("NFKC", seconds)
    classes = [CLASSES.get(ud.category(chr(c)), 0) | (SPACE if c in WHITE else 0) for c in range(CODES)]
    # what normalisation has to know: combining class, and 1 << 8: stable in NFC, 1 << 9: in NFKC
    forms = [ud.combining(chr(c)) | nfc[c] << 8 | nfkc[c] << 9 for c in range(CODES)]
    canonical, compatible = decompositions(("canonical",)), decompositions(("canonical", "compatibility"))
    print("/* SPDX-License-Identifier: Apache-2.0 */")
    print(f"/* Unicode {VERSION}, written by tools/make_unicode_tables.py; see unicode.h. */")
    print('/* clang-format off */\n#include "unicode_tables.h"\n')
    for name, kind, values in (("classes", "uint8_t", classes), ("forms", "uint16_t", forms)):
        first, blocks = pages(values)
        print(array("uint8_t", f"nf_unicode_{name}_page", first))
        print(array(kind, f"nf_unicode_{name}", blocks))
    differing = {code: text for code, text in compatible.items() if canonical.get(code) != text}
    for name, table in (("canonical", canonical), ("compatible", differing)):
        texts = [table[code] for code in sorted(table)]
        print(array("uint32_t", f"nf_unicode_{name}_code", sorted(table)))
        print(array("uint16_t", f"nf_unicode_{name}_start", accumulate(map(len, texts), initial=0)))
        print(array("uint32_t", f"nf_unicode_{name}_text", chain.from_iterable(texts)))
        print(f"const int32_t nf_unicode_{name}_count = {len(table)};")
    print(array("uint32_t", "nf_unicode_pairs", chain.from_iterable(pairs)))
    print(f"const int32_t nf_unicode_pair_count = {len(pairs)};")


if __name__ == "__main__":
    main()
