"""Accuracy of closed questions by question type and other groups, as an `evaluate.Metric`."""

import math
from collections import Counter

import datasets
import evaluate
from sklearn.metrics import f1_score, recall_score

SCORED = ("mcq", "yes_no", "entailment")


def wilson(correct: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion; (0, 1) of nothing."""
    if not n:
        return 0.0, 1.0
    p, width = correct / n, z * z / n
    half = z * math.sqrt(p * (1 - p) / n + width / (4 * n))
    return max(0.0, (p + width / 2 - half) / (1 + width)), min(
        1.0, (p + width / 2 + half) / (1 + width)
    )


def accuracy(predictions: list[str], references: list[str]) -> dict:
    """Accuracy with its interval; "" is no answer, and wrong."""
    correct = sum(bool(p) and p == r for p, r in zip(predictions, references))
    low, high = wilson(correct, len(references))
    return {
        "n": len(references),
        "accuracy": correct / len(references),
        "ci95_low": low,
        "ci95_high": high,
        "n_unparsed": sum(not p for p in predictions),
    }


def by_class(predictions: list[str], references: list[str], confusion: bool) -> dict:
    """Balanced accuracy, the mean recall of the right answers; with `confusion` macro F1, and counts by right answer."""
    labels, of = sorted(set(references)), {"average": "macro", "zero_division": 0.0}
    found = {"balanced_accuracy": float(recall_score(references, predictions, labels=labels, **of))}
    if confusion:
        found["macro_f1"] = float(f1_score(references, predictions, labels=labels, **of))
        counts = {
            label: Counter(p for p, r in zip(predictions, references) if r == label)
            for label in labels
        }
        found["confusion"] = {label: dict(sorted(of.items())) for label, of in counts.items()}
    return found


class ReasonAQAMetric(evaluate.Metric):
    """Accuracy of closed questions, its 95 % interval (Wilson) and the unparsed answers: of all rows (`micro`), by question
    type, their mean (`macro_accuracy`), and by any other grouping of the rows; balanced accuracy of each type, and macro F1
    and the confusion matrix of entailment.

    `predictions` are letters, "yes" or "no" ("" for none), `references` the right ones; an unparsed answer is wrong.
    `groups`, if given, maps a grouping's name to the group of each row.
    """

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description="",
            features=datasets.Features(
                {k: text for k in ("predictions", "references", "question_type")}
            ),
        )

    def _compute(self, predictions, references, question_type, groups=None):
        def rows(of, name):
            inside = [i for i, group in enumerate(of) if group == name]
            return [predictions[i] for i in inside], [references[i] for i in inside]

        types = {}
        for kind in SCORED:
            if kind in question_type:
                answered = rows(question_type, kind)
                types[kind] = {
                    **accuracy(*answered),
                    **by_class(*answered, confusion=kind == "entailment"),
                }
        found = {"question_type": types, "micro": accuracy(predictions, references)}
        found["macro_accuracy"] = (
            sum(of["accuracy"] for of in types.values()) / len(types) if types else None
        )
        for name, of in (groups or {}).items():
            found[name] = {group: accuracy(*rows(of, group)) for group in sorted(set(of))}
        return found
