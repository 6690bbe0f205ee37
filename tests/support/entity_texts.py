"""Texts for taggers: words and gaps of every kind."""

import random

from tests.support.tiny_models import WORDS

KINDS = [
    *WORDS,
    *("Barack", "O'Neill", "naïve", "co-op", "e\u0301", "İstanbul", "straße", "x1y2", "[SEP]", "[UNK]", "1,000.5"),
    *("日本語", "東京に", "한국", "עברית", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u200b", "ﬁ"),
]
GAPS = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "", ", ", ". ", "! "]


def texts(count: int, seed: int = 0) -> list[str]:
    """Words and gaps of every kind; some begin with spaces, some are of 5,000 characters."""
    rng = random.Random(seed)

    def one(index: int) -> str:
        if index % 50 == 0:
            return "".join(rng.choice(KINDS) + rng.choice(GAPS) for _ in range(1000))[:5000]
        body = "".join(rng.choice(KINDS) + rng.choice(GAPS) for _ in range(rng.randint(1, 12)))
        return rng.choice(["", " ", "   ", "\r\n"]) + body

    return [one(index) for index in range(count)]
