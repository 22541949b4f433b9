"""Scores of answers against all right ones: CIDEr-D as the COCO evaluation defines it, and exact agreement.

Pure functions of texts. CIDEr-D: Vedantam, Zitnick, Parikh, "CIDEr: Consensus-based Image Description
Evaluation" (arXiv 1411.5726), section 5, with the constants of the published evaluation: n-grams of 1 to 4
words, length penalty sigma 6, factor 10, no stemming, document frequencies from the references scored here.

The published evaluation tokenises with a Java program (the Penn Treebank tokenizer). `tokenize` does the
same for plain English captions: lower case, possessive and n't split off, hyphenated words whole,
punctuation dropped. Scores of texts with unusual characters may differ in the second decimal. Chinese and
Japanese, which write no spaces, are read character by character, as their captions usually are.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from internvl.errors import InputError

MAX_WORDS = 4
SIGMA = 6.0
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Kana and Chinese characters."""
_LETTER = rf"[^\W{_UNSPACED}]"
_WORD = re.compile(
    rf"[{_UNSPACED}]|\d+(?:[.,:]\d+)*(?!-?{_LETTER})|n't\b|'(?:s|re|ve|ll|d|m)\b|{_LETTER}+?(?=n't\b)"
    rf"|\bcan(?=not\b)|{_LETTER}(?:\.{_LETTER})+\b\.?|{_LETTER}+(?:[-/&]{_LETTER}+)*"
)

Grams = Counter[tuple[str, ...]]


def tokenize(text: str) -> list[str]:
    """Words of a caption in lower case, without punctuation."""
    return _WORD.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


def cider_d(answers: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """CIDEr-D of `answers[i]` against its `references[i]`: the mean, and each example's score (0 to 10).

    Published tables give the mean times 100 as often as the mean itself. With one example every n-gram
    occurs in every document, and the score is 0 by definition. Raises InputError for unequal numbers,
    for an empty list, and for an example without references.
    """
    _check(answers, references)
    measure = CiderD(references)
    scores = [measure(answer, texts) for answer, texts in zip(answers, references, strict=True)]
    return sum(scores) / len(scores), scores


class CiderD:
    """CIDEr-D of single answers, with document frequencies of a fixed collection: each of `documents` is the
    references of one example. Raises InputError for an empty collection."""

    def __init__(self, documents: Sequence[Sequence[str]]) -> None:
        if not documents:
            raise InputError("document frequencies need at least one document")
        self.count = len(documents)
        self.documents: Grams = Counter()
        for texts in documents:
            self.documents.update(set().union(*map(_grams, texts)))

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        """The score of `answer` (0 to 10)."""
        return _score(self._vector(answer), [self._vector(text) for text in references])

    def _vector(self, text: str) -> _Vector:
        return _Vector(_grams(text), self.documents, self.count)


def _check(answers: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(answers) != len(references):
        raise InputError(
            f"{len(answers)} answers but {len(references)} lists of references: one list an answer"
        )
    if not answers or not all(references):
        raise InputError("a score needs at least one answer, and at least one reference for each")


def _grams(text: str) -> Grams:
    words = tokenize(text)
    return Counter(
        tuple(words[start : start + size])
        for size in range(1, MAX_WORDS + 1)
        for start in range(len(words) - size + 1)
    )


class _Vector:
    """TF-IDF weights by n-gram length, their norms, and the number of bigrams that stands for length."""

    def __init__(self, grams: Grams, documents: Grams, num_documents: int) -> None:
        self.weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_WORDS)]
        for gram, count in grams.items():
            rarity = math.log(num_documents) - math.log(max(1, documents[gram]))
            self.weights[len(gram) - 1][gram] = count * rarity
        self.norms = [math.sqrt(sum(weight**2 for weight in part.values())) for part in self.weights]
        self.length = sum(count for gram, count in grams.items() if len(gram) == 2)


def _score(answer: _Vector, references: Sequence[_Vector]) -> float:
    total = 0.0
    for reference in references:
        penalty = math.exp(-((answer.length - reference.length) ** 2) / (2 * SIGMA**2))
        total += penalty * sum(_similarity(answer, reference, size) for size in range(MAX_WORDS)) / MAX_WORDS
    return 10.0 * total / len(references)


def _similarity(answer: _Vector, reference: _Vector, size: int) -> float:
    """Cosine in which the answer's weight of an n-gram counts no more than the reference's."""
    norm = answer.norms[size] * reference.norms[size]
    if norm == 0.0:
        return 0.0
    theirs = reference.weights[size]
    shared = sum(
        min(weight, theirs[gram]) * theirs[gram]
        for gram, weight in answer.weights[size].items()
        if gram in theirs
    )
    return shared / norm


def exact(answers: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """The share of `answers[i]` that are one of `references[i]`, and 1 or 0 for each: case, spaces and a full
    stop at the end do not count. Raises InputError as `cider_d`."""
    _check(answers, references)
    scores = [
        float(_plain(answer) in map(_plain, texts)) for answer, texts in zip(answers, references, strict=True)
    ]
    return sum(scores) / len(scores), scores


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


Score = Callable[[Sequence[str], Sequence[Sequence[str]]], tuple[float, list[float]]]

SCORES: Mapping[str, Score] = {"cider": cider_d, "exact": exact}
"""By name: answers and their references to the mean, and each answer's own."""
