"""Special tokens around texts, and long texts in windows: by hand."""

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, processors

from bei.errors import SetupError
from bei.tokenizer.reading import Tokens
from bei.tokenizer.template import Template, cut, inner, learn, longest_first, windows
from bei.tokenizer.windows import joined, windows_of


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def listed(*arrays: np.ndarray) -> list[list[int]]:
    assert {array.dtype for array in arrays} <= {np.dtype(np.int32)}
    return [array.tolist() for array in arrays]


# Templates

PAIR = Template((ids(1), ids(2, 3), ids(4)), (ids(0), ids(5, 6), ids(7)), (0, 8))
SINGLE = Template((ids(1), ids(2)), (ids(0), ids(0)), (0,))


def test_specials_stand_around_the_texts():
    assert PAIR.size == 4 and SINGLE.size == 2
    assert listed(*PAIR.wrap(ids(50, 51), ids(60))) == [[1, 50, 51, 2, 3, 60, 4], [0, 0, 0, 5, 6, 8, 7]]


def test_types_that_are_all_0_are_none():
    made, types = SINGLE.wrap(ids(50))
    assert (made.tolist(), types) == ([1, 50, 2], None)


@pytest.mark.parametrize(
    ("template", "types"),
    [
        (Template((ids(1), ids(2)), (ids(0), ids(0)), (1,)), [0, 1, 0]),
        (Template((ids(1), ids(2)), (ids(0), ids(1)), (0,)), [0, 0, 1]),
        (Template((ids(1), ids(2)), (ids(1), ids(0)), (0,)), [1, 0, 0]),
    ],
)
def test_one_type_that_is_not_0_says_all(template, types):
    assert listed(template.wrap(ids(50))[1]) == [types]


def test_a_bare_template_puts_nothing_around_and_keeps_the_types_of_texts():
    bare = PAIR.bare()
    assert bare.size == 0
    assert listed(*bare.wrap(ids(50), ids(60, 61))) == [[50, 60, 61], [0, 8, 8]]


def test_more_specials_stand_outside_the_others():
    made = PAIR.between([10, 11], [12])
    assert listed(*made.wrap(ids(50), ids(60))) == [[10, 11, 1, 50, 2, 3, 60, 4, 12], [0, 0, 0, 0, 5, 6, 8, 7, 0]]
    assert listed(SINGLE.between([], []).wrap(ids(50))[0]) == [[1, 50, 2]]


def library(single: str, pair: str, types: bool = False) -> Library:
    made = Library(models.WordLevel({"a": 9, "[X]": 1, "[Y]": 2}, "a"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if not types:
        single, pair = (of.replace(":1", "") for of in (single, pair))
    made.post_processor = processors.TemplateProcessing(single, pair, special_tokens=[("[X]", 1), ("[Y]", 2)])
    return made


@pytest.mark.parametrize("types", [True, False])
def test_a_template_is_learned_from_the_library(types):
    found = library("[X] $A [Y] [X]:1", "[X] $A [Y] $B:1 [Y]:1", types=True)
    single, pair = (learn(found, texts, types=types) for texts in (1, 2))
    assert listed(*single.fixed) == [[1], [2, 1]]
    assert listed(*single.fixed_types) == [[0], [0, int(types)]]
    assert single.body_types == (0,)
    assert listed(*pair.fixed) == [[1], [2], [2]]
    assert listed(*pair.fixed_types) == [[0], [0], [int(types)]]
    assert pair.body_types == (0, int(types))


def test_a_library_without_specials_has_an_empty_template():
    found = library("$A", "$A $B")
    assert [learn(found, texts, types=True).size for texts in (1, 2)] == [0, 0]
    assert len(learn(found, 2, types=True).fixed) == 3


def test_a_library_that_has_no_token_of_the_text_is_refused():
    two = [processors.TemplateProcessing(single=of, special_tokens=[("[X]", 1)]) for of in ("[X] $A", "$A [X]")]
    found = library("$A", "$A $B")
    found.post_processor = processors.Sequence(two)
    with pytest.raises(SetupError, match="no token is the text's; its post_processor may have one TemplateProcessing"):
        learn(found, 1, types=True)


# Cuts


@pytest.mark.parametrize(
    ("room", "right", "left"),
    [(0, [], []), (1, [1], [3]), (2, [1, 2], [2, 3]), (3, [1, 2, 3], [1, 2, 3]), (4, [1, 2, 3], [1, 2, 3])],
)
def test_a_text_is_cut_from_either_end(room, right, left):
    assert listed(cut(ids(1, 2, 3), room, "right"), cut(ids(1, 2, 3), room, "left")) == [right, left]


@pytest.mark.parametrize(
    ("first", "second", "room", "expected"),
    [
        (3, 4, 7, (3, 4)),  # both fit
        (3, 4, 8, (3, 4)),
        (3, 5, 7, (3, 4)),  # the longer one loses
        (5, 3, 7, (4, 3)),
        (9, 9, 8, (4, 4)),  # to a tie
        (9, 9, 7, (3, 4)),  # where the second keeps one more
        (10, 9, 7, (4, 3)),  # unless the first was longer
        (9, 10, 7, (3, 4)),
        (2, 50, 7, (2, 5)),
        (50, 2, 7, (5, 2)),
        (0, 50, 7, (0, 7)),
        (20, 8, 7, (4, 3)),  # each alone is too long
        (7, 7, 7, (3, 4)),
        (8, 1, 7, (6, 1)),
    ],
)
def test_of_a_pair_the_longer_text_is_cut(first, second, room, expected):
    assert longest_first(first, second, room) == expected


# Windows


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (0, [range(0)]),
        (1, [range(1)]),
        (8, [range(8)]),
        (9, [range(8), range(6, 9)]),
        (14, [range(8), range(6, 14)]),
        (15, [range(8), range(6, 14), range(12, 15)]),
    ],
)
def test_parts_of_eight_that_share_two(length, expected):
    assert windows(length, room=8, overlap=2) == expected


def test_what_is_shared_is_halved():
    assert inner([range(8)]) == [range(8)]
    assert inner([range(8), range(6, 14), range(12, 15)]) == [range(7), range(7, 13), range(13, 15)]
    assert inner([range(8), range(5, 12)]) == [range(6), range(6, 12)], "the odd one is the second's"


def ten(first: int = 0) -> Tokens:
    """Ten tokens of a letter each, between spaces."""
    places = np.arange(10, dtype=np.int32)
    return Tokens(100 + places, first + 2 * places, first + 2 * places + 1, places)


def read(tokens: Tokens, template: Template, max_tokens: int, text: str = "a " * 10):
    continues = np.arange(len(tokens)) % 2 == 1
    return list(windows_of(text, tokens, continues, template, max_tokens))


def test_a_text_that_fits_is_one_window():
    ((encoding, columns),) = read(ten(), SINGLE, 12)
    assert encoding.ids.tolist() == [1, *range(100, 110), 2]
    assert (encoding.characters, encoding.token_types) == (20, None)
    found, starts, ends, special, continues, own = columns.tolist()
    assert found == encoding.ids.tolist()
    assert starts == [0, *range(0, 20, 2), 0]
    assert ends == [0, *range(1, 21, 2), 0]
    assert special == [1, *[0] * 10, 1]
    assert continues == [0, *[0, 1] * 5, 0]
    assert own == [1] * 12, "its specials, too"


def test_a_long_text_is_several_that_share_a_quarter():
    """Of 10 tokens with 3 specials: 7 are a text's, and 1 of them is the next window's, too."""
    template = Template((ids(1), ids(2, 3)), (ids(0), ids(0, 1)), (0,))
    (first, one), (second, two) = read(ten(), template, 10)
    assert first.ids.tolist() == [1, *range(100, 107), 2, 3]
    assert second.ids.tolist() == [1, *range(106, 110), 2, 3]
    assert listed(first.token_types, second.token_types) == [[0] * 9 + [1], [0] * 6 + [1]]
    assert (first.characters, second.characters) == (20, 0), "a text's characters count once"
    assert one[5].tolist() == [1, *[1] * 6, 0, 0, 0], "the first has the text's first specials"
    assert two[5].tolist() == [0, 1, 1, 1, 1, 1, 1], "and the last its last ones"
    assert two[:3].tolist() == [[1, 106, 107, 108, 109, 2, 3], [0, 12, 14, 16, 18, 0, 0], [0, 13, 15, 17, 19, 0, 0]]
    assert two[3:5].tolist() == [[1, 0, 0, 0, 0, 1, 1], [0, 0, 1, 0, 1, 0, 0]]


def test_a_window_in_the_middle_has_none_of_the_specials():
    _, (_, middle), _ = read(ten(), SINGLE, 6)
    assert middle[0].tolist() == [1, 103, 104, 105, 106, 2]
    assert middle[5].tolist() == [0, 1, 1, 1, 0, 0]


def test_every_token_is_one_window_s_own():
    for most in range(6, 14):
        own = [columns[0][columns[5] == 1].tolist() for _, columns in read(ten(), SINGLE, most)]
        assert [id for of in own for id in of] == [1, *range(100, 110), 2]


def test_the_windows_of_all_texts_are_joined():
    texts = [read(ten(), SINGLE, 8), read(ten(first=5)[:2], SINGLE, 8)]
    found = joined(texts)
    assert len(found) == len(found.encodings) == 3
    assert list(found) == [encoding for of in texts for encoding, _ in of]
    assert (found.owners.tolist(), found.lengths.tolist()) == ([0, 0, 1], [8, 7, 4])
    assert found.ids.tolist() == [1, *range(100, 106), 2, 1, *range(105, 110), 2, 1, 100, 101, 2]
    assert found.starts[-4:].tolist() == [0, 5, 7, 0]
    assert found.ends[-4:].tolist() == [0, 6, 8, 0]
    flags = (found.special, found.continues, found.inner)
    assert {array.dtype for array in flags} == {np.dtype(bool)}
    assert [array[-4:].tolist() for array in flags] == [
        [True, False, False, True],
        [False, False, True, False],
        [True, True, True, True],
    ]
