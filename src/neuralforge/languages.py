# SPDX-License-Identifier: Apache-2.0
"""The language of a text, roughly: by its script, and for Latin and Cyrillic letters by the most frequent small words."""

from __future__ import annotations

import re
from collections import Counter

_SAMPLE = 20_000  # characters
_FEWEST = 5  # small words that a text must have to be named
_SCRIPTS = (
    ("Japanese", "\u3040-\u30ff"),
    ("Korean", "\uac00-\ud7af\u1100-\u11ff"),
    ("Chinese", "\u3400-\u9fff"),
    ("Arabic", "\u0600-\u06ff"),
    ("Hebrew", "\u0590-\u05ff"),
    ("Greek", "\u0370-\u03ff"),
    ("Hindi", "\u0900-\u097f"),
    ("Bengali", "\u0980-\u09ff"),
    ("Tamil", "\u0b80-\u0bff"),
    ("Thai", "\u0e00-\u0e7f"),
    ("Georgian", "\u10a0-\u10ff"),
    ("Armenian", "\u0530-\u058f"),
)
# words that are frequent in a language and rare or absent in the others here
_WORDS = {
    "English": "the and of to is that was with for are this have from not be it which by on his they at",
    "German": "der die und das ist nicht ein eine mit von den dem des auf für sich auch werden zu im wird sind",
    "French": "le les des et est une dans que qui pour pas sur du au avec sont il nous être cette par ou",
    "Spanish": "el los las y es una que en por con para del se su no como más al lo pero sus este",
    "Portuguese": "o os as e é uma que em não com para do da dos das se por no na ao mais como",
    "Italian": "il gli di che è una per con non del della dei nel si sono alla le anche come più da",
    "Dutch": "de het een en van is dat niet met op voor zijn te aan er om ook als bij wordt door naar",
    "Swedish": "och att det som är en på för med av den till inte har ett om var jag sig från",
    "Danish": "og at det som er en på for med af den til ikke har et om der var de fra",
    "Polish": "i w na nie się z do jest że to jak o po co przez od za dla tym przy oraz",
    "Czech": "a se na je v že s z do to o jako za pro by ale si podle nebo jsou byl který",
    "Finnish": "ja on ei että se oli hän mutta kun niin joka ovat tai kuin myös sen ole mukaan",
    "Turkish": "ve bir bu da de için ile olarak çok gibi daha ne kadar sonra olan var değil her",
    "Indonesian": "yang dan di itu dengan untuk tidak ini dari dalam akan pada juga ke karena ada mereka oleh",
    "Russian": "и в не на что с по как это к из но он за от для так его то был все",
    "Ukrainian": "і в не на що з та як це до від за але він для його є був також або",
}
# single letters stand in lists and in bad scans of any language
_SETS = {name: frozenset(word for word in words.split() if len(word) > 1) for name, words in _WORDS.items()}


def language_of(text: str) -> str | None:
    """The English name of the language of a text; None when it is too short or has no known signs."""
    sample = text[:_SAMPLE]
    letters = sum(c.isalpha() for c in sample)
    counts = {name: len(re.findall(f"[{span}]", sample)) for name, span in _SCRIPTS}
    name, most = max(counts.items(), key=lambda item: item[1])
    if letters and most * 2 > letters:
        # Chinese signs stand in Japanese too, but kana only there
        return "Japanese" if name == "Chinese" and counts["Japanese"] * 20 > most else name
    words = Counter(re.findall(r"[^\W\d_]+", sample.lower()))
    scores = {name: sum(words[word] for word in known) for name, known in _SETS.items()}
    best, score = max(scores.items(), key=lambda item: item[1])
    return best if score >= _FEWEST and score * 20 >= sum(words.values()) else None
