"""Reads the YAML file of a comparison: arms, seeds, corpus, and the options that arms share."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..configuration_audiolm import ARM_FIELDS
from ..data.soundscapes.recordings import RecordingTable
from ..runtime import UserError

PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
# These options change the representation, which is what a comparison is about.
ARM_OPTIONS = {"encoder_name_or_path", *ARM_FIELDS}
RESERVED_FOLDERS = ("corpus",)
SWEEP_OPTIONS = {"config", "output_dir", "seed", "model_name_or_path"}
RESERVED_OPTIONS = {"resume_from_checkpoint", "encoder_type", "encoder_name_or_path", "no_audio"}
CORPUS_OPTIONS = {"train_file", "validation_file", "test_file", "audio_dir"}
# Where `audiolm prepare download DATA_DIR` puts things.
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
    probe: dict[str, Any] | None = None  # options of `audiolm probe`; a CSV file for each topic
    note: str = ""  # for the terminal and the report
    # `rows` and `seed` of a corpus to generate, and `recordings` to take the sounds from
    corpus: dict[str, Any] | None = None
    data_dir: str | None = None  # folder of ReasonAQA, as `audiolm prepare download` fills it
    train: dict[str, Any] = field(default_factory=dict)  # options that all trainings share
    eval: dict[str, Any] = field(default_factory=dict)  # options that all evaluations share

    def __post_init__(self) -> None:
        for name, options in self.arms.items():
            _check_arm(name, options)
        seeds = self.seeds
        # `isinstance` would take True for an integer.
        is_typed = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
        if not is_typed or not seeds or len(set(seeds)) < len(seeds):
            raise UserError(f"seeds is {seeds!r}: expected a list of different integers")
        if self.data_dir and self.corpus:
            raise UserError("it has both `data_dir` and `corpus`: remove one of them")
        if self.corpus and set(self.corpus) - {"recordings"} != {"rows", "seed"}:
            raise UserError(f"corpus takes rows and seed, not {', '.join(map(str, self.corpus))}")
        self.recordings()
        if self.probe and not self.corpus and not isinstance(self.probe.get("labels"), dict):
            raise UserError("probe lacks `labels`, a CSV file for each topic. Give audio_dir too.")
        for section in ("train", "eval"):
            _check_shared_options(section, getattr(self, section), bool(self.corpus))
        if self.data_dir:
            self._fill_data_paths(self.data_dir)

    def _fill_data_paths(self, data_dir: str) -> None:
        """Sets the paths that `train` and `eval` do not set."""
        for section, files in DATA_FILES.items():
            paths = {name: str(Path(data_dir, file)) for name, file in files.items()}
            options = {"audio_dir": [data_dir], **paths, **getattr(self, section)}
            object.__setattr__(self, section, options)

    def recordings(self) -> RecordingTable | None:
        """Returns the recordings that the corpus takes its sounds from.

        Raises:
            UserError: If the options have wrong names.
        """
        options = (self.corpus or {}).get("recordings")
        if options is None:
            return None
        try:
            return RecordingTable(**options)
        except TypeError as error:
            raise UserError(
                f"corpus: recordings is {options!r}: expected csv, audio_dir and label, and "
                "perhaps file, fold and group"
            ) from error

    def is_text_only(self, arm: str) -> bool:
        """Whether an arm is trained without audio."""
        return bool(self.arms[arm].get("no_audio"))


def _check_arm(name: str, options: dict[str, Any]) -> None:
    is_word = isinstance(name, str) and re.fullmatch(r"[\w-]+", name)
    if not is_word or name in RESERVED_FOLDERS:
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


def _check_shared_options(section: str, options: dict[str, Any], has_corpus: bool) -> None:
    names = sorted(map(str, options))
    pushing = [name for name in names if name == "push_to_hub" or name.startswith("hub_")]
    if pushing:
        raise UserError(
            f"{section} sets {', '.join(pushing)}. Push a model with run_train.py instead."
        )
    reserved = SWEEP_OPTIONS | RESERVED_OPTIONS | (CORPUS_OPTIONS if has_corpus else set())
    conflicts = [name for name in names if name in reserved]
    if conflicts:
        raise UserError(
            f"{section} sets {', '.join(conflicts)}, which the corpus, the arms or the top of the "
            "file set"
        )


def find_preset(name: str) -> str:
    """Returns the YAML file that `--config` names: a path, or a preset in the package's `configs/`.

    `demo`, `demo.yaml` and `configs/demo.yaml` name one preset. A file at that path comes first.
    """
    preset = PACKAGE_FOLDER / "configs" / f"{Path(name).name.removesuffix('.yaml')}.yaml"
    is_preset_name = str(Path(name).parent) in (".", "configs")
    if not Path(name).is_file() and is_preset_name and preset.is_file():
        return str(preset)
    return name


def read_config(
    path: str,
    seeds: list[int] | None = None,
    output_dir: str | None = None,
    data_dir: str | None = None,
) -> ComparisonConfig:
    """Returns the comparison of a YAML file or preset. The other arguments override its own.

    Raises:
        UserError: If the file cannot be read or is wrong.
    """
    try:
        settings = yaml.safe_load(Path(find_preset(path)).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"--config {path}: file not found. Give a YAML file, or a preset such as `demo`."
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path}: {' '.join(str(error).split())}") from error
    overrides = {"seeds": seeds, "output_dir": output_dir, "data_dir": data_dir}
    try:
        _check_keys(settings)
        settings |= {name: value for name, value in overrides.items() if value is not None}
        return ComparisonConfig(path, **settings)
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from error


def _check_keys(settings: object) -> None:
    if not isinstance(settings, dict):
        raise UserError("expected a mapping with arms, train and eval")
    keys = [spec.name for spec in fields(ComparisonConfig) if spec.name != "path"]
    unknown = sorted(set(map(str, settings)) - set(keys))
    if unknown:
        raise UserError(f"unknown keys {', '.join(unknown)}. Expected keys: {', '.join(keys)}.")
    if not isinstance(settings.get("arms"), dict) or not settings["arms"]:
        raise UserError("`arms` names no arm")
    for section in ("train", "eval", "corpus", "probe"):
        value = settings.get(section, {})
        is_left_out = not value and section in ("corpus", "probe")
        if not isinstance(value, dict) and not is_left_out:
            raise UserError(f"{section} is {value!r}: expected options and their values")
