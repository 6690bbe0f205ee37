"""Tokens to entities by hand: what begins, ends, joins, overlaps and is left out."""

import numpy as np
import pytest

from bei.tasks import entities
from bei.tokenizer import Windows

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC")
NONE, B_PER, I_PER, B_LOC, I_LOC, MISC = range(6)
TEXT = "Ada Lovelace met Byron in Rome."
WORDS = [(0, 3), (4, 12), (13, 16), (17, 22), (23, 25), (26, 30), (30, 31)]
PIECES = [(0, 3), (4, 8), (8, 12), (13, 16), (17, 20), (20, 22)]
GOES_ON = [False, False, True, False, False, True]


def windows_of(*windows, owners=None, special=(), continues=None, inner=None, ids=None) -> Windows:
    """From the places of each window's tokens."""
    places = np.array([place for window in windows for place in window])

    def flags(of, value=False):
        return np.full(len(places), value) if of is None else np.array(of, bool)

    return Windows(
        encodings=[],
        owners=np.array(range(len(windows)) if owners is None else owners),
        lengths=np.array([len(window) for window in windows]),
        ids=np.arange(len(places)) if ids is None else np.array(ids),
        starts=places[:, 0],
        ends=places[:, 1],
        special=np.isin(np.arange(len(places)), special),
        continues=flags(continues),
        inner=flags(inner, True),
    )


def logits(*best: int | dict[int, float]) -> np.ndarray:
    """Of each token the label that is its best, by 2, or its logits."""
    rows = np.zeros((len(best), len(LABELS)), np.float32)
    for row, of in zip(rows, best, strict=True):
        for label, value in ({of: 2.0} if isinstance(of, int) else of).items():
            row[label] = value
    return rows


def softmax(row) -> np.ndarray:
    return np.exp(row) / np.exp(row).sum()


def aggregated(windows, rows, strategy="simple", ignored=("O",), texts=(TEXT,), raw_scores=True):
    found = entities.aggregate(list(texts), windows, rows, LABELS, strategy, ignored, raw_scores=raw_scores)
    return [[(e.token, e.start, e.end, *next(iter(e.results.items()))) for e in of] for of in found]


def test_runs_of_one_tag_are_one_entity_and_a_b_begins_another():
    (found,) = aggregated(
        windows_of(WORDS), logits(B_PER, {I_PER: 4}, NONE, {B_PER: 3}, {B_PER: 1}, {I_LOC: 5}, MISC), ignored=()
    )
    assert found == [
        ("Ada Lovelace", 0, 12, "PER", 3.0),
        ("met", 13, 16, "O", 2.0),
        ("Byron", 17, 22, "PER", 3.0),
        ("in", 23, 25, "PER", 1.0),
        ("Rome", 26, 30, "LOC", 5.0),
        (".", 30, 31, "MISC", 2.0),
    ]


def test_the_last_run_ends_with_the_last_token():
    (found,) = aggregated(windows_of(WORDS), logits(NONE, NONE, NONE, NONE, NONE, B_LOC, {I_LOC: 6}))
    assert found == [("Rome.", 26, 31, "LOC", 4.0)]


def test_a_score_is_the_mean_of_probabilities():
    rows = logits(B_PER, {I_PER: 4}, NONE, NONE, NONE, NONE, NONE)
    ((entity,),) = aggregated(windows_of(WORDS), rows, raw_scores=False)
    assert entity[4] == pytest.approx((softmax(rows[0])[B_PER] + softmax(rows[1])[I_PER]) / 2, rel=1e-6)
    assert entity[4].dtype == np.float32


def test_ignored_are_names_without_b_and_i():
    rows = logits(B_PER, NONE, B_LOC, MISC, NONE, NONE, NONE)
    assert [e[3] for e in aggregated(windows_of(WORDS), rows, ignored=("PER", "O"))[0]] == ["LOC", "MISC"]
    assert [e[3] for e in aggregated(windows_of(WORDS), rows, ignored=("B-PER", "O"))[0]] == ["PER", "LOC", "MISC"]


def test_a_name_is_what_follows_the_first_dash():
    labels = ("B-A-b", "I-A-b", "C-d")
    rows = np.eye(3, dtype=np.float32)
    found = entities.aggregate([TEXT], windows_of(WORDS[:3]), rows, labels, "simple", (), raw_scores=True)
    assert [(e.start, e.end, list(e.results)) for e in found[0]] == [(0, 12, ["A-b"]), (13, 16, ["d"])]


def test_tags_of_one_letter_are_two():
    labels = ("I-A", "I-B", "A")
    found = entities.aggregate(
        [TEXT], windows_of(WORDS[:3]), np.eye(3, dtype=np.float32), labels, "simple", (), raw_scores=True
    )
    assert [(e.end, list(e.results)) for e in found[0]] == [(3, ["A"]), (12, ["B"]), (16, ["A"])]


def test_special_tokens_belong_to_no_entity():
    rows = logits({B_PER: 9}, B_PER, {I_PER: 9}, I_PER)
    (found,) = aggregated(windows_of([(0, 0), (0, 3), (0, 0), (4, 12)], special=(0, 2)), rows)
    assert found == [("Ada Lovelace", 0, 12, "PER", 2.0)]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        # "Love" says a place by 3, "lace" a person by 5; "By" nothing by 1, "ron" a place by 3
        ("first", [("Ada", 0, 3, "PER", 2.0), ("Lovelace", 4, 12, "LOC", 3.0)]),
        ("max", [("Ada Lovelace", 0, 12, "PER", 3.5), ("Byron", 17, 22, "LOC", 3.0)]),
        ("average", [("Ada Lovelace", 0, 12, "PER", 2.25), ("Byron", 17, 22, "LOC", 1.5)]),
    ],
)
def test_a_word_has_the_label_of_its_first_surest_or_mean_token(strategy, expected):
    rows = logits(B_PER, {I_LOC: 3}, {I_PER: 5}, NONE, {NONE: 1}, {I_LOC: 3})
    (found,) = aggregated(windows_of(PIECES, continues=GOES_ON), rows, strategy)
    assert found == expected
    assert {entity[4].dtype for entity in found} == {np.dtype(np.float32)}


def test_of_tokens_that_are_as_sure_the_first_decides():
    rows = logits(B_PER, {I_LOC: 3}, {I_PER: 3}, NONE, {MISC: 3}, {I_LOC: 3})
    (found,) = aggregated(windows_of(PIECES, continues=GOES_ON), rows, "max")
    assert [entity[3] for entity in found] == ["PER", "LOC", "MISC"]


def test_each_piece_stands_alone_for_simple():
    (found,) = aggregated(windows_of(PIECES, continues=GOES_ON), logits(NONE, B_PER, B_PER, NONE, NONE, NONE))
    assert [entity[:3] for entity in found] == [("Love", 4, 8), ("lace", 8, 12)]


def test_no_word_and_no_entity_goes_on_from_one_text_into_another():
    """Though the first token of the second says that it goes on."""
    windows = windows_of([(0, 3), (4, 12)], [(0, 2), (2, 5)], continues=[False, False, True, True])
    texts = ["Ada Lovelace", "Byron"]
    words = aggregated(windows, logits(B_PER, I_PER, I_PER, I_PER), "first", texts=texts)
    assert [[entity[:3] for entity in of] for of in words] == [[("Ada Lovelace", 0, 12)], [("Byron", 0, 5)]]
    runs = aggregated(windows, logits(B_PER, I_PER, I_PER, I_PER), texts=texts)
    assert [[entity[:3] for entity in of] for of in runs] == [[("Ada Lovelace", 0, 12)], [("Byron", 0, 5)]]


@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
def test_texts_of_specials_have_no_entity(strategy):
    assert aggregated(windows_of([(0, 0)], special=(0,)), logits(B_PER), strategy, texts=[""]) == [[]]


def overlapping(first, second, of_first, of_second):
    """Entities of two windows over one text, each a token long."""
    return aggregated(windows_of([first], [second], owners=[0, 0]), logits({B_PER: of_first}, {B_LOC: of_second}))[0]


def test_of_two_windows_that_overlap_the_longer_entity_stays_then_the_surer():
    assert overlapping((0, 12), (4, 12), 1, 9) == [("Ada Lovelace", 0, 12, "PER", 1)]
    assert overlapping((4, 12), (0, 12), 9, 1) == [("Ada Lovelace", 0, 12, "LOC", 1)]
    assert overlapping((0, 8), (4, 12), 1, 9) == [("Lovelace", 4, 12, "LOC", 9)]
    assert overlapping((0, 8), (4, 12), 9, 1) == [("Ada Love", 0, 8, "PER", 9)]
    assert overlapping((0, 3), (0, 3), 2, 2) == [("Ada", 0, 3, "PER", 2)], "of two that are the same the first"


def test_entities_that_meet_do_not_overlap():
    assert [entity[0] for entity in overlapping((0, 4), (4, 12), 1, 9)] == ["Ada ", "Lovelace"]


def test_three_that_overlap_in_a_row():
    windows = windows_of([(0, 3)], [(2, 8)], [(7, 9)], owners=[0, 0, 0])
    (found,) = aggregated(windows, logits(B_PER, B_LOC, B_PER))
    assert [entity[1:3] for entity in found] == [(2, 8)]


def test_in_one_window_all_stay():
    """As the pipeline's: it looks for overlaps between windows only."""
    (found,) = aggregated(windows_of([(0, 3), (0, 12)]), logits(B_PER, B_LOC))
    assert [entity[1:3] for entity in found] == [(0, 3), (0, 12)]


def test_only_the_text_of_several_windows_is_looked_through():
    windows = windows_of([(0, 3), (0, 3)], [(0, 3)], [(0, 3)], owners=[0, 1, 1])
    found = aggregated(windows, logits(B_PER, B_PER, B_PER, B_PER), texts=["Ada", "Ada"])
    assert [len(of) for of in found] == [2, 1]


# Strategy `none`

VOCABULARY = ["[CLS]", "[UNK]", "Ada", "##x"]


def tokens_of(windows, rows, texts=(TEXT,), unknown=1, raw_scores=True):
    return entities.tokens(list(texts), windows, rows, LABELS, VOCABULARY, unknown, raw_scores=raw_scores)


def test_each_token_with_its_best_label():
    windows = windows_of([(0, 0), (0, 3), (4, 12)], ids=[0, 2, 1], special=(0,))
    rows = logits(NONE, B_PER, {I_PER: 4})
    (found,) = tokens_of(windows, rows, raw_scores=False)
    assert [(e.token, e.token_id, e.start, e.end) for e in found] == [
        ("[CLS]", 0, 0, 0),
        ("Ada", 2, 0, 3),
        ("Lovelace", 1, 4, 12),
    ], "and of the one that the vocabulary lacks the text"
    assert [list(e.results) for e in found] == [["O"], ["B-PER"], ["I-PER"]]
    assert found[2].results["I-PER"] == pytest.approx(softmax(rows[2])[I_PER], rel=1e-6)


def test_each_token_with_the_logits_of_all_labels():
    rows = logits({B_PER: 3, NONE: -1})
    ((token,),) = tokens_of(windows_of([(0, 3)], ids=[2]), rows)
    assert token.results == dict(zip(LABELS, rows[0], strict=True))


def test_a_special_token_is_called_by_its_name_though_it_is_the_unknown_one():
    ((token,),) = tokens_of(windows_of([(0, 3)], ids=[1], special=(0,)), logits(NONE))
    assert token.token == "[UNK]"
    ((token,),) = tokens_of(windows_of([(0, 3)], ids=[1]), logits(NONE), unknown=None)
    assert token.token == "[UNK]"


def test_a_token_of_two_windows_is_told_once():
    windows = windows_of(
        [(0, 3), (4, 12)], [(4, 12), (13, 16)], [(0, 2)], owners=[0, 0, 1], inner=[1, 0, 1, 1, 1], ids=[2] * 5
    )
    found = tokens_of(windows, logits(NONE, B_PER, B_LOC, MISC, I_LOC), texts=[TEXT, "in"])
    assert [[(e.start, max(e.results, key=e.results.get)) for e in of] for of in found] == [
        [(0, "O"), (4, "B-LOC"), (13, "MISC")],
        [(0, "I-LOC")],
    ]
