"""Options of `audiolm probe`, and their checks."""

from dataclasses import dataclass, field
from typing import Literal

from ..configuration_audiolm import import_encoders, list_encoder_types, parse_encoder_type
from ..data.cache import choose_feature_cache
from ..runtime import UserError
from .arguments import option
from .probe_folds import LABEL_COLUMNS
from .probes import POOLINGS


@dataclass(kw_only=True)
class ProbeArguments:
    """The options of `audiolm probe`. Wrong ones raise a `UserError`."""

    encoder_type: list[str] = field(
        metadata={"help": f"Any of {', '.join(list_encoder_types())}.", "metavar": "ARM"}
    )
    encoder_name_or_path: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Weights, one for each encoder type in order: a folder, file, Hub name, "
            "`random` or `published`. By default the published weights.",
            "metavar": "NAME",
        },
    )
    labels: str | None = option("The labels, see above.", metavar="CSV")
    label_column: str | None = option(
        f"Column of the labels. By default the first of {', '.join(LABEL_COLUMNS)}."
    )
    folds: int | None = option(
        "Draw K folds with similar classes, for a CSV without fold and split. All clips of a "
        "`group` (column, or else ESC's recording) are in one fold.",
        metavar="K",
    )
    audio_dir: str = field(metadata={"help": "Folder of the clips."})
    output_dir: str = field(metadata={"help": "Folder for probes.json, probe_predictions.csv."})
    pooling: list[str] = field(
        default_factory=lambda: ["mean"],
        metadata={
            "help": "What the logistic regression sees of a clip: the mean over its frames, or "
            "their mean and standard deviation.",
            "choices": tuple(POOLINGS),
        },
    )
    controls: list[str] | None = field(
        default=None,
        metadata={
            "help": "Poolings to repeat with shuffled training labels, which gives chance "
            "accuracy. By default mean.",
            "choices": tuple(POOLINGS),
        },
    )
    feature_cache: str | None = option("Folder of encoded clips, or `none`, as in run_train.py.")
    max_audio_seconds: float = option("Seconds used of each clip.", 10.0)
    on_bad_audio: Literal["error", "skip"] = option("What to do about broken files.", "error")
    seed: int = option("Seed of all draws.", 0)
    # The weights of each arm, or None for the published ones.
    encoders: dict[str, str | None] = field(init=False)

    def __post_init__(self) -> None:
        """Checks the options. The controls get the order of the poolings."""
        self.encoders = match_weights(self.encoder_type, self.encoder_name_or_path)
        self.feature_cache = choose_feature_cache(self.feature_cache)
        for name in sorted(set(self.controls or []) - set(self.pooling)):
            raise UserError(f"--controls {name}: not in --pooling")
        controls = ["mean"] if self.controls is None else self.controls
        self.pooling = list(dict.fromkeys(self.pooling))
        self.controls = [name for name in self.pooling if name in controls]
        if self.label_column and not self.labels:
            raise UserError("--label_column: add --labels")
        has_few_folds = self.folds is not None and self.folds < 2
        if not self.max_audio_seconds > 0 or has_few_folds or self.seed < 0:
            raise UserError(
                "expected --max_audio_seconds above 0, --folds of 2 or more, --seed >= 0"
            )


def match_weights(arms: list[str], names: list[str]) -> dict[str, str | None]:
    """Returns the weights of each arm, of which `names` has one each or none at all.

    Raises:
        UserError: If an arm is unknown or occurs twice, or names and arms do not match.
    """
    if len(set(arms)) < len(arms):
        raise UserError(f"--encoder_type {' '.join(arms)}: each arm once")
    for arm in arms:
        try:
            parse_encoder_type(import_encoders(arm))
        except ValueError as error:
            raise UserError(f"--{error}") from error
    if names and len(names) != len(arms):
        raise UserError(
            f"--encoder_name_or_path: {len(names)} given; expected one for each of {len(arms)} "
            "encoder types"
        )
    weights = [None if name == "published" else name for name in names] or [None] * len(arms)
    return dict(zip(map(import_encoders, arms), weights))
