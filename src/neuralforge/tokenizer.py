# SPDX-License-Identifier: Apache-2.0
"""Text to ids and back: `tokenizer.json`, SentencePiece `tokenizer.model`, and llama2.c `tokenizer.bin`."""

from __future__ import annotations

import codecs
import hashlib
import json
import logging
import operator
import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from . import gguf_file, gguf_vocabulary
from .bpe import Vocabulary
from .config import ModelConfig
from .errors import OutputError, TokenizerError
from .files import make_folder, write_atomic
from .gguf_vocabulary import native_files
from .pretokenizer import WHITE_SPACE
from .tokenizer_files import DAMAGED, AddedToken, Source, added_token, is_gguf, read_bytes, read_object, read_source, recognise

log = logging.getLogger("neuralforge")

MAIN_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer.bin", "tokenizer.gguf")
SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
NO_TOKENIZER = "give tokenizer= (command: --tokenizer) the path of its tokenizer.model, tokenizer.json or tokenizer.bin"
_SPACES = re.compile(f"[{WHITE_SPACE}]*")


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer; make one with `Tokenizer.from_file`.

    Attributes:
        path: the file it comes from.
        vocab_size: highest id + 1.
        special_tokens: {text: id} of BOS, EOS and their kind.
        token_names: {"bos_token": text, "eos_token": text, ...}, as chat templates want them.
        add_bos, add_eos: what `encode` puts around a text by itself.
        chat_template: Jinja text, or None.
        fingerprint: sha256 of everything that decides about ids.
    """

    path: Path
    vocabulary: Vocabulary = field(repr=False)
    vocab_size: int
    added: tuple[AddedToken, ...] = field(repr=False)
    special_tokens: dict[str, int] = field(repr=False)
    token_names: dict[str, str]
    add_bos: bool
    add_eos: bool
    chat_template: str | None = field(repr=False)
    fingerprint: str
    nfc: bool = False

    @classmethod
    def from_file(cls, path: str | Path, *, vocab_size: int | None = None) -> Tokenizer:
        """Load a tokenizer.

        Args:
            path: a file (recognised by its content), or a folder with tokenizer.json, tokenizer.model or tokenizer.bin;
                tokenizer_config.json and chat_template.jinja beside a file of that name are read too.
            vocab_size: of the model that it is for, to be checked.

        Raises:
            TokenizerError: missing, damaged, of a kind that is not supported, or too large for `vocab_size`.
        """
        main = _find(Path(path))
        settings, template = _read_side(main) if main.name in MAIN_FILES or is_gguf(main) else ({}, None)
        source = read_source(main, legacy=bool(settings.get("legacy", True)))
        made = _assemble(main, source, settings, template)
        if vocab_size is not None:
            made._check_size(vocab_size)
        return made

    def _named(self, name: str) -> int | None:
        return self.special_tokens.get(self.token_names.get(name, ""))

    @property
    def bos_id(self) -> int | None:
        return self._named("bos_token")

    @property
    def eos_id(self) -> int | None:
        return self._named("eos_token")

    @property
    def pad_id(self) -> int | None:
        return self._named("pad_token")

    @property
    def unk_id(self) -> int | None:
        return self._named("unk_token")

    def encode(
        self, text: str, add_special_tokens: bool = True, *, parse_special: bool = False, continuation: bool = False
    ) -> list[int]:
        """Ids of a text.

        Args:
            text: lone surrogates count as U+FFFD.
            add_special_tokens: put BOS and EOS around it where the tokenizer's own settings say so, never twice.
            parse_special: special tokens written in the text become their ids; otherwise they are ordinary text.
            continuation: the text follows other text: no BOS, and no space in front.
        """
        ids, _ = self._encode(text, "text" if continuation else "start", parse_special=parse_special)
        if not add_special_tokens:
            return ids
        bos, eos = self.bos_id, self.eos_id
        tail = [eos] if self.add_eos and eos is not None and ids[-1:] != [eos] else []
        head = [bos] if self.add_bos and bos is not None and not continuation and ids[:1] != [bos] else []
        return [*head, *ids, *tail]

    def encode_segments(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of each segment of one long text, special tokens parsed, nothing added.

        No token crosses a border of segments; otherwise a segment is encoded as what it is, the middle of a text.
        """
        out, after = [], "start"
        for text in texts:
            ids, after = self._encode(text, after, parse_special=True)
            out.append(ids)
        return out

    def _encode(self, text: str, after: str, *, parse_special: bool) -> tuple[list[int], str]:
        """(ids, what they end with), given what stands before: the "start", a "special" token or "text"."""
        ids: list[int] = []
        for part in self._parts(_clean(text), parse_special):
            if isinstance(part, int):
                ids.append(part)
                after = "special"
            else:
                prefix = after == "start" or (after == "special" and self.vocabulary.marks_all)
                ids += self.vocabulary.encode(part, prefix=prefix)
                after = "text"
        return ids, after

    def _parts(self, text: str, parse_special: bool) -> Iterator[str | int]:
        before, behind = self._matchers[parse_special]
        for part in before(text):
            if isinstance(part, int):
                yield part
            else:
                yield from behind(unicodedata.normalize("NFC", part) if self.nfc else part)

    @cached_property
    def _matchers(self) -> tuple[tuple[_Matcher, _Matcher], ...]:
        """(searched before, searched after normalisation), without and with special tokens."""
        chosen = ([t for t in self.added if not t.special], self.added)
        return tuple((_Matcher.of(some, normalized=False), _Matcher.of(some, normalized=True)) for some in chosen)

    @cached_property
    def _texts(self) -> list[bytes]:
        texts = [*self.vocabulary.pieces, *[b""] * (self.vocab_size - len(self.vocabulary.pieces))]
        for token in self.added:
            texts[token.id] = token.content.encode()
        return texts

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True, *, continuation: bool = False) -> str:
        """Text of the ids; bytes that are not UTF-8 become U+FFFD.

        Args:
            continuation: the ids follow others, so that a leading space is kept where the start of a text has none.

        Raises:
            TokenizerError: an id outside of the vocabulary.
        """
        stream = self.stream(skip_special_tokens, continuation=continuation)
        return "".join([stream.push(i) for i in ids]) + stream.flush()

    def stream(self, skip_special_tokens: bool = True, *, continuation: bool = False) -> StreamDecoder:
        """A decoder that takes ids one by one; its pieces joined are what `decode` gives."""
        skipped = frozenset(self.special_tokens.values()) if skip_special_tokens else frozenset()
        return StreamDecoder(self._texts, skipped, drop_space=self.vocabulary.drops_space and not continuation)

    def check_model(self, config: ModelConfig) -> None:
        """Check that every id has a row in the model's embedding.

        Raises:
            TokenizerError: the tokenizer has more ids than the model.
        """
        self._check_size(config.vocab_size)

    def _check_size(self, vocab_size: int) -> None:
        if self.vocab_size > vocab_size:
            raise TokenizerError(
                f"{self.path}: the tokenizer has {self.vocab_size} ids, the model only {vocab_size}",
                hint="take the tokenizer that came with the model",
            )

    def save(self, folder: str | Path) -> None:
        """Copy the tokenizer's files into `folder` under the names that `from_file` finds.

        Raises:
            OutputError: a file cannot be written.
        """
        folder = Path(folder)
        if is_gguf(self.path):
            for name, data in native_files(gguf_file.read(self.path, error=TokenizerError)).items():
                write_atomic(make_folder(folder) / name, data)
            return
        name = self.path.name if self.path.name in MAIN_FILES else recognise(read_bytes(self.path), self.path)
        beside = SIDE_FILES if self.path.name in MAIN_FILES else ()
        wanted = {name: self.path} | {s: self.path.with_name(s) for s in beside if self.path.with_name(s).is_file()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for target, source in wanted.items():
                if not ((folder / target).exists() and (folder / target).samefile(source)):
                    shutil.copyfile(source, folder / target)
        except OSError as e:
            raise OutputError(f"{folder}: cannot save the tokenizer: {e.strerror or e}") from e


class StreamDecoder:
    """Ids to text, one at a time, never splitting a character."""

    def __init__(self, texts: Sequence[bytes], skipped: frozenset[int], *, drop_space: bool) -> None:
        self._texts, self._skipped, self._drop_space = texts, skipped, drop_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that is certain now; empty while a character is incomplete.

        Raises:
            TokenizerError: the id is not in the vocabulary.
        """
        i = operator.index(token_id)
        if not 0 <= i < len(self._texts):
            raise TokenizerError(
                f"id {i} is not in the vocabulary of {len(self._texts)}", hint="wrong tokenizer for this model?"
            )
        data = b"" if i in self._skipped else self._texts[i]
        if data and self._drop_space:
            data, self._drop_space = data.removeprefix(b" "), False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an incomplete character, else nothing."""
        return self._utf8.decode(b"", True)


@dataclass(frozen=True)
class _Matcher:
    """Finds added tokens: the leftmost, and of those the longest."""

    tokens: Mapping[str, AddedToken]
    pattern: re.Pattern[str] | None

    @staticmethod
    def of(added: Iterable[AddedToken], *, normalized: bool) -> _Matcher:
        tokens = {t.content: t for t in added if t.normalized == normalized}
        longest_first = sorted(tokens, key=len, reverse=True)
        return _Matcher(tokens, re.compile("|".join(map(re.escape, longest_first))) if tokens else None)

    def __call__(self, text: str) -> Iterator[str | int]:
        """The text cut into ids of tokens and non-empty stretches between them."""
        at = 0
        for match in self.pattern.finditer(text) if self.pattern else ():
            token, (start, end) = self.tokens[match.group()], match.span()
            if token.single_word and re.search(r"\w", text[max(start - 1, 0) : start] + text[end : end + 1]):
                continue
            if token.lstrip:
                start = at + len(text[at:start].rstrip(WHITE_SPACE))
            if token.rstrip:
                end += len(_SPACES.match(text, end).group())  # type: ignore[union-attr]
            if start > at:
                yield text[at:start]
            yield token.id
            at = end
        if at < len(text):
            yield text[at:]


def _clean(text: str) -> str:
    if not isinstance(text, str):
        raise TokenizerError(f"text to encode is {type(text).__name__}, not str")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise TokenizerError(f"{path}: no such file or folder", hint="give a tokenizer file or a model folder")
    for name in MAIN_FILES:
        if (path / name).is_file():
            return path / name
    raise TokenizerError(f"{path}: no tokenizer in this folder", hint=f"one of {', '.join(MAIN_FILES)} is needed")


def _read_side(main: Path) -> tuple[dict[str, Any], str | None]:
    """(settings, chat template) of the files beside the tokenizer; tokenizer_config.json wins."""
    if is_gguf(main):
        inside = gguf_vocabulary.settings(gguf_file.read(main, error=TokenizerError))
        return inside, inside.get("chat_template")
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if main.with_name(name).is_file():
            settings |= read_object(main.with_name(name))
    added = main.with_name("added_tokens.json")
    if added.is_file():
        settings.setdefault("added_tokens_decoder", {str(i): {"content": text} for text, i in read_object(added).items()})
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        named = [t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = named[0] if named else None
    file = main.with_name("chat_template.jinja")
    if file.is_file():
        template = read_bytes(file).decode("utf-8", "replace")
    if template is not None and not isinstance(template, str):
        raise TokenizerError(f"{main.with_name('tokenizer_config.json')}: chat_template is not text", hint=DAMAGED)
    return settings, template


def _config_added(settings: Mapping[str, Any], source: Source, path: Path) -> list[AddedToken]:
    """Tokens that only tokenizer_config.json (or added_tokens.json) knows."""
    where = str(path.with_name("tokenizer_config.json"))
    entries = settings.get("added_tokens_decoder") or {}
    if not isinstance(entries, dict):
        raise TokenizerError(f"{where}: added_tokens_decoder is not an object", hint=DAMAGED)
    known = {t.content for t in source.added}
    owner = {i: piece for piece, i in source.ids.items()} | {t.id: t.content for t in source.added}
    out = []
    for key, entry in entries.items():
        token = added_token(int(key) if str(key).isdecimal() else key, entry, where)
        if token.content in known:
            continue
        if owner.setdefault(token.id, token.content) != token.content:
            raise TokenizerError(f"{where}: {token.content!r} has the id {token.id} of {owner[token.id]!r}", hint=DAMAGED)
        out.append(token)
    return out


def _names(settings: Mapping[str, Any], source: Source, ids: Mapping[str, int], path: Path) -> dict[str, str]:
    """{"bos_token": text, ...}: what the settings say, else what the tokenizer file says."""
    names = dict(source.names)
    for key, value in settings.items():
        text = value.get("content") if isinstance(value, dict) else value
        if not key.endswith("_token") or not isinstance(text, str):
            continue
        if text in ids:
            names[key] = text
        elif key in ("bos_token", "eos_token"):
            raise TokenizerError(
                f"{path.with_name('tokenizer_config.json')}: {key} {text!r} is not in the vocabulary of {path.name}",
                hint="take both files from the same model",
            )
        else:
            log.warning("%s: %s %r is not in the vocabulary and is left out", path, key, text)
    return names


def _assemble(path: Path, source: Source, settings: Mapping[str, Any], template: str | None) -> Tokenizer:
    added = {t.content: t for t in [*source.added, *_config_added(settings, source, path)]}
    ids = {**source.ids, **{t.content: t.id for t in added.values()}}
    names = _names(settings, source, ids, path)
    for text in names.values():
        if text not in ids:
            raise TokenizerError(f"{path}: the special token {text!r} is not in the vocabulary", hint=DAMAGED)
        if text not in added or not added[text].special:
            added[text] = AddedToken(ids[text], text)
    flags = {}
    for side, own in (("bos", source.add_bos), ("eos", source.add_eos)):
        stated = settings.get(f"add_{side}_token")
        flags[side] = (own if stated is None else bool(stated)) and f"{side}_token" in names
    tokens = tuple(sorted(added.values(), key=lambda t: t.id))
    rest = json.dumps([[asdict(t) for t in tokens], names, flags], sort_keys=True)
    return Tokenizer(
        path=path,
        vocabulary=source.vocabulary,
        vocab_size=max(len(source.vocabulary.pieces), *(t.id + 1 for t in tokens), 0),
        added=tokens,
        special_tokens={t.content: t.id for t in tokens if t.special},
        token_names=names,
        add_bos=flags["bos"],
        add_eos=flags["eos"],
        chat_template=template,
        fingerprint=hashlib.sha256(source.digest + b"\0" + rest.encode()).hexdigest(),
        nfc=source.nfc,
    )
