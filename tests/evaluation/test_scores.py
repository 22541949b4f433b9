"""CIDEr-D against cases worked out by hand."""

from __future__ import annotations

import math

import pytest

from internvl.errors import InputError
from internvl.evaluation.scores import cider_d, exact, tokenize

DOG, CAT = "a dog runs fast", "the cat sleeps here"


def test_identical_captions_score_ten() -> None:
    mean, scores = cider_d([DOG, CAT], [[DOG], [CAT]])
    assert mean == pytest.approx(10.0)
    assert scores == pytest.approx([10.0, 10.0])


def test_disjoint_captions_score_nothing() -> None:
    assert cider_d(["red blue", "green grey"], [[DOG], [CAT]]) == (0.0, [0.0, 0.0])


def test_words_of_every_document_count_nothing() -> None:
    mean, _ = cider_d(["a", "a"], [["a dog"], ["a cat"]])
    assert mean == 0.0


def test_a_case_by_hand() -> None:
    # Two documents, so every n-gram of one of them weighs ln 2. Unigrams: 2 shared, norms sqrt 2 and
    # sqrt 3. Bigrams: 1 shared, norms 1 and sqrt 2. One bigram less than the reference: exp(-1 / 72).
    expected = 10 * math.exp(-1 / 72) * (2 / math.sqrt(6) + 1 / math.sqrt(2)) / 4
    _, scores = cider_d(["dog runs", CAT], [["dog runs fast"], [CAT]])
    assert scores[0] == pytest.approx(expected)


def test_repeated_words_are_clipped() -> None:
    # "dog dog" weighs 2 ln 2 but counts as ln 2: (1 * 1) / (2 * 1) for unigrams. Its one bigram is not in
    # the reference, which has none.
    _, scores = cider_d(["dog dog", "cat"], [["dog"], ["cat"]])
    assert scores[0] == pytest.approx(10 * math.exp(-1 / 72) * 0.5 / 4)


def test_chinese_captions_share_their_characters() -> None:
    _, scores = cider_d(["一只狗在草地上奔跑", "一个人"], [["一只黑狗在草地上奔跑。"], ["两个孩子在海边。"]])
    assert scores[0] > 2 > scores[1]


def test_references_are_averaged() -> None:
    # Both references of the first example hold "dog", so it is in one document; the second matches nothing.
    _, scores = cider_d(["dog", "cat"], [["dog", "bird"], ["cat"]])
    assert scores[0] == pytest.approx(10 * (1 / 4) / 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A dog runs .", ["a", "dog", "runs"]),
        ("Two men, one's hat; T-shirts!", ["two", "men", "one", "'s", "hat", "t-shirts"]),
        ("It doesn't fly", ["it", "does", "n't", "fly"]),
        ("3.5 dogs at 10:30", ["3.5", "dogs", "at", "10:30"]),
        ("a 3-year-old, 2nd in the 1950s", ["a", "3-year-old", "2nd", "in", "the", "1950s"]),
        ("cannot: 4x4, 7 a.m., U.S.", ["can", "not", "4x4", "7", "a.m.", "u.s."]),
        ("jump.A dog, no. 5 - 6", ["jump", "a", "dog", "no", "5", "6"]),
        ("", []),
        ("一只狗在草地上奔跑。", list("一只狗在草地上奔跑")),
        ("2只 T恤 dogs狗don't", ["2", "只", "t", "恤", "dogs", "狗", "do", "n't"]),
        ("犬がボールで遊ぶ", list("犬がボールで遊ぶ")),
    ],
)
def test_tokenize(text: str, words: list[str]) -> None:
    assert tokenize(text) == words


@pytest.mark.parametrize(("answers", "references"), [([], []), (["a"], [[]]), (["a", "b"], [["a"]])])
def test_empty_and_unequal_input_is_refused(answers: list[str], references: list[list[str]]) -> None:
    with pytest.raises(InputError):
        cider_d(answers, references)


def test_exact_leaves_case_spaces_and_a_full_stop_aside() -> None:
    answers = ["  Two  dogs. ", "two dogs", "three", "2.5"]
    references = [["2", "two dogs"], ["Two dogs."], ["four", "five"], ["2.5"]]
    assert exact(answers, references) == (0.75, [1.0, 1.0, 0.0, 1.0])
    with pytest.raises(InputError, match="1 answers but 2 lists"):
        exact(["a"], [["a"], ["b"]])
    with pytest.raises(InputError, match="at least one reference"):
        exact(["a"], [[]])
