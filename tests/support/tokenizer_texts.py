"""Texts on which tokenizers differ: many scripts, controls, whitespace, special tokens, long words, marks."""

import random
from functools import cache

_PLAIN = (
    "the cat sat on a mat and then it ran under old tree s t don't I'LL they've 1234567890 3.14 1,000,000 2024 hello "
    "Hello WORLD iPhone naïve café Ünïcödé Straße İstanbul ǅ ﬁne ½ ① ㌀ Å Å ñ ñ fließt Fluß œuvre Łódź coöperate "
    "привет МИР ёлка Ёж й ї ΣΑΣ ὈΔΥΣΣΕΎΣ ελληνικά שלום עִבְרִית "
    "مرحبا العَرَبِيَّة لا ﷺ हिन्दी क्षत्रिय தமிழ் বাংলা ไทยภาษา กำ ລາວ မြန်မာ "
    "ខ្មែរ 한국어 각 조합 ｶﾀｶﾅ カタカナ ひらがな が が 日本語 中文没有空格 㐀 𠀀 豈 臺灣 "
    "\uff26\uff35\uff2c\uff2c\uff11\uff12 ა ᏣᎳᎩ ᚠᚢ Ⅷ ² ™ ℃ "
    "``quoted'' «так» “smart” \u2013 — … • ▁ ▁▁a Ġ Ġthe ##ing <0x0A> <0xE2> x86_64 foo_bar camelCase "
    "https://a.b/c?d=e#f a@b.co #tag @user $9.99 C++ C# f(x)=x**2; {'k':[1,2]} \\n \\\\ //-- !!! ??? (a)(b) e͓̞̍ z̷̢̛ Z͑ͫ̓ q̣̇ ḍ̇"
)
_WORDS = _PLAIN.split()
_EMOJI = ["😀", "👨‍👩‍👧", "🇩🇪🇫🇷", "👍🏽", "❤️", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🫠", "☺", "🧑🏿‍🚀"]
_CONTROLS = ["\0", "\x01", "\x07", "\x1b", "\x1c", "\x7f", "\x85", "\xad", "\u200b", "\u200d", "\u200e", "\u2060"]
_CONTROLS += ["\ufeff", "\ufffd", "\ufffe", "\u2028", "\u2029", "\U000e0001", "\ue000", "\U0010ffff"]
_SPACES = [" ", "  ", "     ", "\t", "\n", "\n\n", "\r\n", "\r", "\v", "\f", "\xa0", "\u2009", "\u202f", "\u3000"]
_SPACES += [" \n ", "\t\t "]
_TOKENS = (
    "[CLS] [SEP] [MASK] [PAD] [UNK] <s> </s> <unk> <pad> <mask> <cls> <sep> <eop> <eod> <bos> <eos> <|endoftext|> "
    "<|im_start|> <|padding|> <extra_id_0> <extra_id_99> <own> <start_of_turn> <|reserved_token_301|> <s>NOTUSED "
    "<image> [unused0] NEWTOKEN"
)
_SPECIALS = _TOKENS.split()
_MARKS = [
    chr(code) for code in (*range(0x300, 0x330), 0x345, 0x591, 0x64B, 0x93C, 0xE31, 0x1AB0, 0x20D0, 0x3099, 0xFE20)
]


def _any_character(chance: random.Random) -> str:
    code = chance.choice((chance.randrange(0x250), chance.randrange(0x3000), chance.randrange(0x110000)))
    return chr(code) if not 0xD800 <= code < 0xE000 else "x"


def _special(chance: random.Random) -> str:
    token = chance.choice(_SPECIALS)
    return chance.choice((token, token, token, token.lower(), token.upper(), token[:-1], token * 2))


def _part(chance: random.Random) -> str:
    match chance.randrange(12):
        case 0 | 1 | 2 | 3 | 4:
            return " ".join(chance.choices(_WORDS, k=chance.randrange(1, 6)))
        case 5:
            return chance.choice(_EMOJI)
        case 6:
            return chance.choice(_CONTROLS)
        case 7:
            return "".join(chance.choices(_SPACES, k=chance.randrange(1, 4)))
        case 8:
            return _special(chance)
        case 9:
            return chance.choice(_WORDS) + "".join(chance.choices(_MARKS, k=chance.choice((1, 1, 2, 9))))
        case 10:
            return "".join(_any_character(chance) for _ in range(chance.randrange(1, 5)))
        case _:
            word = chance.choice(_WORDS)
            return chance.choice((word * chance.randrange(2, 60), word[0] * chance.randrange(2, 150), word.upper()))


@cache
def texts(count: int, seed: int = 0) -> tuple[str, ...]:
    """The first ones are plain, empty, or of one part; the others join several, with and without spaces."""
    chance = random.Random(seed)
    found = ["", " ", "The cat sat on the mat.", *_SPECIALS, *_CONTROLS, *_SPACES, *_EMOJI, " a ", "\na", "a\n", "▁a"]
    while len(found) < count:
        joint = chance.choice(("", " ", " ", chance.choice(_SPACES)))
        found.append(joint.join(_part(chance) for _ in range(chance.choice((1, 2, 3, 5, 8)))))
    return tuple(found[:count])


@cache
def corpus() -> tuple[str, ...]:
    """Texts to train a small vocabulary on."""
    return tuple(" ".join(random.Random(seed).choices(_WORDS, k=40)) for seed in range(40))
