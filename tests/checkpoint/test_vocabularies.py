"""Checkpoints without tokenizer.json: what is built from the files of older tokenizers equals transformers' own."""

import json
import time
from types import SimpleNamespace

import pytest
import transformers
from tokenizers import Tokenizer as Library
from tokenizers.processors import TemplateProcessing

from bei.checkpoint import vocabulary
from bei.checkpoint.load import read
from bei.checkpoint.vocabulary import builder, byte_pairs, draft, sentencepiece
from bei.errors import SetupError
from bei.tokenizer import Tokenizer, limits
from tests.support.tiny_models import random_model, save
from tests.support.tokenizer_texts import texts
from tests.support.vocabularies import CASES, ESM, UMT5, message, model, own, own_umt5, rank_lines, write

COUNT = 300
"""Of the 2,000 texts that `--every-seed` compares."""


def rows(library: Library, inputs, *, specials: bool) -> list[tuple]:
    """Ids, types and offsets."""
    found = library.encode_batch(list(inputs), add_special_tokens=specials)
    return [(one.ids, one.type_ids, one.offsets, one.special_tokens_mask) for one in found]


def assert_equal(ours: Library, theirs: Library, inputs) -> None:
    for specials in (False, True):
        for text, mine, expected in zip(
            inputs, rows(ours, inputs, specials=specials), rows(theirs, inputs, specials=specials), strict=True
        ):
            assert mine == expected, text


def trained_pairs(library: Library) -> TemplateProcessing:
    """The template of transformers' DebertaConverter and of the model's authors. DebertaTokenizer of version 5 puts two
    [SEP] between texts."""
    specials = [(token, library.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    single, pair = "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
    return TemplateProcessing(single=single, pair=pair, special_tokens=specials)


@pytest.mark.parametrize("name", CASES)
def test_ids_and_offsets_are_those_of_transformers(name, tmp_path, request):
    folder = write(tmp_path, CASES[name])
    built = vocabulary.build(folder)
    assert built == vocabulary.build(folder)  # a resumed job compares its hash
    ours, theirs = Library.from_buffer(built), own(folder)
    given = texts(2000 if request.config.getoption("--every-seed") else COUNT)
    assert_equal(ours, theirs, given)
    if name == "DeBERTa":
        theirs.post_processor = trained_pairs(theirs)
    assert_equal(ours, theirs, list(zip(given[:100], reversed(given), strict=False)))
    theirs.no_padding()
    # Tokens that no text has, scores and merges, too. A tokenizer that was copied was read once, as ours is.
    assert json.loads(theirs.to_str()) in (json.loads(built), json.loads(ours.to_str()))


def test_umt5_is_read_as_its_tokenizer_json_is(tmp_path):
    folder = write(tmp_path, UMT5)
    ours, theirs = Library.from_buffer(vocabulary.build(folder)), own_umt5(folder, 30)
    assert_equal(ours, theirs, texts(COUNT))
    assert ours.get_vocab() == theirs.get_vocab()


def test_a_protein_is_read_as_by_the_tokenizer_in_python(tmp_path):
    folder = write(tmp_path, ESM)
    ours, theirs = Library.from_buffer(vocabulary.build(folder)), transformers.EsmTokenizer.from_pretrained(folder)
    given = [*texts(COUNT), "MKTVRQERLK", "MK TV <mask>RQ <cls>", "mktv X.B-U", "<eos><pad>A", "<ma sk>\x1cL"]
    assert [ours.encode(text).ids for text in given] == theirs(given)["input_ids"]
    assert ours.encode("MK", "TV").ids == theirs("MK", "TV")["input_ids"]
    assert ours.encode("M <mask>").offsets == [(0, 0), (0, 1), (2, 8), (0, 0)]


@pytest.mark.parametrize("name", CASES)
def test_growth_is_far_from_the_bound(name, tmp_path):
    built = vocabulary.build(write(tmp_path, CASES[name]))
    ascii, any_other = limits.check(Library.from_buffer(built))
    assert ascii <= 6 and any_other < limits.GROWTH and limits.is_plain(built)


# -- a checkpoint ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A checkpoint in the layout of its time: vocab.txt, and no tokenizer.json."""
    folder = save(tmp_path / "model", random_model("bert"))
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(vocab, key=vocab.__getitem__)))
    return folder


def test_a_checkpoint_is_read_as_with_its_tokenizer_json(folder, tmp_path):
    checkpoint = read(folder, "m", cache_dir=tmp_path / "cache")
    assert checkpoint.tokenizer_file.is_relative_to(tmp_path / "cache")
    built = Tokenizer(checkpoint).encode(["The cat sat", ("the mat", "it ran")], truncate=True)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    saved = read(folder, "m", cache_dir=tmp_path / "cache")
    assert saved.tokenizer_file == folder / "tokenizer.json"
    for one, other in zip(
        built, Tokenizer(saved).encode(["The cat sat", ("the mat", "it ran")], truncate=True), strict=True
    ):
        assert one.ids.tolist() == other.ids.tolist()
        assert (one.token_types is None) == (other.token_types is None)


def test_it_is_built_once(folder, tmp_path, monkeypatch):
    first = read(folder, "m", cache_dir=tmp_path / "cache").tokenizer_file
    assert first.stat().st_mode & 0o777 == 0o600 and first.parent.stat().st_mode & 0o777 == 0o700
    with monkeypatch.context() as patch:
        patch.setattr(builder, "drafted", lambda *_: pytest.fail("built again"))
        assert read(folder, "m", cache_dir=tmp_path / "cache").tokenizer_file == first
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = read(folder, "m", cache_dir=tmp_path / "cache").tokenizer_file
    assert cased != first
    (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text() + "more\n")
    assert read(folder, "m", cache_dir=tmp_path / "cache").tokenizer_file not in (first, cased)
    for version in ("_code", "tokenizers"):
        with monkeypatch.context() as patch:
            patch.setattr(
                builder, version, SimpleNamespace(__version__="0") if version == "tokenizers" else lambda: "0"
            )
            assert read(folder, "m", cache_dir=tmp_path / "cache").tokenizer_file not in (first, cased)


def test_what_others_may_have_written_is_built_again(folder, tmp_path):
    file = read(folder, "m", cache_dir=tmp_path / "cache").tokenizer_file
    content = file.read_bytes()
    file.write_bytes(b"{}")
    file.chmod(0o666)
    assert read(folder, "m", cache_dir=tmp_path / "cache").tokenizer_file.read_bytes() == content


ONE_WORD = {"config.json": {"model_type": "bert"}, "vocab.txt": "[UNK]\n"}


def bytes_with(merges: str) -> dict:
    return {
        "config.json": {"model_type": "gpt2"},
        "vocab.json": {"a": 0, "b": 1, "aa": 2},
        "merges.txt": "#version: 0.2\n" + merges,
    }


def pieces_with(content: bytes) -> dict:
    return {"config.json": {"model_type": "t5"}, "spiece.model": content}


REFUSED = {
    "nothing": ({}, r"tokenizer\.json is missing, and no file names a tokenizer_class; accepted are .*vocab\.txt"),
    "only the config": (
        {"config.json": {"model_type": "bert"}, "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}},
        r"tokenizer\.json is missing, and so is vocab\.txt of 'BertTokenizer'",
    ),
    "another class": (
        {"tokenizer_config.json": {"tokenizer_class": "TapasTokenizer"}, "vocab.txt": "a\n"},
        "'TapasTokenizer' is not built from other files here",
    ),
    "MeCab": (
        {"tokenizer_config.json": {"word_tokenizer_type": "mecab", "do_lower_case": False}, "vocab.txt": "[UNK]\na\n"},
        "word_tokenizer_type 'mecab' divides words by MeCab, a program that is not run here; serve a checkpoint that",
    ),
    "Juman++": ({"config.json": {"word_tokenizer_type": "jumanpp"}, "vocab.txt": "[UNK]\n"}, r"Juman\+\+, a program"),
    "Japanese": (
        {"config.json": {"model_type": "bert", "tokenizer_class": "BertJapaneseTokenizer"}, "vocab.txt": "[UNK]\n"},
        "BertJapaneseTokenizer divides words by MeCab",
    ),
    "PhoBERT": (
        {"tokenizer_config.json": {"tokenizer_class": "PhobertTokenizer"}},
        "PhobertTokenizer reads words that",
    ),
    "BERTweet": (
        {"tokenizer_config.json": {"tokenizer_class": "BertweetTokenizer"}},
        "BertweetTokenizer rewrites texts",
    ),
    "fastBPE": (
        {"config.json": {"model_type": "roberta"}, "bpe.codes": "a b 1\n", "vocab.txt": "a 1\n"},
        r"^bpe\.codes is a",
    ),
    "its own code": (
        {"tokenizer_config.json": {"tokenizer_class": "QWenTokenizer", "auto_map": {"AutoTokenizer": ["t.Q", None]}}},
        "'QWenTokenizer' is code of the checkpoint's own, which is never run",
    ),
    "no unknown token": (
        {"config.json": {"model_type": "bert"}, "vocab.txt": "a\nb\n"},
        r"vocab\.txt lacks '\[UNK\]', the token of unknown words",
    ),
    "no text": ({"config.json": {"model_type": "bert"}, "vocab.txt": b"[UNK]\n\xff\xfe\n"}, r"vocab\.txt is not UTF-8"),
    "no tokens": ({"config.json": {"model_type": "bert"}, "vocab.txt": ""}, r"vocab\.txt holds no tokens"),
    "a long token": ({"config.json": {"model_type": "bert"}, "vocab.txt": "a" * 5000}, "a token of 5000 characters"),
    "much text": (
        {"config.json": {"model_type": "bert"}, "vocab.txt": "".join(f"{i:01000}\n" for i in range(12_001))},
        "holds tokens of 12001000 bytes; at most 12000000",
    ),
    "a large file": (
        {"config.json": {"model_type": "bert"}, "vocab.txt": b"a" * ((1 << 24) + 1)},
        "is larger than 16777216",
    ),
    "a token that is a number": (
        {"config.json": {"model_type": "bert"}, "tokenizer_config.json": {"unk_token": 7}, "vocab.txt": "[UNK]\n"},
        "cannot be built: 7 is no token",
    ),
    "no separator": (
        {"config.json": {"model_type": "bert"}, "tokenizer_config.json": {"sep_token": None}, "vocab.txt": "[UNK]\n"},
        "sep_token is 'None', and goes around each text; name it",
    ),
    "a flag that is text": (
        {
            "config.json": {"model_type": "bert"},
            "tokenizer_config.json": {"do_lower_case": "no"},
            "vocab.txt": "[UNK]\n",
        },
        "do_lower_case is 'no'; it must be true or false",
    ),
    "merges of others": (bytes_with("a b\n"), r"merges\.txt, line 2: 'ab' is not in vocab\.json"),
    "merges of three": (bytes_with("a b c\n"), r"merges\.txt, line 2: 'a b c' is no pair"),
    "no dictionary": ({**bytes_with(""), "vocab.json": ["a"]}, r"vocab\.json is no dictionary"),
    "no ids": ({**bytes_with(""), "vocab.json": {"a": "b"}}, r"vocab\.json is no dictionary"),
    "negative ids": ({**bytes_with(""), "vocab.json": {"a": -1}}, r"vocab\.json is no dictionary"),
    "no JSON": ({**bytes_with(""), "vocab.json": "[" * 100_000}, r"vocab\.json is not valid JSON"),
    "no merges": (
        {"config.json": {"model_type": "gpt2"}, "vocab.json": {"a": 0}},
        "is missing, and no file names a tokenizer_class",
    ),
    "no protobuf": (pieces_with(b"\xff" * 40), r"spiece\.model is no sentencepiece model"),
    "a cut protobuf": (pieces_with(model([("<unk>", 2)])[:-3]), r"spiece\.model is no sentencepiece model"),
    "a group": (pieces_with(b"\x0b\x0c"), "is no sentencepiece model"),
    "no pieces": (pieces_with(message((2, message((3, 1))))), r"spiece\.model holds no tokens"),
    "a long piece": (pieces_with(message((1, message((1, "a" * 5000))))), "a token of 5000 characters"),
    "a score that is none": (
        pieces_with(message((1, message((1, "a"), (2, float("nan")))))),
        "whose score is no number",
    ),
    "a piece that is no text": (pieces_with(message((1, message((1, b"\xff"))))), "is no sentencepiece model"),
    "a model of words": (pieces_with(model([("<unk>", 2)], trainer=((3, 3),))), "of words or characters"),
    "no unknown piece": (pieces_with(model([("<unk>", 2)], trainer=((40, 10**9),))), "none of the number 1000000000"),
    "BPE for unigrams": (pieces_with(model([("<unk>", 2)], "bpe.model")), "a model of unigrams is expected"),
    "a broken table": (pieces_with(model([("<unk>", 2)], normalizer=((2, b"\x01"),))), "cannot be built"),
    "many sentinels": (
        {**pieces_with(model([("<unk>", 2)])), "tokenizer_config.json": {"extra_ids": 10**9}},
        "extra_ids is 1000000000; it must be 0 to 10000",
    ),
    "no base64": ({"tiktoken.model": rank_lines() + b"!!!! 7\n"}, r"tiktoken\.model, line \d+: b'!!!! 7' is no token"),
    "a rank twice": ({"a.tiktoken": b"YQ== 0\nYg== 0\n"}, r"a\.tiktoken gives two tokens one rank"),
    "two files of ranks": ({"a.tiktoken": b"YQ== 0\n", "b.tiktoken": b"YQ== 0\n"}, r"tokenizer\.json is missing"),
    "an id far away": (
        {
            "a.tiktoken": rank_lines(),
            "tokenizer_config.json": {"added_tokens_decoder": {str(10**9): {"content": "<a>"}}},
        },
        "has the id 1000000000, far beyond",
    ),
    "a long added token": (
        {**ONE_WORD, "added_tokens.json": {"a" * 2000: 1}},
        "tokenizer_config.json holds a token of 2000 characters",
    ),
    "a strange token": (
        {
            "config.json": {"model_type": "bert"},
            "tokenizer_config.json": {"added_tokens_decoder": {"x": {"content": "a"}}},
            "vocab.txt": "[UNK]\n",
        },
        "cannot be built: invalid literal for int",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_a_line_that_names_the_file(name, tmp_path):
    files, message = REFUSED[name]
    with pytest.raises(SetupError, match=message) as caught:
        vocabulary.build(write(tmp_path, files))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_tokens_and_merges_are_counted(tmp_path, monkeypatch):
    with (
        monkeypatch.context() as patch,
        pytest.raises(SetupError, match=r"vocab\.txt holds \d+ tokens; at most 100 are"),
    ):
        patch.setattr(draft, "MOST_TOKENS", 100)
        vocabulary.build(write(tmp_path / "tokens", CASES["BERT, nothing stated"]))
    with monkeypatch.context() as patch, pytest.raises(SetupError, match=r"adds 8 tokens; at most 3 are"):
        patch.setattr(draft, "_ADDED", 3)
        vocabulary.build(write(tmp_path / "added", CASES["BERT, added_tokens.json"]))
    with monkeypatch.context() as patch, pytest.raises(SetupError, match=r"holds more than 10 tokens, the most"):
        patch.setattr(sentencepiece, "MOST_TOKENS", 10)
        vocabulary.build(write(tmp_path / "pieces", CASES["T5"]))
    for module, name in ((byte_pairs, "GPT-2"), (draft, "Mistral"), (draft, "Gemma"), (draft, "tiktoken")):
        with monkeypatch.context() as patch, pytest.raises(SetupError, match=r"more than 10 (lines|merges), the most"):
            patch.setattr(module, "MOST_MERGES", 10)
            vocabulary.build(write(tmp_path / name, CASES[name]))


@pytest.mark.parametrize("name", ["Mistral", "Gemma", "tiktoken"])
def test_characters_of_merges_are_counted(name, tmp_path, monkeypatch):
    """Tokens that are parts of one another: 0.5 MB of them have 350 MB of merges."""
    monkeypatch.setattr(draft, "MOST_MERGED", 20)
    with pytest.raises(SetupError, match="has merges of more than 20 characters, the most that are read"):
        vocabulary.build(write(tmp_path, CASES[name]))


@pytest.mark.parametrize("name", ["BERT, nothing stated", "tiktoken"])
def test_many_special_tokens_take_no_more_than_their_share(name, tmp_path):
    case = CASES[name]
    many: dict = {"additional_special_tokens": [{"content": f"<{i}>"} for i in range(20_000)]}
    if name == "tiktoken":
        many["added_tokens_decoder"] = {"20000": {"content": "<a>"}}
    config = case.get("tokenizer_config.json", {})
    began = time.process_time()
    vocabulary.build(write(tmp_path, {**case, "tokenizer_config.json": {**config, **many}}))
    assert time.process_time() - began < 10


def test_an_option_without_effect_is_logged(tmp_path, caplog):
    files = CASES["BERT, accents kept"]
    vocabulary.build(write(tmp_path, files))
    assert ["never_split has no effect" in record.message for record in caplog.records] == [True]
