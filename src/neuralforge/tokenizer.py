# SPDX-License-Identifier: Apache-2.0
"""Text to ids and back, for the tokenizers of `tokenizer.json`, `tokenizer.model`, rank files, GGUF and `tokenizer.bin`.

The way of a text to ids is C (`csrc/tokenizer`); this is what stands around it: settings, names, decoding.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import logging
import operator
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import gguf_file
from ._core_tokenizer import TOKEN_FLAGS, Coder
from .bpe import Vocabulary
from .config import ModelConfig
from .errors import OutputError, TokenizerError
from .files import make_folder, write_atomic
from .gguf_vocabulary import native_files
from .tokenizer_files import read_source, recognise
from .tokenizer_source import DAMAGED, AddedToken, Source, added_token, read_bytes, read_object

log = logging.getLogger("neuralforge")

MAIN_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer.bin", "tokenizer.gguf")
SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
NO_TOKENIZER = "give tokenizer= (command: --tokenizer) the path of its tokenizer.model, tokenizer.json or tokenizer.bin"

I32 = npt.NDArray[np.int32]


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

    @classmethod
    def from_file(cls, path: str | Path, *, vocab_size: int | None = None) -> Tokenizer:
        """Load a tokenizer.

        Args:
            path: a file (recognised by its content; a GGUF model too), or a folder with one of MAIN_FILES;
                tokenizer_config.json and chat_template.jinja beside a file of that name are read too.
            vocab_size: of the model that it is for, to be checked.

        Raises:
            TokenizerError: missing, damaged, of a kind that is not supported, or too large for `vocab_size`.
        """
        main = _find(Path(path))
        settings, template = _read_side(main) if main.name in MAIN_FILES else ({}, None)
        source = read_source(main, legacy=bool(settings.get("legacy", True)))
        made = _assemble(main, source, settings, template or source.chat_template)
        try:
            made._coder  # noqa: B018  builds the C tables, which check what they are given
        except TokenizerError as e:
            raise TokenizerError(f"{main}: {e.message}", hint=DAMAGED) from e
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
        before = "text" if continuation else "start"
        ids: list[int] = self._encode([text], before, parse_special=parse_special)[0].tolist()
        if not add_special_tokens:
            return ids
        head, tail = self._ends(ids, continuation=continuation)
        return [*head, *ids, *tail]

    def encode_array(self, text: str, *, parse_special: bool = False, threads: int = 1) -> I32:
        """(n,) int32 ids of a text, however long, without BOS and EOS. They do not depend on `threads`."""
        return self._encode([text], "start", parse_special=parse_special, threads=threads)[0]

    def encode_batch(
        self, texts: Sequence[str], *, parse_special: bool = False, threads: int = 1
    ) -> tuple[I32, npt.NDArray[np.int64]]:
        """(ids of all texts one after the other, where those of each end), each text as in `encode_array`."""
        return self._encode(texts, "start", parse_special=parse_special, threads=threads)

    def encode_segments(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of each segment of one long text, special tokens parsed, nothing added.

        No token crosses a border of segments; otherwise a segment is encoded as what it is, the middle of a text.
        """
        ids, ends = self._encode(list(texts), "start", parse_special=True, chained=True)
        return [part.tolist() for part in np.split(ids, ends)[:-1]]

    def _encode(
        self, texts: Sequence[str], before: str, *, parse_special: bool, chained: bool = False, threads: int = 1
    ) -> tuple[I32, npt.NDArray[np.int64]]:
        for text in texts:
            if not isinstance(text, str):
                raise TokenizerError(f"text to encode is {type(text).__name__}, not str")
        encode = partial(self._coder.encode, before=before, chained=chained, special=parse_special, threads=threads)
        try:
            try:
                return encode(texts)
            except UnicodeEncodeError:
                return encode([_without_surrogates(text) for text in texts])
        except TokenizerError as e:
            raise TokenizerError(f"{self.path}: {e.message}", hint="the vocabulary is cut short, or not for this text") from e

    def _ends(self, ids: Sequence[int], *, continuation: bool) -> tuple[list[int], list[int]]:
        """What `encode` puts before and behind ids: BOS and EOS where the settings say so, never twice."""
        bos, eos = self.bos_id, self.eos_id
        head = [bos] if self.add_bos and bos is not None and not continuation and list(ids[:1]) != [bos] else []
        tail = [eos] if self.add_eos and eos is not None and list(ids[-1:]) != [eos] else []
        return head, tail

    @cached_property
    def _coder(self) -> Coder:
        flags = [sum(bit for name, bit in TOKEN_FLAGS.items() if getattr(token, name)) for token in self.added]
        added = [(token.content.encode(), token.id, flag) for token, flag in zip(self.added, flags, strict=True)]
        return Coder(self.vocabulary.spec, added)

    @cached_property
    def _texts(self) -> list[bytes]:
        surfaces = self.vocabulary.surfaces
        texts = [*surfaces, *[b""] * (self.vocab_size - len(surfaces))]
        for token in self.added:
            texts[token.id] = token.content.encode()
        return texts

    @cached_property
    def _sizes(self) -> npt.NDArray[np.int64]:
        sizes = np.array([len(text) for text in self._texts], np.int64)
        sizes[list(self.special_tokens.values())] = 0
        return sizes

    def find(self, ids: npt.ArrayLike, text: str, characters: Sequence[int]) -> list[int]:
        """The tokens in which characters of a text stand; near it where the tokenizer changes the text.

        Args:
            ids: (n,) ids of the text below `vocab_size`, special tokens around it or not.
            characters: ascending indices into the text.
        """
        ends = np.cumsum(self._sizes[np.asarray(ids)])
        borders = [0, *characters, len(text)]
        starts = np.cumsum([len(_without_surrogates(text[a:b]).encode()) for a, b in pairwise(borders)])
        lead = int(self.vocabulary.drops_space)  # the space that stands before the first word
        scale = (ends[-1] - lead) / max(1, starts[-1])  # 1 where decode gives the text again
        found = np.searchsorted(ends, lead + starts[:-1] * scale, side="right")
        return [int(token) for token in np.minimum(found, len(ends) - 1)]

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
        drops = 0 if continuation or not self.vocabulary.drops_space else len(" ") if not self.vocabulary.drops_spaces else -1
        return StreamDecoder(self._texts, skipped, drop_spaces=drops)

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
        if gguf_file.is_gguf(self.path):
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

    def __init__(self, texts: Sequence[bytes], skipped: frozenset[int], *, drop_spaces: int) -> None:
        """`drop_spaces`: how many spaces the text loses at its very start; -1: all."""
        self._texts, self._skipped, self._drop = texts, skipped, drop_spaces
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
        if data and self._drop:
            data = data.lstrip(b" ") if self._drop < 0 else data.removeprefix(b" ")
            self._drop = self._drop if self._drop < 0 and not data else 0
        return self._utf8.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an incomplete character, else nothing."""
        return self._utf8.decode(b"", True)


def _without_surrogates(text: str) -> str:
    """The text with U+FFFD for each lone surrogate; a pair of them is the character that they stand for."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


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
        vocab_size=max(len(source.vocabulary.surfaces), *(t.id + 1 for t in tokens), 0),
        added=tokens,
        special_tokens={t.content: t.id for t in tokens if t.special},
        token_names=names,
        add_bos=flags["bos"],
        add_eos=flags["eos"],
        chat_template=template,
        fingerprint=hashlib.sha256(source.digest + b"\0" + rest.encode()).hexdigest(),
    )
