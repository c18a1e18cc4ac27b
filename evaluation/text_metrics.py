"""Metrics of generated texts (captions, differences, details).

All metrics see the words of [`tokenise`]. METEOR, SPICE and the usual tokeniser of captioning need
Java, so they are not computed here. All scales are 0 to 1, but CIDEr-D's is 0 to 10. Answers of a
subtype may begin alike ("The audio 1 is ..."), which raises BLEU and ROUGE-L.
"""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from types import SimpleNamespace

from sacrebleu.metrics.bleu import BLEU, BLEUScore

# A prediction and its references.
Texts = tuple[str, tuple[str, ...]]
TEXT_TYPES = ("difference", "caption", "detail")
_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+|(?<=\d)[.,]\d[^\W_]*)*")


class NotRun(Exception):
    """A metric has no value. The message says why, and what to do."""


def tokenise(text: str) -> str:
    """Returns the words of a text in lower case, separated by one space.

    Punctuation is dropped, except apostrophes and hyphens inside a word. Points and commas stay
    inside a number. Markup is not understood: its letters count as words.
    """
    text = unicodedata.normalize("NFC", text).replace("\u2019", "'").lower()
    return " ".join(_WORD.findall(text))


def score_texts(predictions: Iterable[str], references: Iterable[Sequence[str]]) -> dict:
    """Returns BLEU-1 and -4, ROUGE-L and CIDEr-D of texts with one or more references each.

    - `bleu_1`, `bleu_4`: sacrebleu's, of the whole set, without smoothing. The reference with the
      closest length counts.
    - `rouge_l`: rouge_score's F against each item's best reference, averaged over items.
    - `cider_d`: pycocoevalcap's. An n-gram weighs less if more items have it in their references.
      So the value depends on all references of the set, and values of subsets do not average to it.
      An answer of three words, without 4-grams, scores at most 7.5.

    A metric without a value is None, and `not_run` says why. The order of items and references has
    no influence, because sums of floats are in the order of the sorted items.
    """
    items = [
        (tokenise(prediction), tuple(sorted(map(tokenise, texts))))
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    items.sort()
    metrics: dict = {"n": len(items), "not_run": {}}
    for name, measure in METRICS.items():
        try:
            metrics[name] = measure(items)
        except NotRun as reason:
            metrics[name] = None
            metrics["not_run"][name] = str(reason)
    return metrics


def text_items(rows: Iterable[Mapping]) -> dict[str, list[tuple[str, list[str]]]]:
    """Merges predicted rows that ask the same about the same clips into items.

    The references of a caption are all answers with its clips and subtype, whatever the prompt.
    Those of another item are the answers of its own rows. An item's first row is the one whose
    answer comes first in the alphabet, so the order of rows only decides the order of items.

    Returns:
        Prediction and sorted references of each item, by question type. Rows of other types than
        `TEXT_TYPES` are skipped.
    """
    references = defaultdict(list)
    candidates = defaultdict(list)
    for row in rows:
        question_type = row["question_type"]
        if question_type in TEXT_TYPES:
            question = row["subtype"] if question_type == "caption" else row["input"]
            key = (question_type, row["filepath1"], row["filepath2"], question)
            references[key].append(row["answer"])
            text = row["answers"]["generate"]["text"]
            candidates[key, row["input"]].append((row["answer"], text))
    items = defaultdict(list)
    for (key, _), answers in candidates.items():
        items[key[0]].append((min(answers)[1], sorted(references[key])))
    return items


def text_metrics(rows: Iterable[Mapping]) -> dict:
    """Returns [`score_texts`] by question type, of rows as in [`text_items`]."""
    return {name: score_texts(*zip(*items)) for name, items in text_items(rows).items()}


def _corpus_bleu(items: list[Texts]) -> BLEUScore:
    predictions, references = zip(*items)
    metric = BLEU(tokenize="none", smooth_method="none")
    # sacrebleu reads a list of first references, a list of second ones, and so on.
    return metric.corpus_score(list(predictions), list(map(list, zip_longest(*references))))


def _bleu_1(items: list[Texts]) -> float:
    score = _corpus_bleu(items)
    return score.bp * score.precisions[0] / 100


def _bleu_4(items: list[Texts]) -> float:
    # With shorter references even the right answers have BLEU-4 0.
    references = chain.from_iterable(references for _, references in items)
    if all(text.count(" ") < 3 for text in references):
        raise NotRun("no reference has four words")
    return min(1.0, _corpus_bleu(items).score / 100)


def _rouge_l(items: list[Texts]) -> float:
    # rouge_score imports all of nltk, which takes seconds.
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=SimpleNamespace(tokenize=str.split))
    scores = [scorer.score_multi(references, text)["rougeL"] for text, references in items]
    return math.fsum(score.fmeasure for score in scores) / len(items)


def _cider_d(items: list[Texts]) -> float:
    # With one set of references every weight is log(1) = 0, and right answers score 0.
    if len({frozenset(references) for _, references in items}) < 2:
        raise NotRun("needs at least two items with different references, to weigh n-grams by them")
    try:
        from pycocoevalcap.cider.cider_scorer import CiderScorer
    except ImportError as error:
        raise NotRun("needs pycocoevalcap: `uv sync --extra captions`") from error
    scorer = CiderScorer(n=4, sigma=6.0)
    for prediction, references in items:
        scorer += (prediction, list(references))
    return float(scorer.compute_score()[0])


METRICS = {"bleu_1": _bleu_1, "bleu_4": _bleu_4, "rouge_l": _rouge_l, "cider_d": _cider_d}
