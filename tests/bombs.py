# SPDX-License-Identifier: Apache-2.0
"""Files that were made to exhaust or to betray their reader, built byte by byte."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

WORDS = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"
_KINDS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def paragraph(text: str) -> str:
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def document_xml(body: str, *, head: str = "") -> bytes:
    return f'<?xml version="1.0"?>{head}<w:document xmlns:w="{WORDS}"><w:body>{body}</w:body></w:document>'.encode()


def relations(**targets: str) -> bytes:
    """Relations by kind, `{kind: target}`."""
    rows = [f'<Relationship Id="{kind}" Type="{_KINDS}/{kind}" Target="{target}"/>' for kind, target in targets.items()]
    return f'<Relationships xmlns="{_RELATIONS}">{"".join(rows)}</Relationships>'.encode()


def docx(xml: bytes, **parts: bytes) -> bytes:
    """A DOCX with this main part, and others by their names in `word/`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("_rels/.rels", relations(officeDocument="word/document.xml"))
        archive.writestr("word/document.xml", xml)
        targets = {name.rstrip("0123456789"): f"{name}.xml" for name in parts}
        archive.writestr("word/_rels/document.xml.rels", relations(**targets))
        for name, content in parts.items():
            archive.writestr(f"word/{name}.xml", content)
    return out.getvalue()


def _stored(name: bytes, packed: bytes, crc: int, size: int) -> bytes:
    """A zip of one deflated member whose sizes need not be true."""
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 33, crc, len(packed), size, len(name), 0) + name + packed
    fields = (b"PK\1\2", 20, 20, 0, 8, 0, 33, crc, len(packed), size, len(name), 0, 0, 0, 0, 0, 0)
    central = struct.pack("<4s6H3I5H2I", *fields) + name
    return local + central + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)


def giant_docx(*, honest: bool = True) -> bytes:
    """One GiB of text in one MiB; the header tells the size, or lies."""
    head, tail = document_xml("<w:p><w:r><w:t>?</w:t></w:r></w:p>").split(b"?>", 1)[1].split(b"?")
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    begin = pack.compress(head) + pack.flush(zlib.Z_FULL_FLUSH)
    block = pack.compress(b"a" * (1 << 20)) + pack.flush(zlib.Z_FULL_FLUSH)
    end = pack.compress(tail) + pack.flush()
    size = len(head) + (1 << 30) + len(tail)
    return _stored(b"word/document.xml", begin + block * 1024 + end, 0, size if honest else 900)


def overlapping_docx() -> bytes:
    """Ten thousand names in the directory for one stored file."""
    whole = docx(document_xml(paragraph("x" * 5000)))
    at = whole.rindex(b"PK\5\6")
    count, size, start = struct.unpack_from("<HII", whole, at + 10)
    central, entries = whole[start : start + size], b""
    name = b"word/document.xml"
    one = central[central.index(name) - 46 : central.index(name) + len(name)]
    for i in range(5000):
        entries += one[:46] + b"word/documen%05d" % i + one[46 + len(b"word/documen") + 5 :]
    entries = central + entries
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count + 5000, count + 5000, len(entries), start, 0)
    return whole[:start] + entries + end


def entities_docx() -> bytes:
    """A billion laughs."""
    names = [f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10)]
    head = f'<!DOCTYPE w [<!ENTITY l0 "laugh">{"".join(names)}]>'
    return docx(document_xml(paragraph("&l9;"), head=head))


def canary_docx(canary: Path) -> bytes:
    """The text of another file by an external entity."""
    return docx(document_xml(paragraph("&e;"), head=f'<!DOCTYPE w [<!ENTITY e SYSTEM "{canary.as_uri()}">]>'))


def canary_relation_docx(canary: Path) -> bytes:
    """Another file as the main part's header."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("word/document.xml", document_xml(paragraph("text")))
        targets = (str(canary), canary.as_uri(), "../../../../../../.." + str(canary))
        rows = b"".join(relations(header=target).partition(b">")[2].partition(b"</Rel")[0] for target in targets)
        archive.writestr("word/_rels/document.xml.rels", relations().replace(b"</", rows + b"</"))
    return out.getvalue()


def pdf(*objects: bytes) -> bytes:
    """A PDF of these objects, the first of which is the catalog."""
    out, places = b"%PDF-1.5\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    return out + head + table + b"trailer<</Root 1 0 R/Size %d>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(out))


def _stream(data: bytes, entries: bytes) -> bytes:
    return b"<<%s/Length %d>>stream\n%s\nendstream" % (entries, len(data), data)


def page_pdf(content: bytes, entries: bytes = b"") -> bytes:
    """One page with this content stream, and Helvetica as F1."""
    return pdf(
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        _stream(content, entries),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    )


def text_pdf(*pages: str) -> bytes:
    """One page for each text; an empty one is blank."""
    kids = b" ".join(b"%d 0 R" % (4 + 2 * i) for i in range(len(pages)))
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, len(pages))]
    objects.append(b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>")
    for i, text in enumerate(pages):
        parent = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]/Contents %d 0 R/Resources<</Font<</F1 3 0 R>>>>>>" % (
            5 + 2 * i
        )
        objects += [parent, _stream(b"BT /F1 9 Tf (%s) Tj ET" % text.encode("latin-1") if text else b"", b"")]
    return pdf(*objects)


def cyclic_pdf() -> bytes:
    """A folder of pages that contains itself."""
    return pdf(
        b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R 2 0 R]/Count 9>>", b"<</Type/Pages/Kids[2 0 R]/Count 9>>"
    )


def chain_pdf(size: int = 75 << 20) -> bytes:
    """A page whose content is `size` bytes behind two filters."""
    text = b"(x) Tj " * (size // 7)
    return page_pdf(zlib.compress(zlib.compress(text, 1), 9), b"/Filter[/FlateDecode/FlateDecode]")


def run_length_pdf() -> bytes:
    """Run-length behind Flate: 64 MiB in a few kilobytes."""
    return page_pdf(zlib.compress(b"\x81 " * (1 << 19) + b"\x80", 9), b"/Filter[/FlateDecode/RunLengthDecode]")


def long_chain_pdf() -> bytes:
    """A hundred filters one after another."""
    data = b"BT (x) Tj ET"
    for _ in range(100):
        data = zlib.compress(data)
    return page_pdf(data, b"/Filter[" + b"/FlateDecode" * 100 + b"]")
