"""Linear probes on frozen features: which labels does a representation contain?

A probe sees a clip's frames pooled over time. All arms get the same folds and the same grid of C.
Intervals come from a bootstrap over test clips. They hold for these trained probes. A probe that is
always right has an interval without width.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from joblib import Parallel, delayed
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from .probe_folds import Fold
from .statistics import clip_bootstrap, interval

REGRESSION: dict = {
    "C": [0.001, 0.01, 0.1, 1.0, 10.0],
    "C_without_validation": 1.0,
    "max_iter": 2000,
}
RESAMPLES = 2000


def pool_mean(frames: np.ndarray) -> np.ndarray:
    """Returns the mean over frames. Their shape is `(frames, channels)`."""
    return frames.mean(0)


def pool_mean_deviation(frames: np.ndarray) -> np.ndarray:
    """Returns the mean and the standard deviation over frames, shape `(2 * channels,)`."""
    return np.concatenate([frames.mean(0), frames.std(0)])


POOLINGS = {"mean": pool_mean, "mean_deviation": pool_mean_deviation}


def probe_features(
    features: np.ndarray, labels: np.ndarray, fold: Fold, c: float | None = None
) -> tuple[np.ndarray, dict]:
    """Trains and tests a logistic regression on pooled features, `(clips, channels)`.

    `c` is chosen on the fold's validation clips if it is not given. Returns the predicted labels of
    the test clips, and C. The labels of test clips are not read. Nothing is random.
    """
    inner = np.setdiff1d(fold.train, fold.validation)
    if c is None:
        c = REGRESSION["C_without_validation"]
        if len(fold.validation) and len(set(labels[inner])) > 1:
            c = _choose_c(features, labels, inner, fold.validation)
    scaler = StandardScaler().fit(features[fold.train])
    probe = _logistic_regression(c).fit(scaler.transform(features[fold.train]), labels[fold.train])
    is_converged = bool(probe.n_iter_.max() < REGRESSION["max_iter"])
    predicted = probe.predict(scaler.transform(features[fold.test]))
    return predicted, {"C": c, "converged": is_converged}


def _choose_c(
    features: np.ndarray, labels: np.ndarray, train: np.ndarray, validation: np.ndarray
) -> float:
    """Returns the C of highest accuracy. Of equal ones the smallest, the strongest regularisation.

    Each fit starts at the solution for the C before, which takes fewer iterations.
    """
    scaler = StandardScaler().fit(features[train])
    inputs, held_out = scaler.transform(features[train]), scaler.transform(features[validation])
    probe = _logistic_regression(REGRESSION["C"][0])
    accuracies = []
    for c in REGRESSION["C"]:
        probe.set_params(C=c).fit(inputs, labels[train])
        accuracies.append(probe.score(held_out, labels[validation]))
    return REGRESSION["C"][int(np.argmax(accuracies))]


def _logistic_regression(c: float) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=REGRESSION["max_iter"], warm_start=True)


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
        self, features: np.ndarray, shuffled_with: dict | None = None
    ) -> tuple[np.ndarray, dict]:
        """Trains and tests a probe on every fold.

        `shuffled_with` are the settings of an earlier call, for a control with shuffled training
        labels and the same C. Returns the predictions for `test_clips`, and the settings that each
        fold chose.
        """
        calls = []
        for number, fold in enumerate(self.folds):
            labels, c = self.labels.copy(), None
            if shuffled_with is not None:
                c = shuffled_with[fold.name]["C"]
                generator = np.random.default_rng([self.seed, number])
                labels[fold.train] = generator.permutation(self.labels[fold.train])
            calls.append(delayed(probe_features)(features, labels, fold, c))
        # A thread per fold. The matrices are too small to be worth threads of their own.
        with threadpool_limits(1):
            predicted, settings = zip(*Parallel(n_jobs=-1, backend="threading")(calls))
        names = [fold.name for fold in self.folds]
        return np.concatenate(predicted), dict(zip(names, settings))

    def predict_majority(self) -> np.ndarray:
        """Predicts the most common training label. Ties go to the first in the alphabet."""
        labels = [
            Counter(sorted(self.labels[fold.train])).most_common(1)[0][0] for fold in self.folds
        ]
        return np.repeat(labels, [len(fold.test) for fold in self.folds])

    def score(self, predicted: np.ndarray, settings: dict | None = None) -> dict:
        """Returns accuracy and macro F1 over all test clips, and of each fold with its settings."""
        ends = np.cumsum([len(fold.test) for fold in self.folds])
        by_fold = {}
        for fold, predictions in zip(self.folds, np.split(predicted, ends[:-1])):
            by_fold[fold.name] = _accuracy_and_f1(predictions, self.labels[fold.test])
            by_fold[fold.name] |= (settings or {}).get(fold.name, {})
        mean = float(np.mean([metrics["accuracy"] for metrics in by_fold.values()]))
        metrics = _accuracy_and_f1(predicted, self.test_labels)
        return {**metrics, "mean_of_folds": mean, "folds": by_fold}


def _accuracy_and_f1(predicted: np.ndarray, labels: np.ndarray) -> dict:
    f1 = f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)
    accuracy = float(np.mean(predicted == labels))
    return {"n": len(labels), "accuracy": accuracy, "macro_f1": float(f1)}


def add_intervals(
    results: dict[str, dict], predicted: dict[str, np.ndarray], labels: np.ndarray, seed: int
) -> list[dict]:
    """Adds `ci95_low` and `ci95_high` of the accuracy to the metrics of each arm.

    Returns the paired difference of every two arms, with its interval.
    """
    is_right = np.stack([predicted[arm] == labels for arm in results], 1).astype(float)
    # Each test clip is a row of its own.
    clips = [(f"{number:09}",) for number in range(len(labels))]
    groups = np.zeros(len(labels), int)
    samples = clip_bootstrap(is_right, clips, groups, RESAMPLES, seed)[:, 0]
    for column, metrics in enumerate(results.values()):
        metrics |= _interval_fields(samples[:, column])
    differences = []
    for (i, first), (j, second) in combinations(enumerate(results), 2):
        difference = float(is_right[:, i].mean() - is_right[:, j].mean())
        fields = _interval_fields(samples[:, i] - samples[:, j])
        differences.append({"first": first, "second": second, "difference": difference, **fields})
    return differences


def _interval_fields(samples: np.ndarray) -> dict:
    low, high = interval(samples)
    return {"ci95_low": float(low), "ci95_high": float(high)}
