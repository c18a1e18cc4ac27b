"""Reads the YAML file of a comparison: arms, seeds, corpus, and the options that arms share."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..configuration_audiolm import ARM_FIELDS
from ..data.soundscapes.recordings import RecordingTable
from ..runtime import UserError, explain_errors
from ..training.arguments import find_preset

# These options change the representation, which is what a comparison is about.
ARM_OPTIONS = {"encoder_name_or_path", *ARM_FIELDS}
# A comparison sets these itself, and pushes nothing.
RESERVED_OPTIONS = {"config", "output_dir", "seed", "model_name_or_path", "resume_from_checkpoint"}
RESERVED_OPTIONS |= {"encoder_type", "encoder_name_or_path", "no_audio", "push_to_hub"}
# Files of a corpus, and of the folder that `audiolm prepare download` fills.
DATA_FILES = {
    "train": {"train_file": "train.json", "validation_file": "val.json"},
    "eval": {"test_file": "test.json"},
}


@dataclass(frozen=True)
class ComparisonConfig:
    """A comparison, as its YAML file describes it. An arm is one encoder configuration under test.

    Raises:
        UserError: If a value is wrong.
    """

    path: str  # as `--config` names it
    arms: dict[str, dict[str, Any]]  # options of `run_train.py` that make each arm
    output_dir: str = "outputs/compare"
    seeds: list[int] = field(default_factory=lambda: [0])
    probe: dict[str, Any] = field(default_factory=dict)  # of `audiolm probe`; a CSV for each topic
    note: str = ""  # for the terminal and the report
    # `rows` and `seed` of a corpus to generate, and `recordings` to take the sounds from
    corpus: dict[str, Any] | None = None
    data_dir: str | None = None  # folder of ReasonAQA, as `audiolm prepare download` fills it
    train: dict[str, Any] = field(default_factory=dict)  # options that all trainings share
    eval: dict[str, Any] = field(default_factory=dict)  # options that all evaluations share

    def __post_init__(self) -> None:
        for name in ("arms", "train", "eval", "corpus", "probe"):
            value = getattr(self, name)
            if not isinstance(value or {}, dict):
                raise UserError(f"{name} is {value!r}: expected options and their values")
        for name, options in self.arms.items():
            _check_arm(name, options)
        seeds = self.seeds
        are_integers = isinstance(seeds, list) and all(isinstance(seed, int) for seed in seeds)
        if not are_integers or not seeds or len(set(seeds)) < len(seeds):
            raise UserError(f"seeds is {seeds!r}: expected a list of different integers")
        if self.data_dir and self.corpus:
            raise UserError("it has both `data_dir` and `corpus`: remove one of them")
        if self.corpus and set(self.corpus) - {"recordings"} != {"rows", "seed"}:
            raise UserError(f"corpus takes rows and seed, not {', '.join(map(str, self.corpus))}")
        self.recordings()
        if self.probe and not self.corpus and not isinstance(self.probe.get("labels"), dict):
            raise UserError("probe lacks `labels`, a CSV file for each topic. Give audio_dir too.")
        for section, files in DATA_FILES.items():
            data_options = {"audio_dir", *files} if self.corpus else set()
            self._check_shared_options(section, RESERVED_OPTIONS | data_options)

    def _check_shared_options(self, section: str, reserved: set[str]) -> None:
        names = sorted(map(str, getattr(self, section)))
        conflicts = [name for name in names if name in reserved or name.startswith("hub_")]
        if conflicts:
            raise UserError(
                f"{section} sets {', '.join(conflicts)}, which a comparison does not accept there. "
                "It sets folders, seeds and data of a corpus itself, and pushes nothing."
            )

    def shared_options(self, section: str) -> dict[str, Any]:
        """Returns the options of `train` or `eval`, with the data that they do not name."""
        folder = Path(self.output_dir, "corpus") if self.corpus else self.data_dir
        files = {}
        if folder:
            files = {name: Path(folder, file) for name, file in DATA_FILES[section].items()}
            files["audio_dir"] = Path(folder)
        return {**files, **getattr(self, section)}

    def recordings(self) -> RecordingTable | None:
        """Returns the recordings that the corpus takes its sounds from.

        Raises:
            UserError: If the options have wrong names.
        """
        options = (self.corpus or {}).get("recordings")
        with explain_errors(f"corpus: recordings is {options!r}", TypeError):
            return RecordingTable(**options) if options else None

    def is_text_only(self, arm: str) -> bool:
        """Whether an arm is trained without audio."""
        return bool(self.arms[arm].get("no_audio"))


def _check_arm(name: str, options: dict[str, Any]) -> None:
    if not re.fullmatch(r"[\w-]+", str(name)) or name == "corpus":
        raise UserError(f"arm {name!r} cannot be a folder name. Use letters, digits, _ and -.")
    if not isinstance(options, dict) or "encoder_type" not in options:
        raise UserError(f"arm {name} lacks encoder_type")
    shared = sorted(set(map(str, options)) - ARM_OPTIONS)
    if shared:
        raise UserError(
            f"arm {name} sets {', '.join(shared)}. Arms may differ only in "
            f"{', '.join(sorted(ARM_OPTIONS))}. Put options that all arms share under `train` or "
            "`eval`."
        )


def read_config(path: str, **overrides: Any) -> ComparisonConfig:
    """Returns the comparison of a YAML file or preset.

    Args:
        path: As `--config` names it.
        overrides: Values that replace those of the file, except None.

    Raises:
        UserError: If the file cannot be read or is wrong.
    """
    keys = [spec.name for spec in fields(ComparisonConfig) if spec.name != "path"]
    try:
        settings = yaml.safe_load(find_preset(path).read_text(encoding="utf-8"))
        if not isinstance(settings, dict) or not settings.get("arms"):
            raise UserError("`arms` names no arm")
        settings |= {name: value for name, value in overrides.items() if value is not None}
        unknown = sorted(set(map(str, settings)) - set(keys))
        if unknown:
            raise UserError(f"unknown keys {', '.join(unknown)}. Expected: {', '.join(keys)}.")
        return ComparisonConfig(path, **settings)
    except FileNotFoundError as error:
        raise UserError(
            f"--config {path}: file not found. Give a YAML file, or a preset such as `demo`."
        ) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--config {path}: {' '.join(str(error).split())}") from error
