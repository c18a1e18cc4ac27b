"""Accuracy of closed questions, by question type and other groups, as an `evaluate.Metric`.

```python
from audiolm.evaluation.metric import ReasonAQAMetric

ReasonAQAMetric().compute(predictions=["a"], references=["b"], question_type=["mcq"])
```
"""

from collections.abc import Mapping, Sequence
from itertools import chain

import datasets
import evaluate
import numpy as np
from sklearn.metrics import recall_score

from ..data.reasonaqa import CLOSED_QUESTION_TYPES
from .estimates import ResampledAccuracies, describe_accuracy

# Only variances are taken of the resamples, so fewer are enough than for quantiles.
RESAMPLES = 2_000


class ReasonAQAMetric(evaluate.Metric):
    """Accuracy of closed questions with its 95 % interval and the unparsed answers.

    The result has the accuracy of all rows (`micro`), by question type, the mean over types
    (`macro`, `macro_accuracy`), and by every other grouping. Each type has its balanced accuracy,
    the mean recall of the right answers. Intervals are bootstraps over clips. They hold for other
    clips, not for another training of the model.

    `predictions` are letters, "yes" or "no", and "" for an unparsed answer, which is wrong.
    `references` are the right ones. `groups` maps the name of a grouping to each row's group.
    `clips` has the names of each row's one or two clips. Without it each row has its own clip.
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
        clips: Sequence[tuple[str, ...]] | None = None,
    ) -> dict:
        pairs = list(zip(predictions, references))
        clips = clips or [(str(number),) for number in range(len(pairs))]
        result = accuracies(pairs, {"question_type": question_type}, clips)
        by_type = {
            name: result["question_type"][name]
            for name in CLOSED_QUESTION_TYPES
            if name in result["question_type"]
        }
        for name, cell in by_type.items():
            answers = [pair for pair, row_type in zip(pairs, question_type) if row_type == name]
            predicted, correct = zip(*answers)
            options: dict = {"labels": sorted(set(correct)), "average": "macro"}
            recall = recall_score(correct, predicted, zero_division=0.0, **options)
            cell["balanced_accuracy"] = float(recall)
        others = accuracies(pairs, {**(groups or {}), "micro": [""] * len(pairs)}, clips)
        return {
            "question_type": by_type,
            "micro": others.pop("micro").get(""),
            "macro": result["mean"],
            "macro_accuracy": (result["mean"] or {}).get("accuracy"),
            **{name: cells for name, cells in others.items() if name != "mean"},
        }


def accuracies(
    pairs: Sequence[tuple[str, str]],
    groupings: Mapping[str, Sequence[str]],
    clips: Sequence[tuple[str, ...]],
) -> dict:
    """Returns accuracies with their intervals over clips.

    Args:
        pairs: Prediction and reference of each row. "" is no answer, and wrong.
        groupings: The group of each row, by grouping.
        clips: Names of the one or two clips of each row.

    Returns:
        The accuracy of each group, by grouping, and the `mean` over all groups. None without rows.
    """
    if not pairs:
        return {**{name: {} for name in groupings}, "mean": None}
    # All groupings are resampled together: each row occurs once for each grouping.
    labels = [[(name, group) for group in row_groups] for name, row_groups in groupings.items()]
    cells = sorted(set(chain.from_iterable(labels)))
    numbers = {cell: number for number, cell in enumerate(cells)}
    row_groups = np.array([numbers[label] for label in chain.from_iterable(labels)])
    is_correct = [bool(predicted) and predicted == reference for predicted, reference in pairs]
    outcomes = {"": np.array([is_correct * len(groupings)], float)}
    resampled = ResampledAccuracies(outcomes, [*clips] * len(groupings), row_groups, RESAMPLES)
    unparsed = np.tile([not predicted for predicted, _ in pairs], len(groupings))
    result: dict = {name: {} for name in groupings}
    for number, (name, group) in enumerate(cells):
        is_inside = row_groups == number
        cell = describe_accuracy(resampled.estimate("", row_group=number), is_inside.sum())
        result[name][group] = cell | {"n_unparsed": int(unparsed[is_inside].sum())}
    return {**result, "mean": describe_accuracy(resampled.estimate(""), len(pairs))}
