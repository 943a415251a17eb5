# SPDX-License-Identifier: Apache-2.0
"""Foreign files are read in children that cannot open anything; files made to exhaust them are refused quickly and cheaply."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import bombs
import pytest
from small import write

from neuralforge import sandbox
from neuralforge.errors import DataError
from neuralforge.ingest import Dataset
from neuralforge.sandbox import Sandbox

# Reads a file and prints seconds, the most MiB of a child, and the error; in a process that has no other children.
MEASURE = """
import json, resource, sys, time
from neuralforge.sandbox import Sandbox
path = sys.argv[1]
data = open(path, "rb").read()
began = time.perf_counter()
with Sandbox() as sandbox:
    try:
        told = str([item.data for item in sandbox.read(path.rpartition(".")[2], data, "it")])
    except Exception as error:
        told = f"{type(error).__name__} {error}"
seconds = time.perf_counter() - began
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, told]))
"""


def measure(path: Path) -> tuple[float, float, str]:
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    seconds, mebibytes, told = json.loads(done.stdout)
    return seconds, mebibytes, told


BOMBS = {
    "giant.docx": (bombs.giant_docx, "expands from 10"),
    "lying.docx": (lambda: bombs.giant_docx(honest=False), "not a readable DOCX"),
    "overlapping.docx": (bombs.overlapping_docx, "overlaps another file"),
    "entities.docx": (bombs.entities_docx, "defines entities"),
    "cyclic.pdf": (bombs.cyclic_pdf, "its pages contain each other"),
    "chain.pdf": (bombs.chain_pdf, "made to exhaust the reader: page 1"),
    "run_length.pdf": (bombs.run_length_pdf, "made to exhaust the reader: page 1"),
    "long_chain.pdf": (bombs.long_chain_pdf, "a chain of 100 filters"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_quickly_and_cheaply(tmp_path: Path, name: str) -> None:
    build, message = BOMBS[name]
    path = write(tmp_path / name, build())
    assert path.stat().st_size < 2 << 20
    for _ in range(3):  # the machine may be busy
        seconds, mebibytes, told = measure(path)
        assert told.startswith("DataError it: ") and message in told
        assert mebibytes <= 200
        if seconds <= 1:
            return
    pytest.fail(f"took {seconds:.2f} s, start of the child included")


@pytest.mark.parametrize("build", [bombs.canary_docx, bombs.canary_relation_docx], ids=["entity", "relation"])
def test_nothing_outside_the_file_is_read(tmp_path: Path, build) -> None:
    canary = write(tmp_path / "outside.txt", bombs.document_xml(bombs.paragraph("CANARY")))
    path = write(tmp_path / "a.docx", build(canary))
    assert "CANARY" not in measure(path)[2]


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a.html"])
def test_the_child_opens_nothing_by_what_the_system_sees(tmp_path: Path, name: str) -> None:
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    content = {"a.pdf": bombs.text_pdf("one", "two"), "a.docx": bombs.docx(bombs.document_xml(bombs.paragraph("one")))}
    path = write(tmp_path / name, content.get(name, b"<p>one"))
    log = tmp_path / "calls"
    calls = "trace=open,openat,openat2,socket,execve,fork,clone,prlimit64,setrlimit"
    words = ["strace", "-f", "-qq", "-o", str(log), "-e", calls, sys.executable, "-c", MEASURE, str(path)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"strace may not trace here: {done.stderr[-200:]}")
    assert "one" in json.loads(done.stdout)[2]
    lines = log.read_text().splitlines()
    (end,) = [n for n, line in enumerate(lines) if re.search(r"RLIMIT_NOFILE, \{rlim_cur=3,", line)]
    child = lines[end].split()[0]
    later = [line for line in lines[end + 1 :] if line.split()[0] == child and not re.search(r"limit|exited|killed|SIG", line)]
    assert later == []


def test_the_limits_hold_against_a_reader_that_misbehaves(tmp_path: Path) -> None:
    """What a reader might be brought to do, done by the child's own code in place of a reader."""
    attempts = {
        "open": "open(sys.executable)",
        "write": "import os; os.write(os.open('x', os.O_CREAT | os.O_WRONLY), b'x')",
        "socket": "import socket; socket.socket()",
        "process": "import subprocess, sys; subprocess.run([sys.executable, '-c', ''])",
    }
    for name, code in attempts.items():
        done = subprocess.run([sys.executable, "-c", MISBEHAVE.format(code=code)], capture_output=True, text=True)
        assert "Too many open files" in done.stderr, (name, done.stderr)
    done = subprocess.run([sys.executable, "-c", MISBEHAVE.format(code="bytearray(1 << 30)")], capture_output=True, text=True)
    assert "MemoryError" in done.stderr
    done = subprocess.run([sys.executable, "-c", MISBEHAVE.format(code="while True: pass")], capture_output=True, text=True)
    assert done.returncode == -24  # SIGXCPU


MISBEHAVE = """
import socket, subprocess, sys
from neuralforge import sandbox_child as child
child._SECONDS = 0
memory = child._Memory()
child._give_up()
memory.limit(100 << 20)
child._limit_time(0)
{code}
"""


def test_memory_is_held_where_the_system_does_not(tmp_path: Path) -> None:
    code = """
from neuralforge import sandbox_child as child
memory = child._Memory.__new__(child._Memory)
memory._pages, memory._most = -1, child._peak() + (20 << 20)
import threading, time
threading.Thread(target=memory.watch, daemon=True).start()
big = bytearray(100 << 20)
big[:] = b"x" * len(big)
time.sleep(5)
"""
    # started by a small process: the peak that Linux tells of a child is at first that of its parent
    small = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)"
    assert subprocess.run([sys.executable, "-c", small, code]).returncode == 9


def test_a_child_that_dies_is_told_and_the_next_file_is_read() -> None:
    with Sandbox() as children:
        assert children.read("html", b"<p>one", "a.html")[0].data == {"text": "one"}
        children._all[0].kill()
        assert children.read("html", b"<p>two", "b.html")[0].data == {"text": "two"}
        for child in children._all:
            child.fresh = True
            child.kill()
        with pytest.raises(DataError, match=r"c\.html: takes too much memory"):
            children.read("html", b"<p>three", "c.html")
        assert children.read("html", b"<p>four", "d.html")[0].data == {"text": "four"}


def test_closing_ends_children_at_work() -> None:
    children = Sandbox()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            children.read("html", b"<p>" * 3_000_000, "slow.html")
        except DataError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not children._all:
        pass
    children.close()
    thread.join(timeout=5)
    assert not thread.is_alive() and failures


def test_bad_files_among_good_ones_in_order(tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path / f"{i:02}.pdf", bombs.cyclic_pdf() if i % 3 == 0 else bombs.text_pdf(f"page of {i}"))
        write(tmp_path / f"{i:02}.html", f"<p>page {i}")
    data = Dataset.from_path(tmp_path)
    expected = [f"{i:02}.{kind}" for i in range(12) for kind in ("html", "pdf") if kind == "html" or i % 3]
    assert [row.source for row in data] == expected
    assert [source for source, _ in data.skipped] == ["00.pdf", "03.pdf", "06.pdf", "09.pdf"]


def test_every_foreign_kind_has_a_reader() -> None:
    from neuralforge import sandbox_child

    assert set(sandbox.KINDS.values()) | set(sandbox_child.TEXTS) == set(sandbox_child._READERS)
