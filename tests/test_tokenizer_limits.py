"""Unknown tokenizers: the characters that they may make of a text are bounded before one is read."""

import base64
import json
import random
import resource
import struct
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers.normalizers import Lowercase, Precompiled

from bei import processes
from bei.checkpoint.load import read
from bei.checkpoint.vocabulary import sentencepiece
from bei.errors import SetupError
from bei.tokenizer import Tokenizer, charsmap, limits, trial
from bei.tokenizer.reading import Reader
from tests.support.small_models import small_model
from tests.support.tiny_models import random_model, save
from tests.support.tokenizer_kinds import KINDS, kind


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"), random_model("bert"))


@pytest.fixture
def open_with(folder):
    """A tokenizer with some parts of tokenizer.json replaced."""
    file = folder / "tokenizer.json"
    before = file.read_bytes()

    def opened(**parts):
        file.write_text(json.dumps(json.loads(before) | parts))
        return Tokenizer(read(folder, "m"))

    yield opened
    file.write_bytes(before)


def sequence(name, parts):
    return {"type": "Sequence", name: parts}


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def template(ids=1, uses=1, texts=1):
    special = {"id": "[CLS]", "ids": [2] * ids, "tokens": ["[CLS]"] * ids}
    pieces = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}] * uses
    a, b = ([{"Sequence": {"id": name, "type_id": 0}}] for name in "AB")
    pair = [*pieces, *a * texts, *b * texts]
    return {
        "type": "TemplateProcessing",
        "single": [*pieces, *a * texts],
        "pair": pair,
        "special_tokens": {"[CLS]": special},
    }


def added_tokens(count):
    flags = dict.fromkeys(("special", "normalized", "single_word", "lstrip", "rstrip"), False)
    return [{"id": 1000 + i, "content": f"<{i}>", **flags} for i in range(count)]


CHARSMAP = (0).to_bytes(4, "little") + b"x" * 5000 + b"\0"
PREPEND, BYTES = (
    {"type": "Prepend", "prepend": "x" * 20},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
)
HOSTILE = {
    "a letter to ten, nine times": {"normalizer": sequence("normalizers", [replace({"String": "q"}, "q" * 10)] * 9)},
    "by an expression": {"normalizer": sequence("normalizers", [replace({"Regex": "q"}, "q" * 10)] * 9)},
    "between all letters": {"normalizer": sequence("normalizers", [replace({"Regex": ""}, "q")] * 9)},
    "one long text": {"normalizer": replace({"String": "q"}, "q" * 1_000_000)},
    "prefixes": {"normalizer": sequence("normalizers", [PREPEND] * 3)},
    "normal forms": {"normalizer": sequence("normalizers", [{"type": "NFKD"}, {"type": "Lowercase"}] * 3)},
    "sentencepiece's table": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(CHARSMAP).decode()}
    },
    "bytes of bytes": {"pre_tokenizer": sequence("pretokenizers", [BYTES] * 9)},
    "both sides": {
        "normalizer": replace({"String": "q"}, "q" * 20),
        "pre_tokenizer": sequence("pretokenizers", [BYTES] * 3),
    },
    "nested": {
        "normalizer": sequence("normalizers", [sequence("normalizers", [replace({"String": "q"}, "q" * 10)] * 5)])
    },
    "a template of many ids, many times": {"post_processor": template(100_000, 1_000)},
    "a text, many times": {"post_processor": template(texts=1_000)},
    "a decoder": {"decoder": sequence("decoders", [replace({"String": "a"}, "a" * 100)] * 5)},
    "a token": {"added_tokens": [{**added_tokens(1)[0], "content": "x" * 2000}]},
    "added tokens": {"added_tokens": added_tokens(100_001)},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_grows_is_refused_before_a_text_is_read(open_with, name):
    started = time.process_time()
    with pytest.raises(SetupError, match=r"tokenizer\.json (may make|puts|has) ") as caught:
        open_with(**HOSTILE[name])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert time.process_time() - started < 20


@pytest.mark.parametrize("name", [*KINDS, "pii", "smollm2"])
def test_known_kinds_are_far_from_the_bound(name):
    """They make hardly more characters of an ASCII text, so that many are read at once."""
    library = kind(name) if name in KINDS else Library.from_file(str(small_model(name) / "tokenizer.json"))
    ascii, any_other = limits.check(library)
    assert ascii <= 4 and any_other <= limits.GROWTH // 2
    assert limits.is_plain(library.to_str().encode())


def table(key, text):
    """A sentencepiece table of one key of at most three bytes."""
    units, at = [0] * 1024, 0
    for i, byte in enumerate(key.encode(), 1):
        units[at] |= (at ^ 256 * i) << 10
        at = 256 * i ^ byte
        units[at] = byte
    units[at] |= 1 << 8 | (at ^ 1023) << 10
    units[1023] = 1 << 31
    return struct.pack("<I1024I", 4096, *units) + text.encode() + b"\0"


def test_a_table_after_nfkd_counts_for_what_nfkd_leaves():
    """ALBERT's and XLNet's rules: decomposed text, without accents, in lowercase, and then the table."""
    for key, growth in (("a", 60), ("\ufdfa", 1), ("\u1e9e", 60)):
        made = table(key, "x" * 60)
        assert Precompiled(made).normalize_str(key) == "x" * 60
        assert charsmap.of_decomposed(made) == growth and charsmap.longest(made) == 60
    content = (Path(__file__).parent / "data" / "sentencepiece" / "unigram.model").read_bytes()
    trained = sentencepiece.read(content, "unigram.model").charsmap
    assert charsmap.longest(trained) == 18 and charsmap.of_decomposed(trained) == 1


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"\xff" * 4000, bytes(4000), (4000).to_bytes(4, "little") + b"\x41\x01\0\0" * 1000]
)
def test_a_damaged_table_is_bounded_by_its_longest_text(content):
    assert charsmap.of_decomposed(content) <= charsmap.longest(content)


def test_no_decomposed_character_has_a_longer_lowercase():
    lowercase = Lowercase()
    decomposed = {char for code in range(0x110000) for char in unicodedata.normalize("NFKD", chr(code))}
    for char in decomposed - set(map(chr, range(0xD800, 0xE000))):
        lower = lowercase.normalize_str(char)
        assert len(lower) == 1 and unicodedata.normalize("NFKD", lower) == lower


def test_what_may_grow_is_read_less_at_once(open_with):
    grows = open_with(normalizer=replace({"String": "q"}, "q" * 64))._reader
    reader = Reader(kind("BERT"), lowercase=False, vocab_size=1000)
    assert grows._most("a") * 64 <= 1 << 21 and reader._most("a") == 1 << 20


def with_pattern(pattern):
    return {"normalizer": replace({"Regex": pattern}, "a")}


def test_a_file_unlike_others_is_first_read_by_another_process(open_with, monkeypatch):
    tried = []
    monkeypatch.setattr(trial, "try_first", tried.append)
    open_with()
    open_with(**with_pattern(r"\\s{2,}"))
    assert not tried
    escaped = {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": False}}
    monkeypatch.setattr(json, "dumps", lambda value, dumps=json.dumps: dumps(value).replace("Regex", "\\u0052egex"))
    open_with(**escaped)
    monkeypatch.undo()
    monkeypatch.setattr(trial, "try_first", tried.append)
    with pytest.raises(SetupError, match="a token of 5000 characters"):
        open_with(added_tokens=[{**added_tokens(1)[0], "content": "x" * 5000}])
    for unlike in ("a" * 2000, "((a{20}){20}){20}"):
        open_with(**with_pattern(unlike))
    monkeypatch.setattr(limits, "_PLAIN_TEXT", 100)
    open_with()
    assert len(tried) == 5


LETTERS = bytes(b"abcdefghij"[byte % 10] for byte in range(256))


def pieces(count, length):
    rng = random.Random(1)
    texts = [rng.randbytes(length).translate(LETTERS).decode() for _ in range(count)]
    return {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], *([text, -1.0] for text in texts)]}


@pytest.mark.parametrize(("count", "length"), [(5, 1_000_000), (150_000, 100)], ids=["deep", "wide"])
def test_a_vocabulary_that_takes_a_stack_or_gigabytes_is_a_line(open_with, count, length):
    """A piece of a million characters ended the server by SIGSEGV; 15 MB of pieces take 5 GB in the library."""
    with pytest.raises(SetupError, match=r"cannot be read: .*(stack|memory|a token of)"):
        open_with(model=pieces(count, length))


def test_the_trial_keeps_a_limit_that_is_there(open_with):
    """The first reader's own limit is not higher; where it is, the system refuses it."""
    done = subprocess.run(
        [sys.executable, "-c", "from bei import processes; processes.bound_memory(1 << 40); print('bound')"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33)),
        env=processes.environment(),
        capture_output=True,
        text=True,
    )
    assert done.stdout == "bound\n", done.stderr


def test_that_process_says_what_is_wrong(open_with, monkeypatch):
    assert open_with(**with_pattern("q" * 2000)).encode(["the cat"], truncate=True)
    with pytest.raises(SetupError, match=r"tokenizer\.json cannot be read: .*parenthes"):
        open_with(**with_pattern("(" * 2000))
    monkeypatch.setattr(trial, "MEMORY", 1 << 20)
    with pytest.raises(SetupError, match=r"cannot be read: .*memory"):
        open_with(**with_pattern("q" * 2000), added_tokens=added_tokens(50_000))
    monkeypatch.setattr(trial, "SECONDS", 0.001)
    with pytest.raises(SetupError, match=r"is not read within 0\.001 s"):
        open_with(**with_pattern("q" * 2000))
