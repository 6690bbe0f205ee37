"""Where a text may be cut so that its parts read as the whole does, and places in a text that was lowercased."""

import numpy as np
import pytest

from bei.tokenizer.places import as_sent, is_anchor, is_plain


@pytest.mark.parametrize(
    ("before", "after", "plain"),
    [
        *(("a", "b", True), ("a", " ", True), ("\n", "\r", True), ("\r", "\n", False)),
        *(("é", "t", True), ("한", "글", True), ("漢", "字", True)),
        *(("e", "\u0301", False), ("\u1100", "\u1161", False)),  # an accent, and letters that make a syllable
        *(("\U0001f1e9", "\U0001f1ea", False), ("\U0001f469", "\u200d", False), ("\u200d", "\U0001f4bb", False)),
        *(("é", "\U0001f1e6", False), ("\U0001f1ff", "é", False), ("\U0001f44d", "\U0001f3fd", False)),
        *(
            ("é", "\U0001f1e5", False),
            ("\U0001f200", "é", True),
        ),  # before the letters of flags no character is assigned
    ],
)
def test_characters_that_stay_apart(before, after, plain):
    assert is_plain(before, after) == plain


@pytest.mark.parametrize(
    ("before", "after", "anchor"),
    [
        *(("a", " ", True), ("7", "\n", True), ("a", ".", True), ("é", ",", True), ("a", "\t", True)),
        *(("字", "。", True), ("字", "\u3000", True)),
        *(("a", "b", False), (".", " ", False), (" ", " ", False), ("a", "+", False)),
        *(("a", "'", False), ("a", "\u2019", False), ("a", "\u0301", False)),
    ],
)
def test_a_word_ends_between_a_letter_and_a_space_or_a_mark(before, after, anchor):
    assert is_anchor(before, after) == anchor


def test_places_in_a_lowercased_text_are_those_of_the_text_that_was_sent():
    sent = "xİzy"  # its second letter becomes two
    places = np.array([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 5]], np.int32)
    assert as_sent(sent, sent.lower(), places).tolist() == [[0, 1, 1, 2, 3, 4], [1, 2, 2, 3, 4, 4]]
    assert as_sent("ABC", "abc", places) is places
