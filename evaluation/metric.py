"""Accuracy of closed questions, by question type and other groups, as an `evaluate.Metric`.

```python
from audiolm.evaluation import ReasonAQAMetric

ReasonAQAMetric().compute(predictions=["a"], references=["b"], question_type=["mcq"])
```
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import datasets
import evaluate
from sklearn.metrics import f1_score, recall_score

from ..data.reasonaqa import CLOSED_QUESTION_TYPES


def wilson(correct: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a proportion, or (0, 1) without data."""
    if not n:
        return 0.0, 1.0
    p = correct / n
    width = z * z / n
    half = z * math.sqrt(p * (1 - p) / n + width / (4 * n))
    low = (p + width / 2 - half) / (1 + width)
    high = (p + width / 2 + half) / (1 + width)
    return max(0.0, low), min(1.0, high)


def accuracy(predictions: Sequence[str], references: Sequence[str]) -> dict:
    """Returns the accuracy with its interval. "" is no answer, and wrong."""
    correct = sum(bool(p) and p == r for p, r in zip(predictions, references))
    low, high = wilson(correct, len(references))
    return {
        "n": len(references),
        "accuracy": correct / len(references),
        "ci95_low": low,
        "ci95_high": high,
        "n_unparsed": sum(not p for p in predictions),
    }


def class_metrics(predictions: Sequence[str], references: Sequence[str], confusion: bool) -> dict:
    """Returns the balanced accuracy: the mean recall of the right answers.

    With `confusion` also macro F1, and the counts of predictions by right answer.
    """
    labels = sorted(set(references))
    options = {"labels": labels, "average": "macro", "zero_division": 0.0}
    metrics = {"balanced_accuracy": float(recall_score(references, predictions, **options))}
    if confusion:
        metrics["macro_f1"] = float(f1_score(references, predictions, **options))
        metrics["confusion"] = {}
        for label in labels:
            counts = Counter(p for p, r in zip(predictions, references) if r == label)
            metrics["confusion"][label] = dict(sorted(counts.items()))
    return metrics


class ReasonAQAMetric(evaluate.Metric):
    """Accuracy of closed questions with its 95 % interval (Wilson) and the unparsed answers.

    The result has the accuracy of all rows (`micro`), by question type, the mean over types
    (`macro_accuracy`), and by every other grouping. Each type has its balanced accuracy.
    Entailment also has macro F1 and its confusion matrix.

    `predictions` are letters, "yes" or "no", and "" for an unparsed answer, which is wrong.
    `references` are the right ones. `groups` maps the name of a grouping to each row's group.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        names = ("predictions", "references", "question_type")
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="",
            features=datasets.Features(dict.fromkeys(names, text)),
        )

    def _compute(  # ty: ignore[incompatible-method-override]
        self,
        predictions: list[str],
        references: list[str],
        question_type: list[str],
        groups: Mapping[str, list[str]] | None = None,
    ) -> dict:
        def rows_in(group: str, row_groups: list[str]) -> tuple[list[str], list[str]]:
            indices = [index for index, name in enumerate(row_groups) if name == group]
            return [predictions[i] for i in indices], [references[i] for i in indices]

        by_type = {}
        for name in CLOSED_QUESTION_TYPES:
            if name in question_type:
                answers = rows_in(name, question_type)
                by_type[name] = accuracy(*answers)
                by_type[name] |= class_metrics(*answers, confusion=name == "entailment")
        accuracies = [metrics["accuracy"] for metrics in by_type.values()]
        result = {"question_type": by_type, "micro": accuracy(predictions, references)}
        result["macro_accuracy"] = sum(accuracies) / len(accuracies) if accuracies else None
        for grouping, row_groups in (groups or {}).items():
            result[grouping] = {
                group: accuracy(*rows_in(group, row_groups)) for group in sorted(set(row_groups))
            }
        return result
