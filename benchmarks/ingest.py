# SPDX-License-Identifier: Apache-2.0
"""Reading a folder of mixed documents beside one process that reads them one after another.

The documents are made here and always the same: text, JSON lines, HTML, DOCX, and PDF, which takes most of the time. One
process once calls the libraries below our readers (pypdf, html.parser, zipfile and expat, json) in the shortest way and with
the garbage collector off, as in our children, and once our readers, with pypdf as it is. The three take turns. The tokens
of `ingest` come on top and are timed by themselves.

    python benchmarks/ingest.py [--mb 50] [--rounds 3] [--model embedded]
"""

from __future__ import annotations

import argparse
import gc
import html
import io
import json
import random
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from xml.parsers import expat

import machine
from turns import ratio, spread, table, take_turns, verdict

# share of the bytes, and bytes of text of one file
SHARES = {
    "txt": (0.47, 400_000),
    "jsonl": (0.25, 1_000_000),
    "html": (0.2, 300_000),
    "docx": (0.05, 600_000),
    "pdf": (0.03, 400_000),
}
WORDS = "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one"
LINE, LINES = 90, 50  # characters and lines of a page
PARAGRAPH = '<w:p><w:r><w:t xml:space="preserve">{}</w:t></w:r></w:p>'
NAMESPACE = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def prose(size: int, chance: random.Random) -> str:
    """Words of changing length in sentences, about `size` characters."""
    known = WORDS.split() + ["".join(chance.choices("etaoinshrdlu", k=chance.randint(3, 11))) for _ in range(2000)]
    words = chance.choices(known, k=size // 6)
    return ". ".join(" ".join(words[i : i + 14]).capitalize() for i in range(0, len(words), 14))[:size]


def docx(text: str) -> bytes:
    body = "".join(PARAGRAPH.format(html.escape(line)) for line in text.split(". "))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        document = f'<w:document xmlns:w="{NAMESPACE}"><w:body>{body}</w:body></w:document>'
        archive.writestr("word/document.xml", document)
    return out.getvalue()


def pdf(text: str) -> bytes:
    """Pages of lines in Helvetica, words placed one by one as typesetters do."""
    lines = [text[i : i + LINE] for i in range(0, len(text), LINE)]
    pages = [lines[i : i + LINES] for i in range(0, len(lines), LINES)]
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>".encode()]
    objects.append(b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>")
    for i, page in enumerate(pages):
        rows = [f"[{' '.join(f'({word}) -250' for word in line.split())}] TJ 0 -11 Td" for line in page]
        stream = zlib.compress(("BT /F1 9 Tf 40 780 Td " + "\n".join(rows) + " ET").encode("latin-1"))
        objects.append(
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources<</Font<</F1 3 0 R>>>>/Contents %d 0 R>>" % (5 + 2 * i)
        )
        objects.append(b"<</Filter/FlateDecode/Length %d>>stream\n%s\nendstream" % (len(stream), stream))
    out, places = bytearray(b"%PDF-1.5\n"), []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer<</Root 1 0 R/Size %d>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(out))
    return bytes(out) + b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + table + end


MAKERS: dict[str, Callable[[str], bytes]] = {
    "txt": str.encode,
    "jsonl": lambda text: "".join(json.dumps({"text": line}) + "\n" for line in text.split(". ")).encode(),
    "html": lambda text: "".join(f"<p>{line}</p>\n" for line in text.split(". ")).encode(),
    "docx": docx,
    "pdf": pdf,
}


def make_folder(folder: Path, megabytes: float) -> int:
    """Write documents of that size in all; returns their bytes."""
    chance, total = random.Random(0), 0
    for kind, (share, size) in SHARES.items():
        wanted, number = share * megabytes * 1e6, 0
        while wanted > 0:
            content = MAKERS[kind](prose(size, chance))
            (folder / f"{number:03}.{kind}").write_bytes(content)
            wanted, number, total = wanted - len(content), number + 1, total + len(content)
    return total


class Words(HTMLParser):
    """The text of a page, joined as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def html_text(data: bytes) -> str:
    parser = Words()
    parser.feed(data.decode())
    parser.close()
    return "".join(parser.parts)


def docx_text(data: bytes) -> str:
    parts: list[str] = []
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.CharacterDataHandler = parts.append
    parser.EndElementHandler = lambda tag: parts.append("\n") if tag == "w:p" else None
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parser.Parse(archive.read("word/document.xml"), True)
    return "".join(parts)


def pdf_text(data: bytes) -> str:
    import pypdf

    return "\n\n".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(data)).pages)


LIBRARIES: dict[str, Callable[[bytes], list[str]]] = {
    "txt": lambda data: [data.decode()],
    "jsonl": lambda data: [json.loads(line)["text"] for line in data.decode().splitlines()],
    "html": lambda data: [html_text(data)],
    "docx": lambda data: [docx_text(data)],
    "pdf": lambda data: [pdf_text(data)],
}


def libraries(folder: Path) -> int:
    """The libraries below our readers, called in the shortest way."""
    rows: list[str] = []
    gc.disable()
    for path in sorted(folder.iterdir()):
        rows += LIBRARIES[path.suffix[1:]](path.read_bytes())
    gc.enable()
    return len(rows)


def one_process(folder: Path) -> int:
    """Our readers, called directly."""
    from neuralforge import read_docx, read_html, read_json, read_pdf
    from neuralforge.decoding import decode
    from neuralforge.records import Item, document

    rows: list[Item] = []
    for path in sorted(folder.iterdir()):
        data, kind = path.read_bytes(), path.suffix[1:]
        if kind == "txt":
            rows.append((document(decode(data, path.name).text, path.name), ""))
        elif kind == "jsonl":
            rows += read_json.read_lines(decode(data, path.name).text, path.name)
        else:
            reader = {"html": read_html, "docx": read_docx, "pdf": read_pdf}[kind]
            rows += reader.read(data, path.name)
    return len(rows)


def ours(folder: Path) -> int:
    from neuralforge.ingest import Dataset

    return len(Dataset.from_path(folder))


def timed(work: Callable[[Path], int], folder: Path) -> tuple[float, int]:
    """(seconds, rows) of one reading."""
    began = time.perf_counter()
    count = work(folder)
    return time.perf_counter() - began, count


SIDES = {"libraries, one process": libraries, "our readers, one process": one_process, "NeuralForge": ours}


def rows(times: dict[str, list[float]]) -> list[list[str]]:
    made = []
    for label, taken in times.items():
        longer = ratio(taken, times["NeuralForge"])
        bar = verdict(longer.median, machine.cores()) if label == "libraries, one process" else ""
        made.append([label, spread(taken).text(2), longer.text(2) if taken is not times["NeuralForge"] else "", bar])
    return made


def tokens_per_second(folder: Path, target: Path, model: str) -> tuple[float, int]:
    """(seconds, tokens) of a whole ingest."""
    from neuralforge.corpus import Ingested, ingest
    from neuralforge.model import Model
    from neuralforge.templates import template_for

    tokenizer = Model.from_pretrained(model).tokenizer
    began = time.perf_counter()
    *_, done = ingest(folder, target, tokenizer, template_for(tokenizer))
    assert isinstance(done, Ingested)
    return time.perf_counter() - began, done.total_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=float, default=50, help="megabytes of documents (50)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="", help="also make shards with the tokenizer of this model")
    o = parser.parse_args()
    print("\n".join(machine.describe()), end="\n\n")
    before = machine.processor_seconds()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "documents"
        folder.mkdir()
        size = make_folder(folder, o.mb)
        figures = take_turns({label: partial(timed, work, folder) for label, work in SIDES.items()}, o.rounds)
        counts = {count for found in figures.values() for _, count in found}
        assert len(counts) == 1, counts
        times = {label: [taken for taken, _ in found] for label, found in figures.items()}
        print(f"{size / 1e6:.1f} MB in {len(list(folder.iterdir()))} files, {machine.cores()} cores\n")
        print(table(("", "seconds", "times as long as NeuralForge", "bar: the cores"), rows(times)))
        if o.model:
            took, tokens = tokens_per_second(folder, Path(name) / "shards", o.model)
            print(f"A whole ingest into shards: {took:.2f} s, {tokens:,} tokens.\n")
    print(machine.disturbance(before))


if __name__ == "__main__":
    main()
