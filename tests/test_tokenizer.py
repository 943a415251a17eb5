# SPDX-License-Identifier: Apache-2.0
"""Tokenizers: equal ids to sentencepiece, tokenizers and llama.cpp's lists; exact round trips; bad files refused."""

from __future__ import annotations

import json
import random
import struct
import tempfile
import time
import unicodedata
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralforge import pretokenizer
from neuralforge._core import ffi, lib
from neuralforge.bpe import byte_letters
from neuralforge.config import ModelConfig
from neuralforge.errors import NeuralForgeError, TokenizerError
from neuralforge.tokenizer import Tokenizer

ODD_TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    " \n  \n\t x",
    "Hello, world!",
    "  two  spaces  ",
    "it's IT'S we'll'd 'tis I'ſ",
    "1 12 123 1234 ١٢٣ ½²",
    "naïve café ﬁ Å e\u0301",
    "🦙👩‍👩‍👧 漢字かな 한국어 ไทย",
    "a\u2581b \u2581",
    "nul\x00 del\x7f \x85 \u2028 \u00a0nbsp\u3000wide",
    "\x1c\x1d\x1e\x1f",
    "\ue000\U000f0000\ufffd\ufeff",
    "<s>hi</s> <|endoftext|><unk>",
    "ǅ ʰ ª ﷽ \u0300\u0301",
    "x" * 300,
    "ab" * 200 + " " * 200,
    "return a[i]/b;//\r\n\r\n}",
]

# Characters that are newer than this Python's Unicode tables are left out: their class may differ from the oracle's.
KNOWN_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=40)
MIXED_TEXT = st.text(
    st.sampled_from("'sStTrReEvVlLmMdDſ  \n\r\t\x85\u3000\xa0\x1c 019١½aàZЖǅʰ漢\u0301!?/<|>🦙\u2581"), max_size=40
)

# The same `pre_tokenizer` objects as in the files of GPT-2, Llama 3, Qwen 2, SmolLM 2 and so on.
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
NO_REGEX = {**BYTE_LEVEL, "use_regex": False}


def _split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def _sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


PRE_TOKENIZERS = {
    "gpt2": BYTE_LEVEL,
    "gpt2-prefix": {**BYTE_LEVEL, "add_prefix_space": True},
    "llama3": _sequence(_split(pretokenizer.LLAMA3), NO_REGEX),
    "qwen2": _sequence(_split(pretokenizer.QWEN2), NO_REGEX),
    "qwen2-removed": _sequence(_split(pretokenizer.QWEN2, "Removed", True), NO_REGEX),
    "gpt4o": _sequence(_split(pretokenizer.GPT4O), NO_REGEX),
    "smollm": _sequence({"type": "Digits", "individual_digits": True}, BYTE_LEVEL),
    "digit-runs": _sequence({"type": "Digits", "individual_digits": False}, {**BYTE_LEVEL, "add_prefix_space": True}),
}
CORPUS = [
    "the cat sat on the mat, and it's the cat's mat; we'll see 12 or 1234 of them.",
    "def f(x):\n    return x + 1\n\n\ndef g(y):\n    return  y\n",
    "naïve café Ж漢字 漢字 👩‍👧 HTTPServer fooBar XMLHttp",
] * 3


def _tokenizer_json(pre: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A byte-level tokenizer.json of 256 bytes, three merges and one special token."""
    vocab = byte_letters() | {"th": 256, "the": 257, "Ġthe": 258}
    return {
        "version": "1.0",
        "added_tokens": [{"id": 259, "content": "<|end|>", "special": True, "normalized": False}],
        "normalizer": None,
        "pre_tokenizer": pre or BYTE_LEVEL,
        "post_processor": None,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["t h", ["th", "e"], "Ġ the"]},
        **changes,
    }


def _write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


def _trained(folder: Path, pre: dict[str, Any], **changes: Any) -> tuple[Tokenizer, Any]:
    """A byte-level BPE trained by the tokenizers package, read by us and by it."""
    tokenizers = pytest.importorskip("tokenizers", reason="the oracle package is not installed")
    oracle = tokenizers.Tokenizer(tokenizers.models.BPE())
    oracle.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    oracle.train_from_iterator(CORPUS, trainer)
    spec = json.loads(oracle.to_str())
    model = {**spec["model"], **changes.pop("model", {})}
    spec |= {"pre_tokenizer": pre, "decoder": BYTE_LEVEL, "model": model, **changes}
    path = _write(folder / "tokenizer.json", spec)
    return Tokenizer.from_file(path), tokenizers.Tokenizer.from_file(str(path))


@lru_cache(maxsize=1)
def _plain_bytes() -> Tokenizer:
    return _from_json(_tokenizer_json())


# --- merging ---


def _merge_by_definition(word: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    while True:
        found = [(ranks[pair], i) for i, pair in enumerate(pairwise(word)) if pair in ranks]
        if not found:
            return word
        _, i = min(found)
        word = [*word[:i], word[i] + word[i + 1], *word[i + 2 :]]


PARTS = st.text("ab", min_size=1, max_size=4)


@given(word=st.text("ab", max_size=90), merges=st.lists(st.tuples(PARTS, PARTS), max_size=25, unique=True))
@settings(max_examples=300)
def test_merge_is_lowest_rank_then_leftmost(word: str, merges: list[tuple[str, str]]) -> None:
    """Any list of merges, also one that no training would give, on words short and long."""
    pieces = {piece for left, right in merges for piece in (left, right, left + right) if len(piece) > 1}
    vocab = byte_letters() | {piece: 256 + n for n, piece in enumerate(sorted(pieces))}
    model = {"type": "BPE", "vocab": vocab, "merges": [list(pair) for pair in merges]}
    tokenizer = _from_json(_tokenizer_json(model=model, added_tokens=[]))
    expected = _merge_by_definition(list(word), {pair: rank for rank, pair in enumerate(merges)})
    assert tokenizer.encode(word) == [vocab[piece] for piece in expected]


def _from_json(spec: object) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return Tokenizer.from_file(_write(Path(folder) / "tokenizer.json", spec))


@pytest.mark.slow
def test_a_million_equal_letters_take_seconds(shared: Path) -> None:
    """A quadratic merge would need hours; 20 s leaves room for a slow machine (measured: 4 s)."""
    tokenizer = Tokenizer.from_file(shared / "tokenizers/llama2/tokenizer.bin")
    start = time.perf_counter()
    assert tokenizer.decode(tokenizer.encode("a" * 1_000_000)) == "a" * 1_000_000
    assert time.perf_counter() - start < 20


# --- byte-level tokenizer.json ---


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}], ids=["raw", "nfc"])
def test_byte_level_equals_the_tokenizers_package(tmp_path: Path, name: str, normalizer: Any) -> None:
    mine, oracle = _trained(tmp_path, PRE_TOKENIZERS[name], normalizer=normalizer)

    @settings(max_examples=150)
    @given(KNOWN_TEXT | MIXED_TEXT)
    def same(text: str) -> None:
        ids = oracle.encode(text).ids
        assert mine.encode(text, parse_special=True) == ids
        for skip in (True, False):
            assert mine.decode(ids, skip) == oracle.decode(ids, skip_special_tokens=skip)

    for text in ODD_TEXTS:
        assert mine.encode(text, parse_special=True) == oracle.encode(text).ids, text
    same()


def _words(pattern: str, text: str) -> list[str]:
    data, words = text.encode(), []
    buffer = ffi.from_buffer("uint8_t[]", data)
    at = ffi.cast("uint8_t *", buffer)
    stop = at + len(data)
    while at != stop:
        end = lib.nf_word_end(pretokenizer.PATTERNS[pattern], at, stop)
        words.append(bytes(ffi.buffer(at, end - at)).decode())
        at = end
    return words


PATTERN_NAMES = {name: getattr(pretokenizer, name) for name in ("GPT2", "LLAMA3", "GPT4", "QWEN2", "GPT4O")}


@pytest.mark.parametrize("pattern", PATTERN_NAMES.values(), ids=PATTERN_NAMES)
def test_words_equal_the_tokenizers_package(pattern: str) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the oracle package is not installed")
    oracle = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")

    @settings(max_examples=400)
    @given(KNOWN_TEXT | MIXED_TEXT)
    def same(text: str) -> None:
        assert _words(pattern, text) == [word for word, _ in oracle.pre_tokenize_str(text)]

    for text in ODD_TEXTS:
        assert _words(pattern, text) == [word for word, _ in oracle.pre_tokenize_str(text)]
    same()


# Plain text is cut 64 bytes at a time: what ends that, the borders of Unicode's blocks of letters, and what words end with.
BLOCK_BORDERS = (
    "aabcdXYZ  \n\t\r'''sltmdre01239,.!-_"
    "¿ÀÖ×Ø÷ÿſƀʯʿˀ˂΄ЀЖѿҀ҂\u0483ҿӀӿԀḀếỿ\u1f00\u1fbd一\u4fff倀漢\u9fff㐀䷀\uafff뀀힣쿿퀀\ua000\ua490\ue000\xa0\u0301ا١ก𝒳😀\u2019"
)


@pytest.mark.parametrize(
    ("file", "pattern"),
    [("llama3/tokenizer.model", "LLAMA3"), ("qwen/qwen.tiktoken", "QWEN2"), ("gguf/ggml-vocab-gpt-2.gguf", "GPT2")],
)
def test_words_found_in_blocks_are_those_of_the_pattern(shared: Path, file: str, pattern: str) -> None:
    """Texts longer than a block of 64 bytes; a single word is shorter than that, and found by itself."""
    tokenizer, number = Tokenizer.from_file(shared / "tokenizers" / file), random.Random(0)
    for _ in range(500):
        pool = number.sample(BLOCK_BORDERS, number.randint(3, len(BLOCK_BORDERS)))
        text = unicodedata.normalize("NFC", "".join(number.choices(pool, k=300)))
        words = _words(PATTERN_NAMES[pattern], text)
        assert tokenizer.encode(text, False) == [i for word in words for i in tokenizer.encode(word, False)], text


@pytest.mark.parametrize("name", ["llama3/tokenizer.model", "gguf/ggml-vocab-gpt-2.gguf"])
def test_words_keep_their_order_however_they_are_found(shared: Path, name: str) -> None:
    """Some are found one by one and others by the block; all wait in one queue, which a block may fill at any moment."""
    tokenizer = Tokenizer.from_file(shared / "tokenizers" / name)
    single, dense = [f"漢{i}" for i in range(300)], [f"{a}{b}" for a in "abcdefgh" for b in "1234567890"]
    parts = [tokenizer.encode(part, False) for part in (*single, *dense)]
    for count in range(300):
        text = "".join((*single[:count], *dense))
        assert tokenizer.encode(text, False) == [i for part in (*parts[:count], *parts[300:]) for i in part], count


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERN_NAMES.values(), ids=PATTERN_NAMES)
def test_every_character_is_classed_as_the_oracle_does(pattern: str) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the oracle package is not installed")
    oracle = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    for char in (chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000):
        text = f"a{char}1 {char}"
        assert _words(pattern, text) == [word for word, _ in oracle.pre_tokenize_str(text)], hex(ord(char))


@given(st.text())
def test_byte_level_round_trip(text: str) -> None:
    tokenizer = _plain_bytes()
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_ignore_merges_takes_known_words_whole(tmp_path: Path) -> None:
    def known(spec: dict[str, Any]) -> dict[str, Any]:
        return {**spec["vocab"], "zebra": len(spec["vocab"])}

    _trained(tmp_path / "a", BYTE_LEVEL)
    model = json.loads((tmp_path / "a/tokenizer.json").read_text())["model"]
    for whole in (True, False):
        mine, oracle = _trained(tmp_path / "b", BYTE_LEVEL, model={"vocab": known(model), "ignore_merges": whole})
        assert mine.encode("zebra zebra") == oracle.encode("zebra zebra").ids
        assert (mine.encode("zebra") == [len(model["vocab"])]) is whole


def test_special_tokens_stay_text_where_words_are_taken_whole(tmp_path: Path) -> None:
    model = {**_tokenizer_json()["model"], "ignore_merges": True}
    model["vocab"] = {**model["vocab"], "END": 259}
    added = [{"id": 259, "content": "END", "special": True}]
    tokenizer = Tokenizer.from_file(_write(tmp_path / "t.json", _tokenizer_json(model=model, added_tokens=added)))
    assert tokenizer.encode("END the") == [69, 78, 68, 258]
    assert tokenizer.encode("END the", parse_special=True) == [259, 258]


def test_a_space_in_front_only_at_the_start(tmp_path: Path) -> None:
    spec = _tokenizer_json({**BYTE_LEVEL, "add_prefix_space": True})
    tokenizer = Tokenizer.from_file(_write(tmp_path / "t.json", spec))
    assert tokenizer.encode("the") == tokenizer.encode(" the") == [258]
    assert tokenizer.encode("the", continuation=True) == [257]


def test_added_tokens_and_their_flags(tmp_path: Path) -> None:
    flags = ("special", "normalized", "lstrip", "rstrip", "single_word")
    table = [
        ("<|end|>", "special"),
        ("<|end|>>", "special"),  # the longer of two wins
        ("[L]", "lstrip special"),
        ("[R]", "rstrip"),
        ("[B]", "lstrip rstrip special"),
        ("ñú", "normalized"),
        ("word", "single_word"),
        ("~~", ""),
        ("  ", ""),
    ]
    first = len(json.loads((_trained(tmp_path, BYTE_LEVEL)[0].path).read_text())["model"]["vocab"])
    added = [{"id": first + n, "content": c, **{f: f in kinds.split() for f in flags}} for n, (c, kinds) in enumerate(table)]
    mine, oracle = _trained(tmp_path, BYTE_LEVEL, normalizer={"type": "NFC"}, added_tokens=added)
    assert mine.vocab_size == first + len(table)
    texts = [
        "a<|end|>b<|end|>>c",
        "a  \n[L]  b",
        "a  [R] \t b[R]",
        "x \x1c [B] \u3000 y  z",
        "[B]  [B]",
        "n\u0303u\u0301 ñú nu",
        "word sword word_ word",
        "  [L][R]  ~~~  [B]word",
        *ODD_TEXTS,
    ]
    for text in texts:
        assert mine.encode(text, parse_special=True) == oracle.encode(text).ids, text
    assert first not in mine.encode("a<|end|>") and first + 7 in mine.encode("a~~b")  # only special ones can be inert


def test_bos_and_eos_from_the_post_processor(tmp_path: Path) -> None:
    special = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}]
    text = [{"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    template = {"type": "TemplateProcessing", "single": special + text, "pair": special + text, "special_tokens": tokens}
    post = {"type": "Sequence", "processors": [{**BYTE_LEVEL}, template]}
    mine, oracle = _trained(tmp_path, BYTE_LEVEL, post_processor=post)
    assert (mine.add_bos, mine.bos_id, mine.add_eos) == (True, 0, False)
    for each in ("hello", ""):
        assert mine.encode(each) == oracle.encode(each).ids
        assert mine.encode(each, add_special_tokens=False) == oracle.encode(each, add_special_tokens=False).ids
    assert mine.encode("<|endoftext|>hello", parse_special=True) == mine.encode("hello")  # never twice
    assert mine.encode("x", continuation=True) == mine.encode("x", False)


def test_gpt2_equals_the_lists_of_llama_cpp(shared: Path, tmp_path: Path) -> None:
    folder = shared / "tokenizers/gpt2"
    vocab = json.loads((folder / "vocab.json").read_bytes())
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [line for line in merges if line and not line.startswith("#version")]
    model = {"type": "BPE", "vocab": vocab, "merges": merges}
    tokenizer = Tokenizer.from_file(_write(tmp_path / "tokenizer.json", _tokenizer_json(model=model, added_tokens=[])))
    _compare_lists(tokenizer, shared / "tokenizers/gguf/ggml-vocab-gpt-2.gguf")


def _compare_lists(tokenizer: Tokenizer, path: Path) -> None:
    texts = path.with_name(path.name + ".inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = path.with_name(path.name + ".out").read_text().split("\n")
    pairs = [(text, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=False)]
    assert len(pairs) >= 40
    for text, ids in pairs:
        assert tokenizer.encode(text, add_special_tokens=False) == ids, text


def test_minimind_equals_the_tokenizers_package(shared: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the oracle package is not installed")
    folder = shared / "tokenizers/minimind"
    mine, oracle = Tokenizer.from_file(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert (mine.vocab_size, mine.bos_id, mine.eos_id, mine.pad_id, mine.add_bos) == (6400, 1, 2, 0, False)
    assert mine.chat_template is not None and mine.token_names["eos_token"] == "<|im_end|>"
    for text in [*ODD_TEXTS, *_files(shared, 60_000)]:
        assert mine.encode(text, parse_special=True) == oracle.encode(text).ids
    assert 2 not in mine.encode("<|im_end|>") and mine.encode("<|im_end|>", parse_special=True) == [2]


def _files(shared: Path, length: int, step: int = 12) -> list[str]:
    """The beginning of each shared text, and every `step`-th of the many small ones."""
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted((shared / "text").glob("*.txt"))]
    for path in sorted((shared / "text").glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")][::step]
            texts += [archive.read(name).decode("utf-8", "replace") for name in names]
    assert len(texts) > 20
    return [text[:length] for text in texts]


# --- SentencePiece style ---


@pytest.mark.parametrize("step", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_llama2_bin_and_model_equal_sentencepiece(shared: Path, step: int) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="the oracle package is not installed")
    folder = shared / "tokenizers/llama2"
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ours = [Tokenizer.from_file(folder / name) for name in ("tokenizer.bin", "tokenizer.model")]
    for text in [*ODD_TEXTS, *_files(shared, 30_000, step)]:
        ids = oracle.encode(text)
        for tokenizer in ours:
            assert tokenizer.encode(text, add_special_tokens=False) == ids, text[:40]
            assert tokenizer.decode(ids) == oracle.decode(ids)

    @settings(max_examples=200)
    @given(KNOWN_TEXT | MIXED_TEXT)
    def same(text: str) -> None:
        assert [t.encode(text, add_special_tokens=False) for t in ours] == [oracle.encode(text)] * 2

    same()


@pytest.mark.parametrize("name", ["tokenizer.bin", "tokenizer.model"])
def test_llama2_equals_the_lists_of_llama_cpp(shared: Path, name: str) -> None:
    tokenizer = Tokenizer.from_file(shared / "tokenizers/llama2" / name)
    _compare_lists(tokenizer, shared / "tokenizers/gguf/ggml-vocab-llama-spm.gguf")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.pad_id) == (1, 2, 0, None)
    assert tokenizer.encode("Hello") == [1, 15043]
    assert tokenizer.encode("Hello", continuation=True) == [10994]
    assert tokenizer.encode("<s>", False) == tokenizer.encode("<s>", False, parse_special=False) != [1]
    assert tokenizer.encode("<s>Hello", parse_special=True) == [1, 15043]


@pytest.mark.parametrize("name", ["llama2/tokenizer.model", "minimind", "llama3"])
def test_the_token_of_a_character_is_found(shared: Path, name: str) -> None:
    tokenizer = Tokenizer.from_file(shared / "tokenizers" / name)
    text = "The first page.\n\n\u4f60\u597d, world: caf\u00e9 \U0001f600 and so on\n\n  third"
    ids = tokenizer.encode(text)
    characters = range(len(text))
    for character, token in zip(characters, tokenizer.find(ids, text, characters), strict=True):
        before, upto = (len(tokenizer.decode(ids[:end]).rstrip("\ufffd")) for end in (token, token + 1))
        assert before <= character and (character < upto or "\ufffd" in tokenizer.decode([ids[token]]))


def test_stories_greedy_text(shared: Path) -> None:
    tokenizer = Tokenizer.from_file(shared / "models/stories260K/tok512.bin", vocab_size=512)
    ids = json.loads((shared / "models/stories260K/greedy_ids.json").read_text())
    ids = ids["ids"] if isinstance(ids, dict) else ids
    text = tokenizer.decode(ids)
    assert text.startswith("Once upon a time, there was a little girl named Lily.")
    assert tokenizer.encode(text)[:50] == ([1, *ids] if ids[0] != 1 else ids)[:50]


SPM_RULES = {
    "llama2": ({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, "replace"]}, None),
    "plain": ("replace", None),
    **{
        f"metaspace-{scheme}-{split}": (
            None,
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split},
        )
        for scheme in ("always", "first", "never")
        for split in (True, False)
    },
}


@pytest.mark.parametrize("rule", SPM_RULES)
def test_sentencepiece_style_json_equals_the_tokenizers_package(tmp_path: Path, rule: str) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the oracle package is not installed")
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    oracle = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    oracle.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=420, special_tokens=specials, show_progress=False)
    oracle.train_from_iterator(CORPUS, trainer)
    spec = json.loads(oracle.to_str())
    replace_space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer, pre = json.loads(json.dumps(SPM_RULES[rule]).replace('"replace"', json.dumps(replace_space)))
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    if "never" in rule or rule == "plain":
        decoders.pop()
    spec |= {"normalizer": normalizer, "pre_tokenizer": pre, "decoder": {"type": "Sequence", "decoders": decoders}}
    spec["added_tokens"] = spec["added_tokens"][:3]
    path = _write(tmp_path / "tokenizer.json", spec)
    mine, oracle = Tokenizer.from_file(path), tokenizers.Tokenizer.from_file(str(path))

    @settings(max_examples=100)
    @given(KNOWN_TEXT | MIXED_TEXT)
    def same(text: str) -> None:
        ids = oracle.encode(text).ids
        assert mine.encode(text, parse_special=True) == ids
        assert mine.decode(ids) == oracle.decode(ids)

    for text in [*ODD_TEXTS, "a </s>b<s> c", "</s>"]:
        assert mine.encode(text, parse_special=True) == oracle.encode(text).ids, text
    same()


def test_scored_pieces_without_their_characters(tmp_path: Path) -> None:
    """A character that is no piece becomes bytes, unless a piece that holds it can be made."""
    path = _write(tmp_path / "t.bin", _bin([(b"ab", -1.0), ("aé".encode(), -2.0), (b"c", -3.0)]))
    tokenizer = Tokenizer.from_file(path)
    space, a, b = 3 + 0x20, 3 + ord("a"), 3 + ord("b")
    assert tokenizer.encode("ab", False, continuation=True) == [259]
    assert tokenizer.encode("aabéaé", False, continuation=True) == [a, 259, 3 + 0xC3, 3 + 0xA9, 260]
    assert tokenizer.encode("bca", False, continuation=True) == [b, 261, a]
    assert tokenizer.encode("b b", False) == [space, b, space, b]


def test_pieces_that_hold_a_space_inside(tmp_path: Path) -> None:
    pieces = [(b"a b", -1.0), (b"a ", -2.0), (b" b", -3.0), (b"a", -4.0), (b"b", -5.0), (b" ", -6.0)]
    tokenizer = Tokenizer.from_file(_write(tmp_path / "t.bin", _bin(pieces)))
    assert tokenizer.encode("a b", False, continuation=True) == [259]
    assert tokenizer.encode("b b", False, continuation=True) == [263, 261]


def test_continuation_builds_a_row_from_parts(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.bin")
    tokenizer = Tokenizer.from_file(tmp_path)
    parts = ["the hen", " is in", "\n", "ink", ""]
    ids = [i for n, part in enumerate(parts) for i in tokenizer.encode(part, continuation=n > 0)]
    assert ids.count(1) == 1
    assert tokenizer.decode(ids) == "".join(parts)
    assert [i for part in tokenizer.encode_segments(parts) for i in part] == ids[1:]
    assert tokenizer.decode(tokenizer.encode(" is", False, continuation=True), continuation=True) == " is"


# --- decoding and streams ---


@given(st.lists(st.integers(0, 259), max_size=60))
def test_a_stream_gives_what_decode_gives(ids: list[int]) -> None:
    tokenizer = _plain_bytes()
    stream = tokenizer.stream()
    pushed = [stream.push(i) for i in ids]
    assert "".join(pushed) + stream.flush() == tokenizer.decode(ids)
    expected = b"".join(tokenizer.vocabulary.surfaces[i] for i in ids if i != 259 or not tokenizer.special_tokens)
    assert tokenizer.decode(ids) == expected.decode("utf-8", "replace")


def test_a_stream_never_splits_a_character() -> None:
    tokenizer = _plain_bytes()
    stream = tokenizer.stream()
    pushed = [stream.push(i) for i in tokenizer.encode("é漢🦙a")]
    assert pushed == ["", "é", "", "", "漢", "", "", "", "🦙", "a"]
    assert stream.flush() == ""
    assert (stream.push(tokenizer.encode("é")[0]), stream.flush()) == ("", "\ufffd")


@pytest.mark.parametrize("bad", [-1, 260, 10**9])
def test_ids_outside_are_refused(bad: int) -> None:
    with pytest.raises(TokenizerError, match=str(bad)):
        _plain_bytes().decode([1, bad])


def test_lone_surrogates_become_replacement_characters() -> None:
    tokenizer = _plain_bytes()
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83e\udd99")) == "🦙"


# --- folders and settings ---


def test_settings_beside_the_file(tmp_path: Path) -> None:
    _write(tmp_path / "tokenizer.json", _tokenizer_json())
    config = {
        "bos_token": {"content": "<s>"},
        "eos_token": "<|end|>",
        "pad_token": "[absent]",
        "add_bos_token": True,
        "add_eos_token": True,
        "added_tokens_decoder": {"259": {"content": "<|end|>", "special": True}, "300": {"content": "<s>", "special": True}},
        "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}],
    }
    _write(tmp_path / "tokenizer_config.json", config)
    tokenizer = Tokenizer.from_file(tmp_path)
    assert tokenizer.encode("the") == [300, 257, 259]
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.chat_template) == (301, None, "D")
    _write(tmp_path / "chat_template.jinja", b"from the file")
    assert Tokenizer.from_file(tmp_path / "tokenizer.json").chat_template == "from the file"


def test_folder_order_and_content_not_name(tmp_path: Path, shared: Path) -> None:
    count = write_tokenizer(tmp_path / "tokenizer.bin")
    assert Tokenizer.from_file(tmp_path).vocab_size == count
    _write(tmp_path / "tokenizer.json", _tokenizer_json())
    assert Tokenizer.from_file(tmp_path).vocab_size == 260
    (tmp_path / "odd name.txt").write_bytes((shared / "tokenizers/llama2/tokenizer.model").read_bytes())
    assert Tokenizer.from_file(tmp_path / "odd name.txt").vocab_size == 32000


def test_saved_tokenizers_are_complete(tmp_path: Path, shared: Path) -> None:
    for source in ("tokenizers/minimind", "models/stories260K/tok512.bin", "tokenizers/llama2/tokenizer.model"):
        original = Tokenizer.from_file(shared / source)
        folder = tmp_path / source.replace("/", "-")
        original.save(folder)
        original.save(folder)
        again = Tokenizer.from_file(folder)
        again.save(folder)  # onto itself
        assert (again.fingerprint, again.chat_template) == (original.fingerprint, original.chat_template)
        assert again.encode("Hello <s>") == original.encode("Hello <s>")


def test_fingerprint_follows_what_decides_about_ids(tmp_path: Path) -> None:
    def fingerprint(name: str, **changes: Any) -> str:
        return Tokenizer.from_file(_write(tmp_path / name / "tokenizer.json", _tokenizer_json(**changes))).fingerprint

    model = _tokenizer_json()["model"]
    base = fingerprint("a")
    assert base == fingerprint("b", padding=None, truncation=None, version="2.0")
    changed = [
        fingerprint("c", normalizer={"type": "NFC"}),
        fingerprint("d", pre=PRE_TOKENIZERS["smollm"]),
        fingerprint("e", model={**model, "merges": model["merges"][:2]}),
        fingerprint("f", added_tokens=[]),
    ]
    assert len({base, *changed}) == 5


def test_the_model_must_have_a_row_for_each_id(tmp_path: Path) -> None:
    path = _write(tmp_path / "tokenizer.json", _tokenizer_json())
    config = ModelConfig("llama", 260, 8, 16, 1, 1, 1, 8)
    Tokenizer.from_file(path, vocab_size=260).check_model(config)
    Tokenizer.from_file(path).check_model(replace(config, vocab_size=512))  # padded vocabularies are common
    with pytest.raises(TokenizerError, match=r"260 ids.*259"):
        Tokenizer.from_file(path).check_model(replace(config, vocab_size=259))
    with pytest.raises(TokenizerError, match=r"260 ids.*259"):
        Tokenizer.from_file(path, vocab_size=259)


# --- bad input ---


def _model(**changes: Any) -> dict[str, Any]:
    return _tokenizer_json(model={**_tokenizer_json()["model"], **changes})


def _bin(pieces: list[tuple[bytes, float]], longest: int = 20) -> bytes:
    fixed = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(f"<0x{b:02X}>".encode() for b in range(256))]
    every = [(piece, 0.0) for piece in fixed] + pieces
    return struct.pack("<i", longest) + b"".join(struct.pack("<fi", score, len(p)) + p for p, score in every)


VOCAB = _tokenizer_json()["model"]["vocab"]
BAD_FILES: dict[str, tuple[object, str]] = {
    "empty": (b"", "empty"),
    "garbage": (b"\x93NUMPY\x01\x00 what is this", "not a tokenizer"),
    "text": (b"hello there", "not a tokenizer"),
    "html": (b"<!DOCTYPE html><html>", "not a tokenizer"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS"),
    "unknown ranks": (b"IQ== 0\nIg== 1\n", "2 pieces"),
    "ranks out of order": (b"IQ== 0\nIg== 2\n", "line 2"),
    "ranks not base64": (b"IQ== 0\nI!== 1\n", "line 2"),
    "gguf cut": (b"GGUF\x03\x00\x00\x00", "header at byte 8: needs 8 bytes"),
    "json cut": (json.dumps(_tokenizer_json()).encode()[:-40], "JSON"),
    "json not utf-8": (b'{"model": "\xff"}', "JSON"),
    "json too deep": (b'{"a":' * 100_000, "JSON"),
    "json no model": ({"version": "1.0"}, "no model"),
    "unigram": (_model(type="Unigram"), "Unigram"),
    "wordpiece": (_model(type="WordPiece"), "WordPiece"),
    "dropout": (_model(dropout=0.1), "dropout"),
    "suffix": (_model(end_of_word_suffix="</w>"), "end_of_word_suffix"),
    "no vocab": (_model(vocab={}), "vocab"),
    "vocab list": (_model(vocab=[["a", 0.0]]), "vocab"),
    "duplicate ids": (_model(vocab={**VOCAB, "new": 7}), "both have the id 7"),
    "id not a number": (_model(vocab={**VOCAB, "new": "7"}), "'new' has the id '7'"),
    "id negative": (_model(vocab={**VOCAB, "new": -1}), "-1"),
    "id huge": (_model(vocab={**VOCAB, "new": 10**12}), "1000000000000"),
    "no merges": (_model(merges=None), "merges"),
    "merge of one": (_model(merges=["th"]), "merge 0"),
    "merge of three": (_model(merges=["t h", "t h e"]), "merge 1"),
    "merge of numbers": (_model(merges=[[1, 2]]), "merge 0"),
    "merge unknown part": (_model(merges=["zz h"]), "'zz'"),
    "merge unknown product": (_model(merges=["h t"]), "'ht'"),
    "normalizer": (_tokenizer_json(normalizer={"type": "Lowercase"}), "Lowercase"),
    "normalizer no type": (_tokenizer_json(normalizer=["NFC"]), "normalizer"),
    "pre_tokenizer": (_tokenizer_json({"type": "Whitespace"}), "Whitespace"),
    "no pre_tokenizer": ({**_tokenizer_json(), "pre_tokenizer": None}, "neither byte-level"),
    "pattern": (_tokenizer_json(_sequence(_split(r"\w+|\W+"), NO_REGEX)), r"\\\\w\+"),
    "pattern list": (_tokenizer_json(_sequence({"type": "Split", "pattern": {"Regex": []}}, NO_REGEX)), "pattern"),
    "behavior": (_tokenizer_json(_sequence(_split(pretokenizer.QWEN2, "MergedWithNext"), NO_REGEX)), "MergedWithNext"),
    "split alone": (_tokenizer_json(_split(pretokenizer.QWEN2)), "Split"),
    "sequence without list": (_tokenizer_json({"type": "Sequence"}), "Sequence"),
    "decoder": (_tokenizer_json(decoder={"type": "CTC"}), "CTC"),
    "post_processor": (_tokenizer_json(post_processor={"type": "BertProcessing"}), "BertProcessing"),
    "added token no text": (_tokenizer_json(added_tokens=[{"id": 259}]), "added token"),
    "added token no id": (_tokenizer_json(added_tokens=[{"content": "<x>"}]), "added token"),
    "added token other id": (_tokenizer_json(added_tokens=[{"id": 259, "content": "the"}]), "'the'"),
    "added token taken id": (_tokenizer_json(added_tokens=[{"id": 5, "content": "<x>"}]), "'<x>'"),
    "added tokens twice": (_tokenizer_json(added_tokens=[{"id": 259, "content": c} for c in "ΩΨ"]), "259"),
    "fallback without bytes": (
        {**_model(byte_fallback=True), "pre_tokenizer": {"type": "Metaspace", "replacement": "▁"}},
        "<0x00>",
    ),
    "bin cut in a piece": (_bin([(b"ab", -1.0)])[:-1], "piece 259"),
    "bin cut in a header": (_bin([(b"ab", -1.0)])[:-7], "piece 259"),
    "bin cut early": (_bin([])[:100], "piece"),
    "bin without bytes": (_bin([])[: 4 + 13 + 13 + 14], "piece 3"),
    "bin length": (_bin([(b"x" * 30, 0.0)]), "length 30"),
    "bin nan": (_bin([(b"x", float("nan"))]), "nan"),
    "bin twice": (_bin([(b"x", 0.0), (b"y", 0.0), (b"x", 0.0)]), "259 and 261"),
    "bin not utf-8": (_bin([(b"\xff\xfe", 0.0)]), "UTF-8"),
    "sentencepiece cut": (b"\n\x0e\n\x05<unk>\x15\x00\x00", "breaks off"),
    "sentencepiece no settings": (b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02", "settings"),
    "sentencepiece garbage": (b"\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "SentencePiece"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_give_one_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    content, expected = BAD_FILES[name]
    path = _write(tmp_path / "some.file", content)
    with pytest.raises(TokenizerError, match=expected) as caught:
        Tokenizer.from_file(path)
    assert str(path) in str(caught.value)


BAD_SETTINGS: dict[str, tuple[object, str]] = {
    "not json": (b"{", "JSON"),
    "a list": ([], "object"),
    "eos not there": ({"eos_token": "<eos>"}, "'<eos>'"),
    "bos not there": ({"bos_token": {"content": "<bos>"}}, "'<bos>'"),
    "id not a number": ({"added_tokens_decoder": {"x": {"content": "<x>"}}}, "'x'"),
    "id taken": ({"added_tokens_decoder": {"5": {"content": "<x>"}}}, "'<x>'"),
    "decoder a list": ({"added_tokens_decoder": [1]}, "added_tokens_decoder"),
    "template a number": ({"chat_template": 7}, "chat_template"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_settings_name_their_file(tmp_path: Path, name: str) -> None:
    content, expected = BAD_SETTINGS[name]
    _write(tmp_path / "tokenizer.json", _tokenizer_json())
    path = _write(tmp_path / "tokenizer_config.json", content)
    with pytest.raises(TokenizerError, match=expected) as caught:
        Tokenizer.from_file(tmp_path)
    assert str(path) in str(caught.value)


def test_missing_paths(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(TokenizerError, match=str(path)) as caught:
            Tokenizer.from_file(path)
        assert caught.value.hint


@pytest.mark.parametrize("kind", ["tokenizer.bin", "tokenizer.model", "minimind"])
def test_a_cut_or_changed_file_never_gives_another_error(tmp_path: Path, shared: Path, kind: str) -> None:
    """Cut anywhere and with single bytes changed: it loads or says TokenizerError."""
    source = shared / "tokenizers" / (f"llama2/{kind}" if "." in kind else "minimind/tokenizer.json")
    if kind == "tokenizer.bin":  # a small one: each try reads the whole
        source = shared / "models/stories260K/tok512.bin"
    data = source.read_bytes()
    path = tmp_path / "file"
    for n in range(24):
        place = (n * 7919 * 31 + 3) % len(data)
        changed = data[:place] if n % 2 else data[:place] + bytes([data[place] ^ (1 << n % 8)]) + data[place + 1 :]
        path.write_bytes(changed)
        try:
            Tokenizer.from_file(path).decode([0, 1, 2])
        except TokenizerError as e:
            assert str(path) in str(e)


def test_a_missing_byte_is_named(tmp_path: Path) -> None:
    vocab = {piece: i for piece, i in VOCAB.items() if piece != "z"}
    path = _write(tmp_path / "t.json", _model(vocab=vocab))
    tokenizer = Tokenizer.from_file(path)
    assert tokenizer.decode(tokenizer.encode("the")) == "the"
    with pytest.raises(TokenizerError, match="0x7A"):
        tokenizer.encode("zoo")


def test_text_must_be_text() -> None:
    encode: Callable[[Any], list[int]] = _plain_bytes().encode
    for value in (None, b"x", 3):
        with pytest.raises(NeuralForgeError, match="not str"):
            encode(value)
