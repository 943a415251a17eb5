# SPDX-License-Identifier: Apache-2.0
"""The public names: each loads, and editors are told the same names as the interpreter."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import neuralforge as nf


@pytest.mark.parametrize("name", nf.__all__)
def test_public_names_load_and_are_documented(name: str) -> None:
    value = getattr(nf, name)
    assert value.__doc__ and value.__name__ == name


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(nf.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {(node.module, a.name) for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert {(home, name) for name, home in nf._HOMES.items()} == told


def test_no_public_name_is_that_of_a_module() -> None:
    """Importing a module of that name would put the module in the name's place."""
    modules = {path.stem for path in Path(nf.__file__).parent.iterdir()}
    assert not modules & set(nf.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = nf.nothing
