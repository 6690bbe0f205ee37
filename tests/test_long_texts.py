"""Long texts are read in parts: the tokens equal those of the whole, with only the needed time and memory."""

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers.models import Unigram

from bei.checkpoint import vocabulary
from bei.checkpoint.load import read
from bei.errors import Invalid, TooLarge, Untokenizable
from bei.tokenizer import Tokenizer, reading
from bei.tokenizer.places import as_sent
from bei.tokenizer.reading import Reader, joined_tokens
from bei.tokenizer.template import longest_first
from tests.support.small_models import small_model
from tests.support.tiny_models import random_model, save
from tests.support.tokenizer_kinds import KINDS, SENTENCES, kind
from tests.support.vocabularies import CASES, write

SEGMENTS = [
    *(" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\x00", "\x07", "\u200d"),
    *("a", "ab", "ba", "the ", "cat sat ", "mat", " mat,", "zq ", "#", "##", "-", "_", "'", "'s", "don't ", ".", " ."),
    *("1", "12345", "0", "9,", "\u0130", "\u03a3", "e\u0301", "\u0301", "\u0323\u0301", "\u0436", "\u00c9\u00c9"),
    *("\u65e5\u672c", "\u8a9e", "\u3002", "\uff0c", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467"),
    *("\U0001f1e9\U0001f1ea", "\U0001f1eb", "\u1100", "\u1161", "\ud55c", "\u11a8", "\u0915\u093e", "\u0915\u094d"),
    *("\uff9e", "\uff76", "\u0e33", "\u0e01", "\u2581", "\u0120", "<m>", "<r>", "<unk>", "[SEP]", *SENTENCES),
]


BUILT = ("ALBERT", "DeBERTa v2", "BigBird", "by its settings", "by its settings, no prefix")
"""Those whose rules no other kind has."""


def hostile(seed: int) -> str:
    """Some thousand characters: of everything, of one thing repeated, of a few things."""
    chance, parts = random.Random(seed), []
    for _ in range(chance.randint(2, 6)):
        among = chance.sample(SEGMENTS, chance.choice([1, 1, 3, len(SEGMENTS)]))
        parts.append("".join(chance.choice(among) for _ in range(chance.choice([1, 3, 10, 60, 1500])))[:3000])
    return "".join(parts)


@contextmanager
def small_parts() -> Iterator[None]:
    """Smaller than in production, so that a text of a few thousand characters is joined many times."""
    with pytest.MonkeyPatch.context() as patch:
        for name, bounds in {"WHOLE": (200, 400), "PART": (256, 512), "OVERLAP": (64, 256)}.items():
            patch.setattr(reading, name, bounds)
        yield


def library(name: str) -> Library:
    if name in KINDS:
        return kind(name)
    if name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            return Library.from_buffer(vocabulary.build(write(Path(folder), CASES[name])))
    found = Library.from_file(str(small_model(name) / "tokenizer.json"))
    found.no_truncation()
    found.no_padding()
    return found


def same(library: Library, found: reading.Tokens, whole: reading.Tokens) -> bool:
    """For Unigram, two equally good readings differ by floating point, depending on the text before."""
    if isinstance(library.model, Unigram) and len(found) == len(whole):
        return sorted(found.ids.tolist()) == sorted(whole.ids.tolist())
    columns = ("ids", "starts", "ends")
    return all(np.array_equal(getattr(found, name), getattr(whole, name)) for name in columns)


@pytest.mark.parametrize("name", [*KINDS, "pii", "smollm2", *BUILT])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 1 << 32), st.integers(1, 300), st.booleans())
def test_the_tokens_are_those_of_the_whole(name, seed, most, lowercase):
    text, kind = hostile(seed), library(name)
    with small_parts():
        reader = Reader(kind, lowercase=lowercase, vocab_size=1 << 20)
        whole = reader._part(text, 0, len(text)).tokens
        (first,), (last,) = (reader.ids([text], most, direction) for direction in ("right", "left"))
        every = joined_tokens(list(reader.tokens(text)))
    assert first[:most].tolist() == whole.ids[:most].tolist()
    assert same(kind, every, whole)
    if not isinstance(kind.model, Unigram):
        assert last[-most:].tolist() == whole.ids[-most:].tolist()


@pytest.mark.parametrize("name", [*KINDS, "pii", "smollm2", *BUILT])
def test_ordinary_long_texts(name):
    """At the sizes of production: prose, code, tables and letters without whitespace."""
    chance, kind = random.Random(0), library(name)
    prose = " ".join(chance.choice(SENTENCES) for _ in range(700))
    table = "\n".join(f"{chance.random():.3f},{chance.randrange(99999)}" for _ in range(4000))
    reader = Reader(kind, lowercase=False, vocab_size=1 << 20)
    for text in (prose, table, prose.replace(" ", "").replace("\n", "")):
        whole = reader._part(text, 0, len(text)).tokens
        assert reader.ids([text], 500)[0][:500].tolist() == whole.ids[:500].tolist()
        assert reader.ids([text], 500, "left")[0][-500:].tolist() == whole.ids[-500:].tolist()
        assert same(kind, joined_tokens(list(reader.tokens(text))), whole)


def of_model(folder: Path, **options) -> Tokenizer:
    return Tokenizer(read(save(folder, random_model("bert", **options)), "m"))


def test_a_long_text_is_not_read_whole(tmp_path, monkeypatch):
    """For 64 tokens some thousand characters are read, for each task."""
    tokenizer, read = of_model(tmp_path), []
    monkeypatch.setattr(tokenizer._reader, "_read", count(tokenizer._reader._read, read))
    long = "the cat sat. " * 1_000_000
    short = tokenizer.encode(["the cat sat. " * 50], truncate=True)[0].ids.tolist()
    for item in (long, (long, "a"), ("a", long), (long, long)):
        for direction in ("right", "left"):
            (encoding,) = tokenizer.encode([item], truncate=True, direction=direction)
            assert len(encoding.ids) == 64
            assert encoding.characters == sum(map(len, item)) if isinstance(item, tuple) else len(item)
    assert tokenizer.encode([long], truncate=True)[0].ids.tolist() == short
    with pytest.raises(Invalid, match="`instruction` leaves no room for a text in 64 tokens"):
        tokenizer.encode(["a"], truncate=True, prompt=long)
    assert len(tokenizer.encode(["a"], truncate=True, prompt=long, direction="left")[0].ids) == 64
    assert len(tokenizer.encode([("a", long)], truncate=True, max_second_tokens=9)[0].ids) == 13
    for refused in (long, ("a", long)):
        with pytest.raises(Invalid, match=r"at most 64 tokens\. Given: more than 64 \(input 0\)"):
            tokenizer.encode([refused], truncate=False)
    assert sum(read) < 2_000_000 and max(read) < 100_000


def count(read, lengths):
    def counted(texts, **options):
        lengths.extend(map(len, texts))
        return read(texts, **options)

    return counted


def test_many_texts_are_not_read_at_once(tmp_path, monkeypatch):
    tokenizer, read = of_model(tmp_path), []

    def counted(texts, **options):
        read.append(sum(map(len, texts)))
        return counted.read(texts, **options)

    counted.read = tokenizer._reader._read
    monkeypatch.setattr(tokenizer._reader, "_read", counted)
    tokenizer.encode([f"{i} " * 8_000 for i in range(1000)][:100], truncate=True)
    assert max(read) <= 1 << 20 and len(read) > 1


def test_what_has_no_place_to_part_is_refused(tmp_path):
    tokenizer = of_model(tmp_path)
    for text in ("\0" * 3_000_000, "e" + "\u0301\u0323" * 500_000, "".join(map(str, range(500_000)))):
        with pytest.raises(Untokenizable, match="characters have no place"):
            tokenizer.encode([text], truncate=True)
    one = [tokenizer.encode([c * 3_000_000], truncate=True)[0].ids.tolist() for c in "a "]
    assert one == [[2, 1, 3], [2, 3]], "one unknown word, and none"


@pytest.mark.parametrize(("first", "second"), [(700, 500), (500, 700), (500, 500), (3, 500), (500, 3)])
def test_which_text_of_a_pair_is_longer_is_known(tmp_path, first, second):
    """Of an odd number of tokens the longer text keeps one more, as in the library; both are cut long before."""
    tokenizer = of_model(tmp_path)
    texts = "the cat sat. " * first * 25, "a dog ran. " * second * 25
    (encoding,) = tokenizer.encode([texts], truncate=True)
    expected = longest_first(*(4 * 25 * n for n in (first, second)), 61)
    where = encoding.ids.tolist().index(3)
    assert (where - 1, len(encoding.ids) - where - 2) == expected


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 200), st.integers(0, 200), st.integers(3, 60))
def test_lengths_that_are_counted_no_further_cut_alike(first, second, room):
    most = room + 1
    if min(first, second) < most:
        assert longest_first(min(first, most), min(second, most), room) == longest_first(first, second, room)


def test_a_long_text_in_windows_and_as_tokens(tmp_path):
    model = random_model("bert", 0, "ForTokenClassification", id2label={0: "O", 1: "B-PER"})
    tokenizer = Tokenizer(read(save(tmp_path, model, pooling=None), "m"))
    with pytest.raises(Invalid, match=r"more than 64 \(input 0\)"):
        tokenizer.windows(["the cat sat. " * 1_000_000], truncate=False)
    told = []

    def check(tokens):
        told.append(tokens)
        if tokens > 100_000:
            raise TooLarge("enough")

    with pytest.raises(TooLarge):
        tokenizer.windows(["a cat. ", "the cat sat. " * 1_000_000], truncate=True, check=check)
    assert told == sorted(told) and told[0] == 3 and told[-1] < 200_000
    text = "The old cat, na\u00efve \U0001f600 dog. " * 5_000
    windows = tokenizer.windows([text], truncate=True)
    (whole,) = tokenizer._library.encode_batch([text], add_special_tokens=False)
    own = windows.inner & ~windows.special
    assert windows.ids[own].tolist() == whole.ids
    assert list(zip(windows.starts[own].tolist(), windows.ends[own].tolist(), strict=True)) == whole.offsets
    (tokens,) = tokenizer.tokenize([text], add_special_tokens=False)
    assert [token.id for token in tokens] == whole.ids
    content = text.encode()
    assert all(content[token.start : token.stop].decode() == token.text for token in tokens)


def test_one_letter_grows_when_it_is_lowered():
    """The map from places in the lowered text shows that there is no other such letter."""
    letters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    assert [letter for letter in letters if len(letter.lower()) != 1] == ["\u0130"]
    places = np.array([[0, 1, 3, 4], [1, 3, 4, 5]])
    assert as_sent("a\u0130bc", "a\u0130bc".lower(), places).tolist() == [[0, 1, 2, 3], [1, 2, 3, 4]]
