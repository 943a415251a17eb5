# SPDX-License-Identifier: Apache-2.0
"""Tokenizing beside the other libraries that a Python user can install: the same files and texts, exactness beside speed.

Each library works in a process of its own: the first pass over the documents is "cold" (nothing was encoded before, the
vocabulary is loaded), the median of the next four is "warm". They take turns, each round in new processes.

    python benchmarks/tokenizer.py [--vocabularies llama2,llama3,qwen,gpt2,minimind] [--libraries neuralforge,...]
        [--corpora english,udhr] [--threads 1,2] [--rounds 3]

English is the paragraphs of all English files of the shared texts in a random order, again and again in another order up to
20 MB, cut into documents of about 100 KB; so words repeat as they do in English, and whole passages only far apart. `udhr` is
the Universal Declaration of Human Rights in more than 300 languages, one document each.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np
from turns import ratio, spread, table, verdict

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TEXTS, FILES = SHARED / "text", SHARED / "tokenizers"
SIZE, DOCUMENT = 20_000_000, 100_000
WARM_PASSES = 4
OURS = "neuralforge"
BAR, LLAMA2_BAR = 1.0, 1.5  # times the fastest of the others, cold and warm

Encode = Callable[[list[str], int], Iterable[Sequence[int]]]


# --- texts ---


def paragraphs() -> list[str]:
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(TEXTS.glob("*.txt"))]
    with zipfile.ZipFile(TEXTS / "state_union.zip") as archive:
        texts += [archive.read(n).decode("utf-8", "replace") for n in sorted(archive.namelist()) if n.endswith(".txt")]
    return [part for text in texts for part in text.split("\n\n")]


def english() -> list[str]:
    parts, order, out, size, held = paragraphs(), random.Random(0), [], 0, 0
    document: list[str] = []
    while size < SIZE:
        order.shuffle(parts)
        for part in parts:
            document.append(part)
            held += len(part) + 2
            if held >= DOCUMENT:
                out.append("\n\n".join(document))
                size, held, document = size + held, 0, []
            if size >= SIZE:
                break
    return out


def udhr() -> list[str]:
    with zipfile.ZipFile(TEXTS / "udhr2.zip") as archive:
        return [archive.read(n).decode("utf-8", "replace") for n in sorted(archive.namelist()) if not n.endswith("/")]


CORPORA: Mapping[str, Callable[[], list[str]]] = {"english": english, "udhr": udhr}


# --- vocabularies: the file that we read, and the tokenizer.json that the others read ---


def ranks(path: Path) -> list[bytes]:
    return [base64.b64decode(line.split()[0]) for line in path.read_bytes().splitlines()]


def letters() -> list[str]:
    from neuralforge.bpe import byte_letters

    return [letter for letter, _ in sorted(byte_letters().items(), key=lambda item: item[1])]


def rank_json(pieces: Sequence[bytes], pattern: str, **extra: Any) -> dict[str, Any]:
    """A byte-level tokenizer.json of a rank file: each piece has every split into two pieces as a merge, at its rank."""
    spelling, known = letters(), {piece: i for i, piece in enumerate(pieces)}

    def spelt(piece: bytes) -> str:
        return "".join(spelling[b] for b in piece)

    merges = []
    for piece in pieces:
        splits = [(piece[:k], piece[k:]) for k in range(1, len(piece)) if piece[:k] in known and piece[k:] in known]
        merges += [[spelt(a), spelt(b)] for a, b in sorted(splits, key=lambda s: (known[s[0]], known[s[1]]))]
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    vocab = {spelt(piece): i for i, piece in enumerate(pieces)}
    return frame(
        {"vocab": vocab, "merges": merges, "ignore_merges": True},
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]},
        decoder=level,
        **extra,
    )


def frame(model: Mapping[str, Any], **parts: Any) -> dict[str, Any]:
    options = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    flags = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    top = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", **top, "added_tokens": [], **parts, "model": {"type": "BPE", **options, **flags, **model}}


def gpt2_json() -> dict[str, Any]:
    lines = (FILES / "gpt2/merges.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocab = json.loads((FILES / "gpt2/vocab.json").read_bytes())
    return frame({"vocab": vocab, "merges": pairs}, pre_tokenizer=level, decoder=level)


def llama2_json() -> dict[str, Any]:
    import sentencepiece

    sp = sentencepiece.SentencePieceProcessor(model_file=str(FILES / "llama2/tokenizer.model"))
    vocab = {sp.id_to_piece(i): i for i in range(sp.vocab_size())}
    merges = []
    for piece, i in vocab.items():
        splits = [(piece[:k], piece[k:]) for k in range(1, len(piece)) if piece[:k] in vocab and piece[k:] in vocab]
        splits.sort(key=lambda s: (vocab[s[0]], vocab[s[1]]))
        merges += [(sp.get_score(i), a, b) for a, b in splits if i >= 259]
    merges.sort(key=lambda m: -m[0])
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return frame(
        {"vocab": vocab, "merges": [m[1:] for m in merges], "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]},
        decoder={"type": "Sequence", "decoders": decoders},
        added_tokens=[{"id": i, "content": text, **special} for i, text in enumerate(("<unk>", "<s>", "</s>"))],
    )


def vocabulary(name: str) -> tuple[Path, dict[str, Any]]:
    """(the file that we read, tokenizer.json of the same vocabulary)."""
    from neuralforge import pretokenizer

    if name == "llama2":
        return FILES / "llama2/tokenizer.model", llama2_json()
    if name == "llama3":
        path = FILES / "llama3/tokenizer.model"
        return path, rank_json(ranks(path), pretokenizer.LLAMA3)
    if name == "qwen":
        path = FILES / "qwen/qwen.tiktoken"
        return path, rank_json(ranks(path), pretokenizer.QWEN2, normalizer={"type": "NFC"})
    if name == "gpt2":
        return SHARED / "tokenizers/gguf/ggml-vocab-gpt-2.gguf", gpt2_json()
    return FILES / "minimind/tokenizer.json", json.loads((FILES / "minimind/tokenizer.json").read_bytes())


# --- libraries: each gives a function of (texts, threads) ---


def ours(name: str, path: Path, other: Path) -> Encode:
    from neuralforge.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.encode("")  # makes the C tables

    def encode(texts: list[str], threads: int) -> Iterable[Sequence[int]]:
        ids, ends = tokenizer.encode_batch(texts, threads=threads)
        return np.split(ids, ends[:-1])

    return encode


def with_tokenizers(name: str, path: Path, other: Path) -> Encode:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(other))
    return lambda texts, threads: [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def with_sentencepiece(name: str, path: Path, other: Path) -> Encode:
    import sentencepiece

    if name != "llama2":
        raise LookupError("not a SentencePiece model")
    sp = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return lambda texts, threads: sp.encode(texts, num_threads=threads)


def with_tiktoken(name: str, path: Path, other: Path) -> Encode:
    import tiktoken

    from neuralforge import pretokenizer

    if name not in ("llama3", "qwen", "gpt2"):
        raise LookupError("no ranks")
    pattern = {"llama3": pretokenizer.LLAMA3, "qwen": pretokenizer.QWEN2, "gpt2": pretokenizer.GPT2}[name]
    if name == "gpt2":
        table = {letter: byte for byte, letter in enumerate(letters())}
        vocab = json.loads((FILES / "gpt2/vocab.json").read_bytes())
        pieces = {bytes(table[c] for c in text): i for text, i in vocab.items() if text != "<|endoftext|>"}
    else:
        pieces = {piece: i for i, piece in enumerate(ranks(path))}
    encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=pieces, special_tokens={})
    return lambda texts, threads: encoding.encode_ordinary_batch(texts, num_threads=threads)


def with_fastokens(name: str, path: Path, other: Path) -> Encode:
    import fastokens

    tokenizer = fastokens.Tokenizer.from_file(str(other))
    return lambda texts, threads: [e.ids for e in tokenizer.encode_batch(texts)]


def with_tokie(name: str, path: Path, other: Path) -> Encode:
    import tokie

    tokenizer = tokie.Tokenizer.from_json(str(other))
    return lambda texts, threads: [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]


def with_gigatoken(name: str, path: Path, other: Path) -> Encode:
    import gigatoken

    tokenizer = gigatoken.Tokenizer(str(other))
    return lambda texts, threads: tokenizer.encode_batch(texts, parallel=threads > 1)


def with_kitoken(name: str, path: Path, other: Path) -> Encode:
    import kitoken

    tokenizer = kitoken.Kitoken.from_tokenizers_file(str(other))
    return lambda texts, threads: tokenizer.encode_all(texts)


LIBRARIES: Mapping[str, Callable[[str, Path, Path], Encode]] = {
    OURS: ours,
    "tokenizers": with_tokenizers,
    "sentencepiece": with_sentencepiece,
    "tiktoken": with_tiktoken,
    "fastokens": with_fastokens,
    "tokie": with_tokie,
    "gigatoken": with_gigatoken,
    "kitoken": with_kitoken,
}


# --- measuring ---


def digests(rows: Iterable[Sequence[int]]) -> list[bytes]:
    return [hashlib.blake2b(np.asarray(row, np.int32).tobytes(), digest_size=8).digest() for row in rows]


def job(library: str, name: str, path: Path, other: Path, corpus: str, threads: int, answer: Any) -> None:
    """In a process of its own: sends (cold, warm) in seconds and a digest of each document's ids, or a message.

    The process gets as many cores as it may have threads: some libraries do not let their own threads be counted otherwise.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    try:
        encode = LIBRARIES[library](name, path, other)
        texts = CORPORA[corpus]()
        seconds, rows = [], []
        for _ in range(1 + WARM_PASSES):
            start = time.perf_counter()
            rows = encode(texts, threads)
            seconds.append(time.perf_counter() - start)
        answer.send((seconds[0], statistics.median(seconds[1:]), digests(rows)))
    except BaseException as e:  # a library may fail in its own ways; the table says so
        answer.send(f"{type(e).__name__}: {str(e)[:60]}")


def measure(*what: Any, threads: int) -> Any:
    os.environ.update(RAYON_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM="true" if threads > 1 else "false")
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=job, args=(*what, threads, there))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        return "the process died"
    finally:
        process.join()


def reference(name: str) -> str:
    return {"llama2": "sentencepiece", "minimind": "tokenizers"}.get(name, "tokenizers" if name == "qwen" else "tiktoken")


def sides(what: tuple[str, str, int], libraries: Sequence[str], files: tuple[Path, Path], rounds: int) -> dict[str, list[Any]]:
    """What `measure` found in each round, by library; those that do not read this vocabulary are not there."""
    name, corpus, threads = what
    found: dict[str, list[Any]] = {library: [] for library in libraries}
    for _ in range(rounds):
        for library, results in found.items():
            if not results or isinstance(results[-1], tuple):
                results.append(measure(library, name, *files, corpus, threads=threads))
    return {library: results for library, results in found.items() if "LookupError" not in results[-1]}


def rows(
    what: tuple[str, str, int], found: dict[str, list[Any]], size: float, expected: Sequence[bytes]
) -> Iterator[list[str]]:
    """A row for each library; ours with the ratio to the fastest of the others, cold and warm."""
    name, corpus, threads = what
    able = [library for library, results in found.items() if isinstance(results[-1], tuple)]
    speeds = {library: [[size / one[i] for one in found[library]] for i in (0, 1)] for library in able}
    bar, made = LLAMA2_BAR if name == "llama2" else BAR, []
    for library, results in found.items():
        cells = [name, corpus, str(threads), library]
        if library not in speeds:
            made.append([*cells, *[""] * 6, results[-1]])
            continue
        for i in (0, 1):
            others = {other: spread(speed[i]).median for other, speed in speeds.items() if other != OURS}
            cells += [spread(speeds[library][i]).text(0), "", ""]
            if library == OURS and others:
                times = ratio(speeds[OURS][i], speeds[max(others, key=others.__getitem__)][i])
                cells[-2:] = [times.text(2), verdict(times.median, bar)]
        wrong = sum(a != b for a, b in zip(results[-1][2], expected, strict=True))
        made.append([*cells, f"{wrong} of {len(expected)} documents differ" if wrong else f"as {reference(name)}"])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabularies", default="llama2,llama3,qwen,gpt2,minimind")
    parser.add_argument("--libraries", default=",".join(LIBRARIES))
    parser.add_argument("--corpora", default=",".join(CORPORA))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3, help="each is a new process of each library, in turns")
    chosen = parser.parse_args()
    print("\n".join(machine.describe()))
    peers = [name for name in LIBRARIES if name != OURS]
    print("peers    ", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in peers) + "\n")
    before, lines = machine.processor_seconds(), []
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.vocabularies.split(","):
            path, spec = vocabulary(name)
            other = Path(folder) / name / "tokenizer.json"
            other.parent.mkdir()
            other.write_text(json.dumps(spec), encoding="utf-8")
            for corpus in chosen.corpora.split(","):
                texts = CORPORA[corpus]()
                size = sum(len(text.encode()) for text in texts) / 1e6
                expected = digests(LIBRARIES[reference(name)](name, path, other)(texts, 2))
                for threads in map(int, chosen.threads.split(",")):
                    what = (name, corpus, threads)
                    found = sides(what, chosen.libraries.split(","), (path, other), chosen.rounds)
                    lines += rows(what, found, size, expected)
    head = ("vocabulary", "text", "threads", "library", "cold MB/s", "times the fastest other", "bar")
    print(table((*head, "warm MB/s", "times the fastest other", "bar", "ids"), lines))
    print(machine.disturbance(before))


if __name__ == "__main__":
    main()
