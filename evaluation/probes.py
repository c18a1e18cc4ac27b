"""Linear probes on frozen features: which labels a representation gives away at all, with its frames averaged or attended to.

`python run_probe.py --help` says how they are run. Every arm gets the same folds, grid of C and recipe. Intervals are of a
bootstrap over test clips: they hold for these trained probes, and one that is always right gets no width.
"""

from collections import Counter
from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from tqdm import tqdm

POOLINGS = ("mean", "attention")
MEAN = {"C": [0.001, 0.01, 0.1, 1.0, 10.0], "C_without_validation": 1.0, "max_iter": 2000}
# chosen on made-up sequences with one telling frame, on no recording
ATTENTION = {"epochs": 100, "batch_size": 64, "learning_rate": 1e-2, "weight_decay": 0.05}
RESAMPLES = 2000


class Fold(NamedTuple):
    """Indices of clips. `validation` is the part of `train` on which C is chosen; no index of `test` is in either."""

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def hold_out(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Indices of about a fifth of the clips, of each class alike and in whole groups; none where a class has one clip."""
    count = min(5, *Counter(labels).values(), len(set(groups)))
    if count < 2:
        return np.array([], dtype=int)
    return next(
        StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(labels, labels, groups)
    )[1]


def draw_folds(labels: np.ndarray, groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The fold of each clip, "1" to `count`: each class spread over them, each group in one of them.

    Raises:
        ValueError: if there are fewer groups than folds, or fewer clips of a class.
    """
    smallest, number = min(Counter(labels).items(), key=lambda item: item[1])
    if count > min(number, len(set(groups))):
        raise ValueError(
            f"--folds {count}: class {smallest!r} has {number} clips, and there are {len(set(groups))} groups"
        )
    folds = np.empty(len(labels), dtype=object)
    for i, (_, test) in enumerate(
        StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(labels, labels, groups)
    ):
        folds[test] = str(i + 1)
    return folds


def cross_validation(
    labels: np.ndarray, folds: np.ndarray, groups: np.ndarray, seed: int
) -> list[Fold]:
    """Each fold tested by what the others teach; C is chosen on the fold after it.

    Raises:
        ValueError: if there is one fold, or a class is in one fold only.
    """
    names = sorted(set(folds), key=lambda name: (len(name), name))  # 10 comes after 9
    if len(names) < 2:
        raise ValueError(
            f"all clips are in fold {names[0]}, but one fold is tested by what the others teach"
        )
    for label in sorted(set(labels)):
        if len(set(folds[labels == label])) < 2:
            raise ValueError(
                f"class {label!r} is in fold {folds[labels == label][0]} only: no other fold can teach it"
            )
    found = []
    for name, after in zip(names, names[1:] + names[:1]):
        train, validation = np.flatnonzero(folds != name), np.flatnonzero(folds == after)
        if set(labels[np.setdiff1d(train, validation)]) != set(
            labels[train]
        ):  # two folds, or a rare class
            validation = train[hold_out(labels[train], groups[train], seed)]
        found.append(Fold(name, train, validation, np.flatnonzero(folds == name)))
    return found


def one_split(labels: np.ndarray, splits: np.ndarray, groups: np.ndarray, seed: int) -> list[Fold]:
    """The split "test", tested by what "train" and "val" teach; C is chosen on "val", or on a part of "train" if there is none.

    Raises:
        ValueError: if a split has another name, train or test is missing, or a class of "test" cannot be learnt.
    """
    if other := sorted(set(splits) - {"train", "val", "test"}):
        raise ValueError(f"split {other[0]!r} is none of train, val, test")
    if missing := sorted({"train", "test"} - set(splits)):
        raise ValueError(f"no clip is in the split {missing[0]}")
    validation, test = np.flatnonzero(splits == "val"), np.flatnonzero(splits == "test")
    train = np.flatnonzero(splits != "test")
    if unknown := sorted(set(labels[test]) - set(labels[splits == "train"])):
        raise ValueError(
            f"class {unknown[0]!r} is in the split test, but not in train: nothing can teach it"
        )
    if not len(validation):
        validation = train[hold_out(labels[train], groups[train], seed)]
    return [Fold("test", train, validation, test)]


def folds_of(clips: list[dict], count: int | None, seed: int) -> tuple[np.ndarray, list[Fold]]:
    """Labels (clips,) and the folds.

    Raises:
        ValueError: if there is one class, a class has one clip, or the folds cannot be.
    """
    # arrays of objects: their elements stay plain strings
    columns = {
        key: np.array([clip.get(key) for clip in clips], dtype=object)
        for key in ("label", "group", "fold", "split")
    }
    labels, groups = columns["label"], columns["group"]
    classes = Counter(labels)
    if len(classes) < 2:
        raise ValueError(f"all clips have the label {labels[0]!r}; two classes or more are wanted")
    if rare := [name for name, number in classes.items() if number == 1]:
        raise ValueError(f"class {rare[0]!r} has one clip: none is left to test what it teaches")
    if "split" in clips[0]:
        return labels, one_split(labels, columns["split"], groups, seed)
    drawn = draw_folds(labels, groups, count, seed) if count else columns["fold"]
    return labels, cross_validation(labels, drawn, groups, seed)


def logistic_regression(c: float) -> Pipeline:
    """Multinomial, on channels that are standardised over what it is fitted to."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=MEAN["max_iter"]))


def probe_mean(
    means: np.ndarray, labels: np.ndarray, fold: Fold, seed: int
) -> tuple[np.ndarray, dict]:
    """Predicted labels of the fold's test clips, and the C that the validation clips chose.

    Args:
        means: features averaged over frames, (clips, dim). labels: (clips,); those of test clips are not read.
    """
    inner, c = np.setdiff1d(fold.train, fold.validation), MEAN["C_without_validation"]
    if len(fold.validation) and len(set(labels[inner])) > 1:
        right = [
            np.mean(
                logistic_regression(c)
                .fit(means[inner], labels[inner])
                .predict(means[fold.validation])
                == labels[fold.validation]
            )
            for c in MEAN["C"]
        ]
        c = MEAN["C"][
            int(np.argmax(right))
        ]  # of equally good ones the smallest, which trusts the features least
    probe = logistic_regression(c).fit(means[fold.train], labels[fold.train])
    return probe.predict(means[fold.test]), {
        "C": c,
        "converged": bool(probe[-1].n_iter_.max() < MEAN["max_iter"]),
    }


class AttentionProbe(nn.Module):
    """One learnt query weighs the standardised frames, a linear layer names the class of their sum; it starts as their mean."""

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor, classes: int):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer(
            "deviation", deviation.where(deviation > 1e-6, 1.0)
        )  # a channel that never changes
        self.query = nn.Parameter(torch.zeros(len(mean)))
        self.weight, self.bias = (
            nn.Parameter(torch.zeros(classes, len(mean))),
            nn.Parameter(torch.zeros(classes)),
        )

    def forward(self, clips: list[torch.Tensor]) -> torch.Tensor:
        """Logits (clips, classes) of clips (frames, dim), which may differ in frames."""
        frames = torch.tensor([len(clip) for clip in clips], device=self.mean.device)
        padded = nn.utils.rnn.pad_sequence(clips, batch_first=True).to(self.mean)
        # standardised frames would give the same: their mean shifts all scores of a clip alike, and weights sum to one
        scores = padded @ (self.query / self.deviation) / len(self.query) ** 0.5
        behind = torch.arange(padded.shape[1], device=frames.device)[None] >= frames[:, None]
        weights = scores.masked_fill(behind, -torch.inf).softmax(1)
        pooled = ((weights[:, None] @ padded)[:, 0] - self.mean) / self.deviation
        return pooled @ self.weight.T + self.bias


def probe_attention(
    features: list[torch.Tensor], labels: np.ndarray, fold: Fold, seed: int
) -> tuple[np.ndarray, dict]:
    """As [`probe_mean`], of clips (frames, dim) each; nothing is chosen, so that the validation clips only teach."""
    classes, targets = np.unique(labels[fold.train], return_inverse=True)
    total = sum(features[i].double().sum(0) for i in fold.train)
    count = sum(len(features[i]) for i in fold.train)
    square = sum((features[i].double() - total / count).square().sum(0) for i in fold.train)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    probe = AttentionProbe(
        (total / count).float(), (square / count).sqrt().float(), len(classes)
    ).to(device)
    optimizer = torch.optim.AdamW(
        probe.parameters(), ATTENTION["learning_rate"], weight_decay=ATTENTION["weight_decay"]
    )
    targets, draw = torch.tensor(targets, device=device), torch.Generator().manual_seed(seed)
    for _ in range(ATTENTION["epochs"]):
        for batch in torch.randperm(len(fold.train), generator=draw).split(ATTENTION["batch_size"]):
            loss = nn.functional.cross_entropy(
                probe([features[fold.train[i]] for i in batch]), targets[batch.to(device)]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        parts = np.array_split(fold.test, -(-len(fold.test) // ATTENTION["batch_size"]))
        best = torch.cat([probe([features[i] for i in part]).argmax(1) for part in parts])
    return classes[best.cpu().numpy()], {"loss": loss.item()}


def probe_folds(
    probe: Callable,
    features,
    labels: np.ndarray,
    folds: list[Fold],
    seed: int,
    shuffle: bool = False,
    desc: str = "",
) -> tuple[np.ndarray, dict]:
    """Predictions of [`probe_mean`] or [`probe_attention`] for all test clips, in the folds' order, and each fold's settings.

    Args:
        shuffle: the control: the training clips' labels are dealt out among them anew. desc: of a progress bar, if any.
    """
    predicted, settings = [], {}
    for number, fold in enumerate(
        tqdm(folds, f"probing {desc}", unit="fold", disable=None if desc else True)
    ):
        taught = labels.copy()
        if shuffle:
            taught[fold.train] = np.random.default_rng([seed, number]).permutation(
                labels[fold.train]
            )
        made, settings[fold.name] = probe(features, taught, fold, seed)
        predicted.append(made)
    return np.concatenate(predicted), settings


def majority(labels: np.ndarray, folds: list[Fold]) -> np.ndarray:
    """The commonest label of the training clips, for each test clip; of equally common ones the first in the alphabet."""
    counts = [Counter(sorted(labels[fold.train])).most_common(1)[0][0] for fold in folds]
    return np.repeat(counts, [len(fold.test) for fold in folds])


def figures(
    predicted: np.ndarray, labels: np.ndarray, folds: list[Fold], settings: dict | None = None
) -> dict:
    """Accuracy and macro F1 over all test clips and of each fold, and the mean accuracy of the folds."""

    def of(made, right):
        f1 = f1_score(right, made, labels=np.unique(right), average="macro", zero_division=0)
        return {"n": len(right), "accuracy": float(np.mean(made == right)), "macro_f1": float(f1)}

    parts = np.split(predicted, np.cumsum([len(fold.test) for fold in folds])[:-1])
    by_fold = {
        f.name: of(made, labels[f.test]) | (settings or {}).get(f.name, {})
        for f, made in zip(folds, parts)
    }
    mean = float(np.mean([part["accuracy"] for part in by_fold.values()]))
    return of(predicted, labels[np.concatenate([f.test for f in folds])]) | {
        "mean_of_folds": mean,
        "folds": by_fold,
    }


def add_intervals(
    results: dict[str, dict], predicted: dict[str, np.ndarray], right: np.ndarray, seed: int
) -> list[dict]:
    """Adds `ci95_low` and `ci95_high` of the accuracy to `results`; returns the paired differences of all pairs, with theirs.

    Args:
        results: of [`figures`], by name. predicted: labels of all test clips, by the same names. right: their labels.
    """
    hits = np.stack([predicted[name] == right for name in results]).astype(float)
    random = np.random.default_rng(seed)
    drawn = np.stack(
        [hits[:, random.integers(len(right), size=len(right))].mean(1) for _ in range(RESAMPLES)], 1
    )

    def interval(values):
        low, high = np.quantile(values, [0.025, 0.975])
        return {"ci95_low": float(low), "ci95_high": float(high)}

    for name, values in zip(results, drawn):
        results[name] |= interval(values)
    pairs = combinations(enumerate(results), 2)
    return [
        {
            "first": a,
            "second": b,
            "difference": float(hits[i].mean() - hits[j].mean()),
            **interval(drawn[i] - drawn[j]),
        }
        for (i, a), (j, b) in pairs
    ]


def table(report: dict) -> str:
    """The report as text, arms as columns."""
    arms = report["encoders"]

    def line(name, cells):
        return f"{name:<26}" + "".join(f"{cell:>24}" for cell in cells)

    def interval(of, key="accuracy", sign=""):
        return f"{of[key]:{sign}.3f} ({of['ci95_low']:{sign}.3f} to {of['ci95_high']:{sign}.3f})"

    lines = [line("", arms)]
    lines.append(line("tokens a clip", [f"{arm['tokens_per_clip']:.1f}" for arm in arms.values()]))
    lines.append(line("channels", [arm["dim"] for arm in arms.values()]))
    for pooling, found in report["results"].items():
        lines.append(f"{pooling} pooling")
        lines.append(line("  accuracy (95 %)", map(interval, found.values())))
        lines.append(line("  macro F1", [f"{arm['macro_f1']:.3f}" for arm in found.values()]))
        several = next(iter(found.values()))["folds"]
        if len(several) > 1:
            lines += [
                line(
                    f"  fold {f}", [f"{arm['folds'][f]['accuracy']:.3f}" for arm in found.values()]
                )
                for f in several
            ]
            lines.append(
                line("  mean of folds", [f"{arm['mean_of_folds']:.3f}" for arm in found.values()])
            )
        if pooling in report["shuffled_labels"]:
            shuffled = report["shuffled_labels"][pooling].values()
            lines.append(
                line("  taught shuffled labels", [f"{arm['accuracy']:.3f}" for arm in shuffled])
            )
    lines.append(line("majority class", [f"{report['majority']['accuracy']:.3f}"] * len(arms)))
    for pooling, pairs in report["differences"].items():
        lines += [
            f"{pooling} pooling, {p['first']} - {p['second']}: {interval(p, 'difference', '+')}"
            for p in pairs
        ]
    return "\n".join([*lines, report["note"]])
