# SPDX-License-Identifier: Apache-2.0
"""What may be wrong with the rows of a data set, in plain words, before time is spent on training."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from . import chat
from .dedup import duplicates, text_of
from .errors import DataError
from .languages import language_of
from .records import Row
from .template_texts import BUILT_IN
from .templates import ChatTemplate
from .tokenizer import Tokenizer

_EXAMPLES = 3
_MIXED = 0.05  # a second language with this share of the rows is worth a word
_SAID = re.compile(r"\w|[^\x00-\x7f]")  # a letter or digit, or a symbol: "B", "7" and "👍" are answers
_NEAR = 0.8
# what UTF-8 looks like when it was read as Windows-1252
_MOJIBAKE = re.compile("[ÃÂ][\u0080-\u00bf\u2018-\u203a\u0152-\u0178€ƒ]|â€[\u0080-\u00bf\u2018-\u203a\u0152-\u0178™œ¦“”˜¢]")
# how chat templates begin a turn; in the text of a row they mean that it was rendered before
_MARKS = re.compile(
    r"<\|(?:im_start|im_end|user|assistant|system|end|eot_id|start_header_id|endoftext)\|>|\[/?INST\]|<</?SYS>>"
    r"|<(?:start|end)_of_turn>|^### (?:Instruction|Response|User|Assistant):",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Finding:
    """One thing to look at.

    Attributes:
        kind: a short name: "duplicates", "languages", "too long", ...
        count: rows that it is about.
        advice: what it is and what to do, one or two sentences.
        examples: sources of the first few rows.
    """

    kind: str
    count: int
    advice: str
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" For example: {', '.join(self.examples)}." if self.examples else ""
        return f"{self.kind}: {self.advice}{where}"


@dataclass(frozen=True)
class Check:
    """What was found; shows itself in a terminal and in a notebook."""

    rows: int
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        if not self.findings:
            return f"{_number(self.rows, 'row')}: nothing stands out."
        head = f"{_number(self.rows, 'row')}, {_number(len(self.findings), 'thing')} to look at:"
        return "\n".join([head, *(f"- {f}" for f in self.findings)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        first = str(self).partition("\n")[0]
        pairs = (str(finding).split(": ", 1) for finding in self.findings)
        items = "".join(f"<li><b>{html.escape(kind)}</b>: {html.escape(told)}</li>" for kind, told in pairs)
        return f"<p>{html.escape(first)}</p><ul>{items}</ul>"


def check(
    rows: Sequence[Row], tokenizer: Tokenizer, template: ChatTemplate, *, max_length: int, replaced: int = 0, skipped: int = 0
) -> Check:
    """Look at rows with the eyes of a model.

    Args:
        max_length: tokens that a row may have: the model's context, or less.
        replaced: damaged places that were replaced when the files were read.
        skipped: files, pages and rows that were left out.
    """
    texts = [text_of(row) if "input_ids" not in row.data else "" for row in rows]
    found = [
        _skipped(skipped),
        _duplicates(rows),
        _languages(rows, texts),
        *_encoded(rows, tokenizer, template, max_length),
        _empty_answers(rows),
        _damage(rows, texts, replaced),
        _noise(rows, texts),
        _rendered_before(rows, texts),
        _no_template(rows, tokenizer, template),
    ]
    return Check(len(rows), tuple(finding for finding in found if finding is not None and finding.count))


def _examples(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(row.source for row, _ in zip(rows, range(_EXAMPLES), strict=False))


def _number(count: int, noun: str) -> str:
    """ "1 row", "2 rows"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _share(count: int, total: int, one: str, many: str) -> str:
    """ "3 of 60 rows (5 %) are": with the verb for one row or for many."""
    percent = 100 * count / max(1, total)
    share = f" ({percent:.0f} %)" if percent >= 1 else ""
    return f"{count} of {_number(total, 'row')}{share} {one if count == 1 else many}"


def _skipped(count: int) -> Finding:
    what = "1 file, page or row was" if count == 1 else f"{count} files, pages or rows were"
    return Finding("not read", count, f"{what} left out; `skipped` of the data set says why.")


def _duplicates(rows: Sequence[Row]) -> Finding:
    found = duplicates(rows, near=_NEAR)
    exact = sum(alike == 1.0 for _, alike in found.values())
    kinds = f"{exact} word for word, {len(found) - exact} nearly so"
    repeated = _share(len(found), len(rows), "repeats", "repeat")
    advice = f"{repeated} another one ({kinds}). What is repeated is learnt by heart; use .dedup()."
    return Finding("duplicates", len(found), advice, _examples(rows[i] for i in sorted(found)))


def _languages(rows: Sequence[Row], texts: Sequence[str]) -> Finding | None:
    named = [language_of(text) for text in texts]
    counts = Counter(name for name in named if name)
    total = sum(counts.values())
    if len(counts) < 2 or counts.most_common(2)[1][1] < _MIXED * total:
        return None
    main = counts.most_common(1)[0][0]
    others = [row for row, name in zip(rows, named, strict=True) if name and name != main]
    mix = ", ".join(f"{name} {100 * n / total:.0f} %" for name, n in counts.most_common(5))
    advice = f"the rows are in several languages ({mix}). If you want only one, train on the rows of that language."
    return Finding("languages", len(others), advice, _examples(others))


def _encoded(rows: Sequence[Row], tokenizer: Tokenizer, template: ChatTemplate, max_length: int) -> Iterable[Finding | None]:
    """What shows when rows become tokens: rows that do not fit, and rows that the template refuses."""
    long: list[tuple[int, Row]] = []
    refused: list[tuple[Row, DataError]] = []
    for row in rows:
        try:
            size = len(chat.encode(row, tokenizer, template)[0])
        except DataError as error:
            refused.append((row, error))
            continue
        if size > max_length:
            long.append((size, row))
    worst = max((size for size, _ in long), default=0)
    advice = (
        f"{_share(len(long), len(rows), 'is', 'are')} longer than {max_length} tokens, the longest has {worst}. Choose "
        "what happens: on_overflow='split' keeps everything, 'truncate' keeps starts, 'drop' leaves them out."
    )
    yield Finding("too long", len(long), advice, _examples(row for _, row in sorted(long, key=lambda pair: -pair[0])))
    why = refused[0][1].message.partition(": ")[2] if refused else ""
    advice = (
        f"{_share(len(refused), len(rows), 'does', 'do')} not fit the model's chat template ({why}). Correct or remove them."
    )
    yield Finding("template mismatch", len(refused), advice, _examples(row for row, _ in refused))


def _answers(row: Row) -> list[str]:
    data = row.data
    if "messages" in data:
        return [m["content"] for m in data["messages"] if m["role"] == "assistant" and not m.get("tool_calls")]
    return [data["completion"]] if "completion" in data else []


def _empty_answers(rows: Sequence[Row]) -> Finding:
    empty = [row for row in rows if any(not _SAID.search(answer) for answer in _answers(row))]
    share = _share(len(empty), len(rows), "has", "have")
    advice = f"{share} an answer with almost nothing in it. The model would learn to say nothing."
    return Finding("empty answers", len(empty), advice, _examples(empty))


def _damage(rows: Sequence[Row], texts: Sequence[str], replaced: int) -> Finding:
    damaged = [row for row, text in zip(rows, texts, strict=True) if "\ufffd" in text or len(_MOJIBAKE.findall(text)) > 1]
    told = f" {_number(replaced, 'place')} {'was' if replaced == 1 else 'were'} replaced while reading." if replaced else ""
    advice = (
        f"{_share(len(damaged), len(rows), 'has', 'have')} characters that were damaged by a wrong encoding (\ufffd, Ã©, â€™)."
        f"{told} Save the files as UTF-8 from the program that made them."
    )
    return Finding("encoding damage", len(damaged), advice, _examples(damaged))


def _noise(rows: Sequence[Row], texts: Sequence[str]) -> Finding:
    noisy = [row for row, text in zip(rows, texts, strict=True) if looks_like_ocr(text)]
    advice = (
        f"{_share(len(noisy), len(rows), 'looks', 'look')} like badly read scans: broken words and stray signs. The model "
        "would learn to write so; read such files again with a better OCR program, or remove them."
    )
    return Finding("OCR noise", len(noisy), advice, _examples(noisy))


def looks_like_ocr(text: str) -> bool:
    """Whether many words of a longer Latin text are single letters, mix letters with digits or signs, or have no vowel."""
    words = re.findall(r"\S+", text)
    letters = re.findall(r"[A-Za-z\u00c0-\u024f]", text)
    if len(words) < 20 or len(letters) * 2 < len("".join(words)) or re.search(r"[{};]\s*$", text, re.MULTILINE):
        return False  # short, of another script, or a program
    odd = sum(_odd(word.strip(".,:;!?()\"'“”‘’»«-—–…*_")) for word in words)
    return odd > 0.2 * len(words)


def _odd(word: str) -> bool:
    if len(word) == 1:
        return word.isalpha() and word not in "aAIOoyeuéàiYÀÉ"
    if re.search(r"[a-z][|~^\\¬¦§][a-z]|[a-z]\d[a-z]|\d[a-z]{2,}\d|[a-z][A-Z][a-z]", word):
        return True
    return len(word) > 3 and word.isalpha() and word.islower() and not re.search(r"[aeiouyà-öø-ÿ\u0100-\u024f]", word)


def _rendered_before(rows: Sequence[Row], texts: Sequence[str]) -> Finding:
    marked = [(row, match) for row, text in zip(rows, texts, strict=True) if (match := _MARKS.search(text))]
    sign = marked[0][1][0] if marked else ""
    advice = (
        f"{_share(len(marked), len(rows), 'holds', 'hold')} the marks of a chat template in their text ({sign}). This was "
        "rendered for some model before; give messages with roles instead, and the model's own template is put around them."
    )
    return Finding("template marks", len(marked), advice, _examples(row for row, _ in marked))


def _no_template(rows: Sequence[Row], tokenizer: Tokenizer, template: ChatTemplate) -> Finding | None:
    chats = [row for row in rows if "messages" in row.data]
    signs: dict[str, Any] = BUILT_IN
    if not chats or tokenizer.chat_template is not None or template.source not in signs:
        return None
    advice = (
        "the model has no chat template of its own, so chats are written in the plain built-in form. A program that runs the "
        "model later has to use the same form."
    )
    return Finding("no template", len(chats), advice)
