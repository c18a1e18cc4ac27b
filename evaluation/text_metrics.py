"""Metrics of generated texts (captions, differences, details).

All metrics see the words of [`tokenise`]. METEOR, SPICE and the usual tokeniser of captioning need
Java, so they are not computed here. All scales are 0 to 1, but CIDEr-D's is 0 to 10. Answers of a
subtype may begin alike ("The audio 1 is ..."), which raises BLEU and ROUGE-L.
"""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import chain, zip_longest
from types import SimpleNamespace

import datasets
import evaluate
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


class TextMetric(evaluate.Metric):
    """BLEU-1 and -4, ROUGE-L and CIDEr-D of texts with references.

    - `bleu_1`, `bleu_4`: sacrebleu's, of the whole set, without smoothing. The reference with the
      closest length counts.
    - `rouge_l`: rouge_score's F against each item's best reference, averaged over items.
    - `cider_d`: pycocoevalcap's. An n-gram weighs less if more items have it in their references.
      So the value depends on all references of the set, and values of subsets do not average to it.
      An answer of three words, without 4-grams, scores at most 7.5.

    A metric without a value is None, and `not_run` says why. The order of items and references has
    no influence.

    Raises:
        ValueError: If an item has no reference.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="",
            features=datasets.Features({"predictions": text, "references": datasets.List(text)}),
        )

    def _compute(  # ty: ignore[incompatible-method-override]
        self, predictions: list[str], references: list[list[str]]
    ) -> dict:
        items = []
        for number, (prediction, texts) in enumerate(zip(predictions, references)):
            if not texts:
                raise ValueError(f"item {number} ({prediction[:80]!r}) has no reference")
            items.append((tokenise(prediction), tuple(sorted(map(tokenise, texts)))))
        # Sums of floats depend on their order.
        items.sort()
        metrics: dict = {"n": len(items), "not_run": {}}
        for name, measure in METRICS.items():
            try:
                if not items:
                    raise NotRun("there are no items")
                metrics[name] = measure(items)
            except NotRun as reason:
                metrics[name] = None
                metrics["not_run"][name] = str(reason)
        return metrics


def text_items(rows: Iterable[Mapping]) -> list[dict]:
    """Merges predicted rows that ask the same about the same clips into items.

    The references of a caption are all answers with its clips and subtype, whatever the prompt.
    Those of another item are the answers of its own rows. An item's first row is the one whose
    answer comes first in the alphabet, so the order of rows only decides the order of items.

    Rows of other question types are skipped.

    Returns:
        `prediction`, `question_type` and the sorted `references` of each item.
    """
    references = defaultdict(list)
    candidates = defaultdict(list)
    for row in rows:
        question_type = row["question_type"]
        if question_type not in TEXT_TYPES:
            continue
        text = row["answers"]["generate"]["text"]
        question = row["subtype"] if question_type == "caption" else row["input"]
        key = (question_type, row["filepath1"], row["filepath2"], question)
        references[key].append(row["answer"])
        candidates[key, row["input"]].append((row["answer"], text))
    items = []
    for (key, _), answered in candidates.items():
        _, text = min(answered)
        item = {"prediction": text, "references": sorted(references[key]), "question_type": key[0]}
        items.append(item)
    return items


def text_metrics(rows: Iterable[Mapping]) -> dict:
    """Returns the values of [`TextMetric`] by question type, of rows as in [`text_items`]."""
    items = text_items(rows)
    metrics = {}
    for question_type in TEXT_TYPES:
        selected = [item for item in items if item["question_type"] == question_type]
        if selected:
            predictions = [item["prediction"] for item in selected]
            references = [item["references"] for item in selected]
            metrics[question_type] = TextMetric().compute(
                predictions=predictions, references=references
            )
    return metrics


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
