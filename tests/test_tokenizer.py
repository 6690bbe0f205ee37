"""Encodings against the transformers tokenizer on the same file, and refused inputs."""

import random
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bei.checkpoint.load import read
from bei.errors import Empty, Invalid, SetupError, Untokenizable
from bei.tokenizer import Tokenizer
from bei.tokenizer.how import How
from bei.tokenizer.template import cut, inner, longest_first, windows
from tests.support.tiny_models import VOCAB, WORDS, random_model, save, word_pieces, write_json

TEXTS = ["the cat sat", "a", "x" * 300, "Big, red! mat?", "naïve \U0001f600 日本 [SEP] cat", " ", "the cat " * 100]


def byte_pairs(file: Path) -> None:
    """A byte-level BPE with RoBERTa's specials."""
    library = Library(models.BPE(unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator([" ".join(WORDS)], trainer)
    library.decoder = decoders.ByteLevel()
    library.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))
    library.save(str(file))


def unigrams(file: Path) -> None:
    """A Unigram with an end token only, as T5's."""
    pieces = [("[PAD]", 0.0), ("[UNK]", 0.0), ("[EOS]", 0.0), *((w, -2.0) for w in WORDS)]
    pieces += [(c, -5.0) for c in string.ascii_lowercase + "▁"]
    library = Library(models.Unigram(pieces, unk_id=1))
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    library.add_special_tokens(["[PAD]", "[UNK]", "[EOS]"])
    library.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 2)])
    library.save(str(file))


@pytest.fixture(scope="module", params=["word pieces", "byte pairs", "unigrams"])
def checkpoint(request, tmp_path_factory):
    folder = save(tmp_path_factory.mktemp("model"), random_model("bert", vocab_size=1000))
    if request.param != "word pieces":
        {"byte pairs": byte_pairs, "unigrams": unigrams}[request.param](folder / "tokenizer.json")
    return read(folder, "m")


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return Tokenizer(checkpoint)


@pytest.mark.parametrize("side", ["right", "left"])
def test_equals_transformers(checkpoint, tokenizer, side):
    reference = PreTrainedTokenizerFast(tokenizer_file=str(checkpoint.tokenizer_file), truncation_side=side)
    expected = reference(TEXTS, truncation=True, max_length=checkpoint.max_tokens)["input_ids"]
    assert [e.ids.tolist() for e in tokenizer.encode(TEXTS, truncate=True, direction=side)] == expected


@pytest.mark.parametrize("side", ["right", "left"])
def test_pairs_equal_transformers(checkpoint, tokenizer, side):
    reference = PreTrainedTokenizerFast(tokenizer_file=str(checkpoint.tokenizer_file), truncation_side=side)
    pairs = [(a, b) for a in TEXTS for b in [*TEXTS, ""]]
    first, second = map(list, zip(*pairs, strict=True))
    expected = reference(first, second, truncation="longest_first", max_length=64, return_token_type_ids=True)
    encodings = tokenizer.encode(pairs, truncate=True, direction=side)
    assert [e.ids.tolist() for e in encodings] == expected["input_ids"]
    assert [[0] * len(e.ids) if e.token_types is None else e.token_types.tolist() for e in encodings] == expected[
        "token_type_ids"
    ]
    assert [e.characters for e in encodings] == [len(a) + len(b) for a, b in pairs]


def test_the_second_of_a_pair_can_be_bounded(tokenizer):
    def tokens(document: str, limit: int | None) -> int:
        return len(tokenizer.encode([("cat", document)], truncate=False, max_second_tokens=limit)[0].ids)

    assert tokens("dog " * 9, 2) == tokens("", None) + 2 < tokens("dog " * 9, None)


def test_an_encoding_says_whether_a_part_was_not_read(tokenizer):
    def is_cut(item, most: int | None, of_second: int | None = None) -> bool:
        narrow = tokenizer.narrowed(most, add_special_tokens=True)
        return narrow.encode([item], truncate=True, max_second_tokens=of_second)[0].is_truncated

    for item in ("dog " * 9, [5] * 9, ("cat", "dog " * 9)):
        (whole,) = tokenizer.encode([item], truncate=False)
        assert [is_cut(item, len(whole.ids) - less) for less in (0, 1)] == [False, True]
    (one,) = tokenizer.encode([item], truncate=False, max_second_tokens=1)
    tokens = 1 + len(whole.ids) - len(one.ids)
    assert [is_cut(("cat", "dog " * 9), None, tokens - less) for less in (0, 1)] == [False, True]


def test_no_token_is_left_of_a_text_that_has_no_room():
    assert [cut([1, 2, 3], room, "left") for room in (0, 2, 9)] == [[], [2, 3], [1, 2, 3]]
    assert [cut([1, 2, 3], room, "right") for room in (0, 2, 9)] == [[], [1, 2], [1, 2, 3]]


def test_long_texts_are_refused_without_truncation(tokenizer):
    with pytest.raises(Invalid, match=r"must have at most 64 tokens\. Given: \d+ \(input 1\)"):
        tokenizer.encode(["the cat", "the cat " * 100], truncate=False)
    with pytest.raises(Invalid, match=r"must have at most 64 tokens\. Given: \d+ \(input 1\)"):
        tokenizer.encode(["the cat", ("the cat", "the cat " * 100)], truncate=False)


def test_token_ids_are_taken_as_they_are(tokenizer):
    (text,) = tokenizer.encode(["the cat sat"], truncate=True)
    (tokens,) = tokenizer.tokenize(["the cat sat"], add_special_tokens=False)
    (ids,) = tokenizer.encode([[token.id for token in tokens]], truncate=True)
    np.testing.assert_array_equal(ids.ids, text.ids)
    assert ids.characters == 0


@pytest.mark.parametrize(
    ("item", "error"), [("", Empty), (("", ""), Empty), ([], Empty), ([1000], Invalid), ([-1], Invalid)]
)
def test_a_bad_input_is_named_by_its_place(tokenizer, item, error):
    with pytest.raises(error, match=r"\(input 1\)"):
        tokenizer.encode(["fine", item], truncate=True)


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(Untokenizable):
        tokenizer.encode(["\ud800"], truncate=True)


def test_prompts(tmp_path):
    folder = save(tmp_path, random_model("bert"))
    prompts = {"query": "the cat: ", "none": ""}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts})
    tokenizer = Tokenizer(read(folder, "m"), default_prompt="a big ")
    assert tokenizer.prompt(None) == "a big "
    with pytest.raises(
        Invalid, match=r"'nope' was not found in the model's prompts\. Available prompts: \[none, query\]"
    ):
        tokenizer.prompt("nope")
    (with_prompt,) = tokenizer.encode(["dog"], truncate=True, prompt=tokenizer.prompt("query"))
    (whole,) = tokenizer.encode(["the cat: dog"], truncate=True)
    np.testing.assert_array_equal(with_prompt.ids, whole.ids)
    assert with_prompt.prompt_tokens == 4  # [CLS] the cat :
    assert with_prompt.characters == 3
    assert tokenizer.encode([[7]], truncate=True, prompt="the cat")[0].prompt_tokens == 0


def test_lowercase(tmp_path):
    folder = save(tmp_path, random_model("bert", vocab_size=1000))
    byte_pairs(folder / "tokenizer.json")
    plain = Tokenizer(read(folder, "m")).encode(["the cat"], truncate=True)
    write_json(folder / "sentence_bert_config.json", {"do_lower_case": True})
    np.testing.assert_array_equal(Tokenizer(read(folder, "m")).encode(["THE Cat"], truncate=True)[0].ids, plain[0].ids)


def test_tokens_carry_byte_offsets(tmp_path):
    tokenizer = Tokenizer(read(save(tmp_path, random_model("bert")), "m"))
    text = "the naïve cat"
    (tokens,) = map(list, tokenizer.tokenize([text], add_special_tokens=True))
    assert [token.special for token in (tokens[0], tokens[-1])] == [True, True]
    assert (tokens[0].start, tokens[0].stop) == (None, None)
    for token in tokens[1:-1]:
        assert text.encode()[token.start : token.stop].decode() == token.text
    assert [t.text for t in tokenizer.tokenize(["the cat"], add_special_tokens=False)[0]] == ["the", "cat"]


def test_decode(tokenizer):
    ids = tokenizer.encode(["the cat sat"], truncate=True)[0].ids.tolist()
    assert tokenizer.decode([ids], skip_special_tokens=True)[0].strip() == "the cat sat"
    assert "[" in tokenizer.decode([ids], skip_special_tokens=False)[0]
    with pytest.raises(Invalid, match="1000 is outside the vocabulary"):
        tokenizer.decoded([[1000]])


def test_no_room_for_a_text(tmp_path):
    folder = save(tmp_path, random_model("bert"))
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 2})
    with pytest.raises(SetupError, match="2 tokens leave no room"):
        Tokenizer(read(folder, "m"))


def test_a_broken_file(tmp_path):
    folder = save(tmp_path, random_model("bert"))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(SetupError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer(read(folder, "m"))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=200), min_size=1, max_size=8), st.sampled_from(["left", "right"]))
def test_a_text_is_encoded_alike_alone_and_among_others(tokenizer, texts, direction):
    together = tokenizer.encode(texts, truncate=True, direction=direction)
    order = random.Random(0).sample(range(len(texts)), len(texts))
    for i in order:
        (alone,) = tokenizer.encode([texts[i]], truncate=True, direction=direction)
        np.testing.assert_array_equal(alone.ids, together[i].ids)
        assert len(together[i].ids) <= 64


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 90), st.integers(0, 90), st.integers(3, 60))
def test_pairs_are_cut_as_the_library_cuts_them(first, second, room):
    library = Library(models.WordLevel({"a": 0, "b": 1}, "a"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.enable_truncation(room, strategy="longest_first")
    ids = library.encode("a " * first, "b " * second).ids
    assert longest_first(first, second, room) == (ids.count(0), ids.count(1))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(4, 60))
def test_windows_are_the_library_s(length, room):
    library = Library(models.WordLevel({"a": 0}, "a"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.enable_truncation(room, stride=room // 4)
    whole = library.encode("a " * length)
    expected = [range(e.offsets[0][0] // 2, e.offsets[-1][0] // 2 + 1) for e in (whole, *whole.overflowing)]
    parts = windows(length, room, room // 4)
    assert parts == expected
    assert [i for part in inner(parts) for i in part] == list(range(length)), "each token in one window, none lost"
    assert all(set(own) <= set(part) for own, part in zip(inner(parts), parts, strict=True))


def without_specials(file: Path) -> None:
    library = word_pieces()
    library.post_processor = processors.Sequence([])
    library.save(str(file))


@pytest.mark.parametrize("item", ["\x07", "\x07\0\x7f", " ", ("\x07", " ")])
def test_a_text_without_a_token_is_named_by_its_place(tmp_path, item):
    """Also for a model without special tokens."""
    folder = save(tmp_path, random_model("llama"))
    without_specials(folder / "tokenizer.json")
    tokenizer = Tokenizer(read(folder, "m"))
    with pytest.raises(Empty, match=r"without a token .*\(input 1\)"):
        tokenizer.encode(["fine", item], truncate=True)
    assert len(tokenizer.encode(["\x07"], truncate=True, prompt="the cat")[0].ids) == 2
    with pytest.raises(Empty, match=r"\(input 0\)"):
        tokenizer.encode(["\x07"], truncate=True, prompt=" ")


def test_a_tagger_s_text_without_a_token(tmp_path):
    labels = {"id2label": {0: "O", 1: "B-PER"}}
    folder = save(tmp_path, random_model("bert", 0, "ForTokenClassification", **labels), pooling=None)
    assert len(Tokenizer(read(folder, "m")).windows(["\x07"], truncate=True).ids) == 2
    without_specials(folder / "tokenizer.json")
    with pytest.raises(Empty, match=r"without a token .*\(input 1\)"):
        Tokenizer(read(folder, "m")).windows(["fine", "\x07"], truncate=True)


def test_places_are_those_of_the_text_as_it_was_sent(tmp_path):
    """U+0130 becomes two characters in lower case, with `do_lower_case`."""
    labels = {"id2label": {0: "O", 1: "B-PER"}}
    folder = save(tmp_path, random_model("bert", 0, "ForTokenClassification", **labels), pooling=None)
    write_json(folder / "sentence_bert_config.json", {"do_lower_case": True})
    tokenizer, text = Tokenizer(read(folder, "m")), "\u0130\u0130 Cat \u0130 DOG"
    (tokens,) = tokenizer.tokenize([text], add_special_tokens=False)
    shown = [(token.text, text.encode()[token.start : token.stop].decode()) for token in tokens]
    assert [a for a, _ in shown] == [b for _, b in shown]
    assert shown[-1][0] == "DOG" and ("Cat", "Cat") in shown
    windows = tokenizer.windows([text], truncate=True)
    own = np.flatnonzero(~windows.special)
    assert [text[windows.starts[i] : windows.ends[i]] for i in own] == [a for a, _ in shown]
    (lowered,) = tokenizer.tokenize([text.lower()], add_special_tokens=False)
    assert [token.id for token in tokens] == [token.id for token in lowered]


def test_an_end_is_added_to_a_template_of_the_file_s_own(tmp_path):
    """e5-mistral's: tokenizer.json adds the beginning, tokenizer_config.json asks for the end."""
    folder = save(tmp_path, random_model("llama"))
    library, start = word_pieces(), [("[CLS]", 2)]
    own = {"single": "[CLS] $A", "pair": "[CLS] $A [CLS] $B", "special_tokens": start}
    library.post_processor = processors.TemplateProcessing(**own)
    library.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "[CLS]", "eos_token": "[SEP]", "add_bos_token": True, "add_eos_token": True}
    write_json(folder / "tokenizer_config.json", names)
    tokenizer = Tokenizer(read(folder, "m"))
    the, cat = VOCAB.index("the"), VOCAB.index("cat")
    single, pair = (encoding.ids.tolist() for encoding in tokenizer.encode(["the", ("the", "cat")], truncate=True))
    assert single == [2, the, 3]
    assert pair == [2, the, 2, cat, 3]
    (tokens,) = tokenizer.tokenize(["the"], add_special_tokens=True)
    assert [token.id for token in tokens] == single


def test_two_templates_in_a_row_are_refused_in_words(tmp_path):
    """The library reads a text with them, and panics on a pair."""
    folder = save(tmp_path, random_model("bert"))
    library, around = word_pieces(), [("[CLS]", 2), ("[SEP]", 3)]
    templates = [processors.TemplateProcessing(single=of, special_tokens=around) for of in ("[CLS] $A", "$A [SEP]")]
    library.post_processor = processors.Sequence(templates)
    library.save(str(folder / "tokenizer.json"))
    with pytest.raises(SetupError, match="one TemplateProcessing, not two in a row"):
        Tokenizer(read(folder, "m"))


CLASSES = {
    **dict.fromkeys(("LlamaTokenizer", "LlamaTokenizerFast", "GemmaTokenizerFast", "CohereTokenizer", None), True),
    **dict.fromkeys(("GPT2TokenizerFast", "Qwen2Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"), False),
}
"""The classes of tokenizers, and whether they obey the flags."""


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("flags", [{}, {"add_bos_token": False}, {"add_eos_token": True}, {"add_bos_token": True}])
def test_specials_that_the_config_adds(tmp_path, flags, name):
    """Like transformers' Llama tokenizers, whose tokenizer.json may lack the end of e5-mistral's texts."""
    obeyed = flags if CLASSES[name] else {}
    folder = save(tmp_path, random_model("llama"))
    library = Library.from_file(str(folder / "tokenizer.json"))
    library.post_processor = processors.Sequence([])
    library.save(str(folder / "tokenizer.json"))
    stated = {"bos_token": "[CLS]", "eos_token": "[SEP]", **flags} | ({"tokenizer_class": name} if name else {})
    write_json(folder / "tokenizer_config.json", stated)
    tokenizer = Tokenizer(read(folder, "m"))
    if name in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        theirs = AutoTokenizer.from_pretrained(folder)("the cat")["input_ids"]
        assert tokenizer.encode(["the cat"], truncate=True)[0].ids.tolist() == theirs
    single, pair = (tokenizer.encode([item], truncate=True)[0].ids.tolist() for item in ("the cat", ("the", "cat")))
    before, after = ([id] if obeyed.get(flag) else [] for flag, id in (("add_bos_token", 2), ("add_eos_token", 3)))
    body = [id for id in single if id > 4]
    assert single == pair == [*before, *body, *after]
    assert len(body) == 2
    (tokens,) = tokenizer.tokenize(["the cat"], add_special_tokens=True)
    assert [token.id for token in tokens] == single


@pytest.mark.parametrize(
    ("direction", "most", "max_second_tokens", "wanted"),
    [
        *(("right", 65, None, (65, "right")), ("left", 65, None, (65, "left"))),
        *(("right", 65, 5, (6, "right")), ("right", 4, 5, (4, "right")), ("left", 4, 5, (6, "right"))),
    ],
)
def test_one_token_more_is_read_of_a_second_text_than_it_may_have(direction, most, max_second_tokens, wanted):
    """That it is cut shows by the one more. From the left it is cut again, and so all that it may have is read."""
    assert How(True, direction, "", "", None, most, max_second_tokens).of_second("b") == ("b", *wanted)
