# SPDX-License-Identifier: Apache-2.0
"""Fine-tune the small base model inside the package on a folder of documents, and show what changed."""

from __future__ import annotations

import re

_END = re.compile(r"\s*\n\s*\n")


def passages(text: str, size: int) -> list[str]:
    """A text in pieces of at most `size` characters that begin and end with paragraphs where these are short enough."""
    pieces: list[str] = []
    for paragraph in _END.split(text.strip()):
        if pieces and len(pieces[-1]) + len(paragraph) + 2 <= size:
            pieces[-1] += "\n\n" + paragraph
        else:
            # at the last white space that fits, inside of a word only where there is none
            pieces += re.findall(rf"(?s)\S.{{0,{size - 1}}}(?!\S)|\S{{{size}}}", paragraph)
    return pieces
