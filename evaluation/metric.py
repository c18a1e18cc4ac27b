"""Accuracy by question type, subtype and category, as an `evaluate.Metric`."""

import math

import datasets
import evaluate

SCORED = ("mcq", "yes_no", "entailment")


def wilson(correct: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion; (0, 1) of nothing."""
    if not n:
        return 0.0, 1.0
    p, width = correct / n, z * z / n
    half = z * math.sqrt(p * (1 - p) / n + width / (4 * n))
    return max(0.0, (p + width / 2 - half) / (1 + width)), min(1.0, (p + width / 2 + half) / (1 + width))


class ReasonAQAMetric(evaluate.Metric):
    """Accuracy, its 95 % interval and the unparsed answers, by question type, subtype and category; micro, and
    macro over types.

    `predictions` are parsed answers ("" for none), `references` the right ones; an unparsed answer is wrong.
    """

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.__doc__, citation="", inputs_description="",
            features=datasets.Features(
                {k: text for k in ("predictions", "references", "question_type", "subtype", "category")}),
        )  # fmt: skip

    def _compute(self, predictions, references, question_type, subtype, category):
        def group(of):
            hits = [bool(p) and p == r for p, r, inside in zip(predictions, references, of) if inside]
            low, high = wilson(sum(hits), len(hits))
            return {
                "n": len(hits),
                "accuracy": sum(hits) / len(hits) if hits else None,
                "ci95_low": low,
                "ci95_high": high,
                "n_unparsed": sum(not p for p, inside in zip(predictions, of) if inside),
            }

        types = {t: group([q == t for q in question_type]) for t in SCORED if t in question_type}
        subtypes = {s: group([x == s for x in subtype]) for s in sorted(set(subtype))}
        categories = {c: group([x == c for x in category]) for c in sorted(set(category))}
        micro = group([True] * len(predictions))
        macro = sum(t["accuracy"] for t in types.values()) / len(types) if types else None
        return {
            "question_type": types, "subtype": subtypes, "category": categories, "micro": micro, "macro_accuracy": macro,
        }  # fmt: skip
