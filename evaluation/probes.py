"""Linear probes on frozen features: which labels does a representation contain?

A probe sees a clip's frames pooled over time. All arms get the same folds and the same grid of C.
Intervals come from a bootstrap over test clips. They hold for these trained probes. A probe that is
always right has an interval without width.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from joblib import Parallel, delayed
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from ..runtime import UserError
from .statistics import clip_bootstrap

REGRESSION: dict = {
    "C": [0.001, 0.01, 0.1, 1.0, 10.0],
    "C_without_validation": 1.0,
    "max_iter": 2000,
}
RESAMPLES = 2000
POOLINGS = ("mean", "mean_deviation")


def pool(frames: np.ndarray, pooling: str) -> np.ndarray:
    """Returns the mean over frames of shape `(frames, channels)`, or it and their deviation."""
    mean = frames.mean(0)
    return mean if pooling == "mean" else np.concatenate([mean, frames.std(0)])


class Fold(NamedTuple):
    """One test of a probe, as indices of clips."""

    name: str
    train: np.ndarray
    validation: np.ndarray  # the part of `train` on which C is chosen, or none
    test: np.ndarray


def build_folds(labels: np.ndarray, parts: np.ndarray, is_split: bool) -> list[Fold]:
    """Tests each fold after training on the others. C is chosen on the next fold.

    A split is one such test, with the fixed names train, val and test. A validation part is left
    out if the rest lacks a class.

    Args:
        labels: Shape `(clips,)`.
        parts: The name of each clip's fold, or of its part of a split.
        is_split: Whether they are parts of a split.

    Raises:
        UserError: If a part is missing or unknown, or a class is alone or in one part only.
    """
    if len(set(labels)) < 2:
        raise UserError(f"all clips have the label {labels[0]!r}: expected two classes or more")
    # Fold 10 comes after fold 9.
    names = sorted(set(parts), key=lambda name: (len(name), name))
    pairs = [("test", "val")] if is_split else list(zip(names, names[1:] + names[:1]))
    if is_split and not {"test", "train"} <= set(names) <= {"test", "train", "val"}:
        raise UserError(f"expected the splits train, test and, if any, val, not {', '.join(names)}")
    if len(names) < 2:
        raise UserError(f"all clips are in fold {names[0]}: expected two folds or more")
    folds = []
    for name, next_name in pairs:
        train, test = np.flatnonzero(parts != name), np.flatnonzero(parts == name)
        for label in sorted(set(labels[test]) - set(labels[train])):
            raise UserError(f"class {label!r} is in {name} only: no other part can train for it")
        validation = np.flatnonzero(parts == next_name)
        if set(labels[np.setdiff1d(train, validation)]) != set(labels[train]):
            validation = validation[:0]
        folds.append(Fold(name, train, validation, test))
    return folds


def probe_features(
    features: np.ndarray, labels: np.ndarray, fold: Fold, c: float | None = None
) -> tuple[np.ndarray, float]:
    """Trains and tests a logistic regression on pooled features, `(clips, channels)`.

    `c` is chosen on the fold's validation clips if it is not given. Returns the predicted labels of
    the test clips, and C. The labels of test clips are not read. Nothing is random.
    """
    if c is None:
        c = _choose_c(features, labels, fold)
    scaler = StandardScaler().fit(features[fold.train])
    probe = LogisticRegression(C=c, max_iter=REGRESSION["max_iter"])
    probe.fit(scaler.transform(features[fold.train]), labels[fold.train])
    return probe.predict(scaler.transform(features[fold.test])), c


def _choose_c(features: np.ndarray, labels: np.ndarray, fold: Fold) -> float:
    """Returns the C of highest accuracy. Of equal ones the smallest, the strongest regularisation.

    Each fit starts at the solution for the C before, which takes fewer iterations.
    """
    if not len(fold.validation):
        return REGRESSION["C_without_validation"]
    train = np.setdiff1d(fold.train, fold.validation)
    scaler = StandardScaler().fit(features[train])
    inputs = scaler.transform(features[train])
    held_out = scaler.transform(features[fold.validation])
    probe = LogisticRegression(max_iter=REGRESSION["max_iter"], warm_start=True)
    accuracies = []
    for c in REGRESSION["C"]:
        probe.set_params(C=c).fit(inputs, labels[train])
        accuracies.append(probe.score(held_out, labels[fold.validation]))
    return REGRESSION["C"][int(np.argmax(accuracies))]


@dataclass(frozen=True)
class ProbeTask:
    """The labels that a probe predicts."""

    labels: np.ndarray  # shape (clips,)
    folds: list[Fold]
    seed: int

    @property
    def test_clips(self) -> np.ndarray:
        """The indices of all test clips, in the order of the folds."""
        return np.concatenate([fold.test for fold in self.folds])

    @property
    def test_labels(self) -> np.ndarray:
        """The labels of all test clips, in the order of the folds."""
        return self.labels[self.test_clips]

    def run(
        self, features: np.ndarray, shuffled_with: list[float] | None = None
    ) -> tuple[np.ndarray, list[float]]:
        """Trains and tests a probe on every fold.

        `shuffled_with` has the C of each fold, as an earlier call chose them, for a control with
        shuffled training labels. Returns the predictions for `test_clips`, and the C.
        """
        calls = []
        for number, fold in enumerate(self.folds):
            labels, c = self.labels.copy(), None
            if shuffled_with is not None:
                c = shuffled_with[number]
                generator = np.random.default_rng([self.seed, number])
                labels[fold.train] = generator.permutation(self.labels[fold.train])
            calls.append(delayed(probe_features)(features, labels, fold, c))
        # A thread per fold. The matrices are too small to be worth threads of their own.
        with threadpool_limits(1):
            predicted, choices = zip(*Parallel(n_jobs=-1, backend="threading")(calls))
        return np.concatenate(predicted), list(choices)

    def predict_majority(self) -> np.ndarray:
        """Predicts the most common training label. Ties go to the first in the alphabet."""
        labels = [
            Counter(sorted(self.labels[fold.train])).most_common(1)[0][0] for fold in self.folds
        ]
        return np.repeat(labels, [len(fold.test) for fold in self.folds])

    def score(self, predicted: np.ndarray) -> dict:
        """Returns accuracy and macro F1 over all test clips."""
        labels = self.test_labels
        options: dict = {"labels": np.unique(labels), "average": "macro", "zero_division": 0}
        accuracy = float(np.mean(predicted == labels))
        macro_f1 = float(f1_score(labels, predicted, **options))
        return {"n": len(labels), "accuracy": accuracy, "macro_f1": macro_f1}


def add_intervals(
    results: dict[str, dict], predicted: dict[str, np.ndarray], labels: np.ndarray, seed: int
) -> list[dict]:
    """Adds `ci95_low` and `ci95_high` of the accuracy to the metrics of each arm.

    Returns the paired difference of every two arms, with its interval.
    """
    is_right = {arm: (predicted[arm] == labels).astype(float) for arm in results}
    # Each test clip is a row of its own.
    clips = [(f"{number:09}",) for number in range(len(labels))]
    columns = np.stack(list(is_right.values()), 1)
    samples = clip_bootstrap(columns, clips, np.zeros(len(labels), int), RESAMPLES, seed)[:, 0]
    samples_by_arm = dict(zip(results, samples.T))
    for arm, metrics in results.items():
        metrics |= _interval(samples_by_arm[arm])
    differences = []
    for first, second in combinations(results, 2):
        difference = float(is_right[first].mean() - is_right[second].mean())
        fields = _interval(samples_by_arm[first] - samples_by_arm[second])
        differences.append({"first": first, "second": second, "difference": difference, **fields})
    return differences


def _interval(samples: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(samples, [0.025, 0.975])
    return {"ci95_low": float(low), "ci95_high": float(high)}
