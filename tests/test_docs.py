# SPDX-License-Identifier: Apache-2.0
"""What the documents say exists: linked files and headings, make targets, commands, Python names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("*.md", "docs/*.md", "tests/*.md", "examples/*.md", "benchmarks/*.md")
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for place in PLACES for path in ROOT.glob(place))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, *languages: str) -> str:
    return "\n".join(body for language, body in FENCE.findall(read(document)) if language in languages)


def anchors(text: str) -> set[str]:
    """The link targets that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", read(document))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), f"{document}: {link}"
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"{document}: {link}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_exist(document):
    text = read(document)
    code = "\n".join([blocks(document, "", "sh", "bash", "console"), *re.findall(r"`([^`\n]+)`", FENCE.sub("", text))])
    targets = set(re.search(r"^\.PHONY: (.+)$", read("Makefile"), re.MULTILINE)[1].split())
    named = {word for words in re.findall(r"\bmake((?: [a-z-]+)+)", code) for word in words.split()}
    assert named <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_exist(document):
    named = set(
        re.findall(r"^(?:\$ )?(?:\S*/)?neuralforge ([a-z]+)", blocks(document, "", "sh", "bash", "console"), re.MULTILINE)
    )
    for command in sorted(named):
        done = subprocess.run([sys.executable, "-m", "neuralforge", command, "--help"], capture_output=True, text=True)
        assert done.returncode == 0, f"{document}: neuralforge {command}: {done.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_names_exist(document):
    """Python examples parse, and each nf.name in them is public."""
    import neuralforge

    for node in ast.walk(ast.parse(blocks(document, "python"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nf":
            assert hasattr(neuralforge, node.attr), f"{document}: nf.{node.attr}"
