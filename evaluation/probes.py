"""Linear probes on frozen features: which labels does a representation contain?

A probe sees the mean over a clip's frames, or weighs the frames by attention. All arms get the same
folds, the same grid of C and the same recipe. Intervals come from a bootstrap over test clips. They
hold for these trained probes. A probe that is always right has an interval without width.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from tqdm import tqdm

from .probe_folds import Fold
from .statistics import clip_bootstrap, interval

MEAN: dict = {"C": [0.001, 0.01, 0.1, 1.0, 10.0], "C_without_validation": 1.0, "max_iter": 2000}
# Chosen on synthetic sequences with one informative frame, not on recordings.
ATTENTION: dict = {"epochs": 100, "batch_size": 64, "learning_rate": 1e-2, "weight_decay": 0.05}
RESAMPLES = 2000


def _logistic_regression(c: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=MEAN["max_iter"]))


def probe_mean(
    means: np.ndarray, labels: np.ndarray, fold: Fold, seed: int
) -> tuple[np.ndarray, dict]:
    """Trains and tests a logistic regression on features averaged over frames, `(clips, dim)`.

    Returns the predicted labels of the test clips, and C. The labels of test clips are not read.
    Nothing is random: the seed has no effect.
    """
    inner = np.setdiff1d(fold.train, fold.validation)
    c = MEAN["C_without_validation"]
    if len(fold.validation) and len(set(labels[inner])) > 1:
        accuracies = []
        for candidate in MEAN["C"]:
            probe = _logistic_regression(candidate).fit(means[inner], labels[inner])
            accuracies.append(probe.score(means[fold.validation], labels[fold.validation]))
        # Of equally good ones the smallest, with the strongest regularisation.
        c = MEAN["C"][int(np.argmax(accuracies))]
    probe = _logistic_regression(c).fit(means[fold.train], labels[fold.train])
    is_converged = bool(probe[-1].n_iter_.max() < MEAN["max_iter"])
    return probe.predict(means[fold.test]), {"C": c, "converged": is_converged}


class AttentionProbe(nn.Module):
    """Weighs standardised frames by one learned query, then classifies their sum linearly.

    It starts as the mean over frames. `mean` and `deviation` are those of each channel in training,
    shape `(dim,)`.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor, classes: int):
        super().__init__()
        dim = len(mean)
        self.register_buffer("mean", mean)
        # A constant channel stays as it is.
        self.register_buffer("deviation", deviation.where(deviation > 1e-6, 1.0))
        self.query = nn.Parameter(torch.zeros(dim))
        self.weight = nn.Parameter(torch.zeros(classes, dim))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, clips: list[torch.Tensor]) -> torch.Tensor:
        """Returns logits, shape `(clips, classes)`, of clips of shape `(frames, dim)`."""
        frames = torch.tensor([len(clip) for clip in clips], device=self.mean.device)
        padded = nn.utils.rnn.pad_sequence(clips, batch_first=True).to(self.mean)
        # The mean need not be subtracted here: it shifts all scores of a clip alike.
        scores = padded @ (self.query / self.deviation) / len(self.query) ** 0.5
        is_padding = torch.arange(padded.shape[1], device=frames.device)[None] >= frames[:, None]
        weights = scores.masked_fill(is_padding, -torch.inf).softmax(1)
        pooled = ((weights[:, None] @ padded)[:, 0] - self.mean) / self.deviation
        return pooled @ self.weight.T + self.bias


def probe_attention(
    features: list[torch.Tensor], labels: np.ndarray, fold: Fold, seed: int
) -> tuple[np.ndarray, dict]:
    """Trains and tests an attention probe on clips of shape `(frames, dim)`.

    Returns the predicted labels of the test clips, and the loss of the last batch. The labels of
    test clips are not read. Validation clips only train: nothing is chosen.
    """
    classes, targets = np.unique(labels[fold.train], return_inverse=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mean, deviation = _channel_statistics([features[i] for i in fold.train])
    probe = AttentionProbe(mean, deviation, len(classes)).to(device)
    optimizer = torch.optim.AdamW(
        probe.parameters(), ATTENTION["learning_rate"], weight_decay=ATTENTION["weight_decay"]
    )
    targets = torch.tensor(targets, device=device)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(ATTENTION["epochs"]):
        order = torch.randperm(len(fold.train), generator=generator)
        for batch in order.split(ATTENTION["batch_size"]):
            logits = probe([features[fold.train[i]] for i in batch])
            loss = nn.functional.cross_entropy(logits, targets[batch.to(device)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        batches = np.array_split(fold.test, -(-len(fold.test) // ATTENTION["batch_size"]))
        best = torch.cat([probe([features[i] for i in batch]).argmax(1) for batch in batches])
    return classes[best.cpu().numpy()], {"loss": loss.item()}


def _channel_statistics(clips: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    num_frames = sum(len(clip) for clip in clips)
    mean = sum(clip.double().sum(0) for clip in clips) / num_frames
    square = sum((clip.double() - mean).square().sum(0) for clip in clips)
    return mean.float(), (square / num_frames).sqrt().float()


PROBES = {"mean": probe_mean, "attention": probe_attention}


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
        self,
        pooling: str,
        features: np.ndarray | list[torch.Tensor],
        shuffle: bool = False,
        desc: str = "",
    ) -> tuple[np.ndarray, dict]:
        """Trains and tests a probe on every fold, with shuffled training labels as a control.

        Returns the predictions for `test_clips`, and the settings that each fold chose. There is a
        progress bar if `desc` gives its title.
        """
        predicted, settings = [], {}
        bar = tqdm(self.folds, f"probing {desc}", unit="fold", disable=None if desc else True)
        for number, fold in enumerate(bar):
            labels = self.labels.copy()
            if shuffle:
                generator = np.random.default_rng([self.seed, number])
                labels[fold.train] = generator.permutation(self.labels[fold.train])
            predictions, settings[fold.name] = PROBES[pooling](features, labels, fold, self.seed)
            predicted.append(predictions)
        return np.concatenate(predicted), settings

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
