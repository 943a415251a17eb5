# SPDX-License-Identifier: Apache-2.0
"""The layers of docs/architecture.md hold: its table is read here, and every import and #include is compared with it.

Imports inside functions count as well; only `__version__` may be read from anywhere, and imports by a computed name (the
folders that find their own files) are not seen.
"""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"
# the package's own face and `python -m neuralforge` stand above all rows
ABOVE = ("__init__", "__main__")
EXTENSIONS = ("_cpu", "_ane")
# what the sentence below the table says of the faces of a run: who listens is told what happens from here on upwards
LISTENING_ROW = 6


def read_table(text: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """{module or folder pattern: row} and the faces of a run, as the document has them."""
    rows = {}
    for number, cells in re.findall(r"^\| (\d+) \| (.+) \|$", text, re.MULTILINE):
        rows |= {name.replace("/", "."): int(number) for name in re.findall(r"`([\w/*]+)`", cells)}
    faces = re.search(r"^(.+) \(the faces of a run\)", text, re.MULTILINE)
    assert faces
    return rows, tuple(re.findall(r"`(\w+)`", faces[1]))


def row_of(module: str, rows: dict[str, int]) -> int | None:
    """The row of `formats.hf`, `formats` (its __init__) or `trainer`; None when the document does not have it."""
    found = [row for pattern, row in rows.items() if fnmatchcase(module, pattern) or pattern == f"{module}.*"]
    return found[0] if found else None


def modules_of(source: Path) -> dict[str, Path]:
    names = {p: ".".join(p.relative_to(source).with_suffix("").parts) for p in sorted(source.rglob("*.py"))}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imports_of(module: str, path: Path, known: set[str]) -> set[str]:
    """The modules of the package that a file imports anywhere, by their names inside the package."""
    package = module.split(".") if path.name == "__init__.py" and module != "__init__" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] or "__init__" for a in node.names if a.name.split(".")[0] == "neuralforge"}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1] + (node.module or "").split(".") * bool(node.module)
            elif (node.module or "").split(".")[0] == "neuralforge":
                base = node.module.split(".")[1:]
            else:
                continue
            parts = [".".join([*base, a.name]) for a in node.names if a.name != "__version__"]
            found |= {p if p in known or p in EXTENSIONS else ".".join(base) or "__init__" for p in parts}
    return found - {module}


def problems(source: Path, document: str) -> list[str]:
    """Every import below `source` that the table does not allow, in words."""
    rows, faces = read_table(document)
    modules = modules_of(source)
    graph = {name: imports_of(name, path, set(modules)) for name, path in modules.items()}
    out = []
    for name, imported in graph.items():
        row = row_of(name, rows)
        if row is None and name not in (*ABOVE, *faces):
            out.append(f"{name} has no row in docs/architecture.md")
            continue
        for other in sorted(imported):
            below = row_of(other, rows)
            if other in EXTENSIONS:
                bad = not name.startswith("_core")
            elif name in faces:
                bad = other not in faces and below != 0
            elif name in ABOVE or other == "__init__":
                bad = other in ABOVE and name != "__main__"
            elif other in faces:
                bad = row is not None and row < LISTENING_ROW
            else:
                bad = below is None or (row is not None and below > row)
            if bad:
                out.append(f"{name} (row {row}) imports {other} (row {below})")
    try:
        TopologicalSorter({name: imported for name, imported in graph.items() if name not in ABOVE}).prepare()
    except CycleError as error:
        out.append(f"imports go round: {' -> '.join(error.args[1])}")
    return out


def include_problems(csrc: Path) -> list[str]:
    """Every #include of C sources against the layers: core stands alone, the others on it, decoder on kernels."""
    headers = {p.name: p.parent.name for p in csrc.rglob("*.h")}
    out = []
    for path in sorted(p for p in csrc.rglob("*") if p.suffix in (".c", ".h", ".m")):
        module = path.parent.name
        usable = {module, "core"} | ({"kernels"} if module == "decoder" else set())
        for name in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(encoding="utf-8"), re.MULTILINE):
            if Path(name).name == "Python.h" or headers.get(Path(name).name, module) not in usable:
                out.append(f"{path.relative_to(csrc)} includes {name}")
    return out


def test_the_package_keeps_the_table():
    assert problems(ROOT / "src" / "neuralforge", DOCUMENT.read_text(encoding="utf-8")) == []


def test_every_row_of_the_table_names_something_real_or_to_come():
    rows, faces = read_table(DOCUMENT.read_text(encoding="utf-8"))
    assert sorted(set(rows.values())) == list(range(len(set(rows.values()))))
    assert rows["_core"] == 1 and rows["formats.*"] > rows["models.*"] > rows["_core"] > rows["events"] == 0
    assert {"report", "progress"} <= set(faces) and not set(faces) & set(rows)


def test_c_sources_keep_their_layers():
    csrc = ROOT / "csrc"
    assert list(csrc.rglob("*.c")), "no C source found"
    assert include_problems(csrc) == []


TABLE = """
| 8 | `cli` |
| 6 | `trainer` |
| 4 | `backends/*` |
| 2 | `weights`, `files` |
| 1 | `_core` |
| 0 | `events` |

`report` and `progress` (the faces of a run) import nothing else.
"""


@pytest.mark.parametrize(
    "name, text, problem",
    [
        ("weights", "from .events import Step\nfrom . import files, _core", None),
        ("weights", "def f():\n    from .trainer import x", "weights (row 2) imports trainer (row 6)"),
        ("weights", "from . import trainer", "weights (row 2) imports trainer (row 6)"),
        ("weights", "import neuralforge.trainer", "weights (row 2) imports trainer (row 6)"),
        ("weights", "from neuralforge import trainer", "weights (row 2) imports trainer (row 6)"),
        ("weights", "from neuralforge.backends.cpu import x", "weights (row 2) imports backends.cpu (row 4)"),
        ("weights", "import neuralforge", "weights (row 2) imports __init__ (row None)"),
        ("weights", "from .progress import x", "weights (row 2) imports progress (row None)"),
        ("weights", "import neuralforge_other, os.path", None),
        ("backends.cpu", "from ..weights import x\nfrom .. import _core\nfrom . import choose", None),
        ("backends.cpu", "from ..trainer import x", "backends.cpu (row 4) imports trainer (row 6)"),
        ("backends.__init__", "from ..trainer import x", "backends (row 4) imports trainer (row 6)"),
        ("backends.cpu", "from .._cpu import lib", "backends.cpu (row 4) imports _cpu (row None)"),
        ("backends.cpu", "def f():\n    from .. import _ane", "backends.cpu (row 4) imports _ane (row None)"),
        ("_core", "from ._cpu import ffi, lib\nfrom . import _cpu", None),
        ("_core", "def f():\n    from . import _ane", None),
        ("report", "from .events import Step", None),
        ("report", "from . import weights", "report (row None) imports weights (row 2)"),
        ("report", "def f():\n    import neuralforge._core", "report (row None) imports _core (row 1)"),
        ("progress", "from .report import x", None),
        ("trainer", "from .progress import x", None),
        ("__init__", "from .cli import main", None),
        ("__main__", "from . import cli", None),
        ("extra", "", "extra has no row in docs/architecture.md"),
    ],
)
def test_a_wrong_import_is_found(tmp_path, name, text, problem):
    (tmp_path / "backends").mkdir()
    for module in ("__init__", "cli", "trainer", "weights", "files", "events", "_core", "report", "progress", "backends.cpu"):
        (tmp_path / f"{module.replace('.', '/')}.py").write_text("")
    (tmp_path / "backends" / "__init__.py").write_text("def choose(): ...")
    (tmp_path / f"{name.replace('.', '/')}.py").write_text(text)
    assert problems(tmp_path, TABLE) == ([problem] if problem else [])


def test_a_circle_in_one_row_is_found(tmp_path):
    (tmp_path / "weights.py").write_text("def f():\n    from . import files")
    (tmp_path / "files.py").write_text("from .weights import f")
    (found,) = problems(tmp_path, TABLE)
    assert found.startswith("imports go round: ") and "weights" in found and "files" in found


@pytest.mark.parametrize(
    "place, include, bad",
    [
        ("decoder/a.c", '"kernels/k.h"', False),
        ("decoder/a.c", '"../core/c.h"', False),
        ("decoder/a.c", "<Python.h>", True),
        ("kernels/a.inc.h", '"../core/c.h"', False),
        ("kernels/a.inc.h", '"../decoder/d.h"', True),
        ("core/a.h", '"d.h"', True),
        ("core/a.h", '"../kernels/k.h"', True),
        ("core/a.c", "<stdint.h>", False),
        ("tokenizer/a.c", '"../core/c.h"', False),
        ("tokenizer/a.c", '"../kernels/k.h"', True),
        ("ane_bridge/a.m", '"../core/c.h"', False),
        ("ane_bridge/a.m", '"../kernels/k.h"', True),
    ],
)
def test_a_wrong_include_is_found(tmp_path, place, include, bad):
    for folder in ("core", "kernels", "decoder", "tokenizer", "ane_bridge"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder[0]}.h").write_text("")
    (tmp_path / place).write_text(f"int x;\n  # include {include}\n")
    assert include_problems(tmp_path) == ([f"{place} includes {include[1:-1]}"] if bad else [])
