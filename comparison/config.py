"""Reads the YAML file of a comparison: arms, seeds, corpus, and the options that arms share."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..configuration_audiolm import ARM_FIELDS
from ..runtime import UserError

PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
# These options change the representation, which is what a comparison is about.
ARM_OPTIONS = {"encoder_name_or_path", *ARM_FIELDS}
RESERVED_FOLDERS = ("corpus", "features")
RESERVED_OPTIONS = {
    "config",
    "output_dir",
    "seed",
    "feature_cache",
    "model_name_or_path",
    "resume_from_checkpoint",
    "encoder_type",
    "encoder_name_or_path",
    "no_audio",
}
CORPUS_OPTIONS = {"train_file", "validation_file", "test_file", "audio_dir"}


@dataclass(frozen=True)
class ArmConfig:
    """An arm: one encoder configuration under test.

    Attributes:
        name: Name of the arm and of its folder.
        options: Options of `run_train.py` that make the arm. `encoder_type` is required.
    """

    name: str
    options: dict[str, Any]

    def __post_init__(self) -> None:
        is_word = isinstance(self.name, str) and re.fullmatch(r"[\w-]+", self.name)
        if not is_word or self.name in RESERVED_FOLDERS:
            raise UserError(
                f"arm {self.name!r} cannot be a folder name. Use letters, digits, _ and -."
            )
        if not isinstance(self.options, dict) or "encoder_type" not in self.options:
            raise UserError(f"arm {self.name} lacks encoder_type")
        shared = sorted(set(map(str, self.options)) - ARM_OPTIONS)
        if shared:
            raise UserError(
                f"arm {self.name} sets {', '.join(shared)}. Arms may differ only in "
                f"{', '.join(sorted(ARM_OPTIONS))}. Put options that all arms share under `train` "
                "or `eval`."
            )

    @property
    def is_text_only(self) -> bool:
        """Whether the arm is trained without audio."""
        return bool(self.options.get("no_audio"))


@dataclass(frozen=True)
class CorpusConfig:
    """A synthetic corpus to generate: number of training rows, and seed."""

    rows: int
    seed: int


@dataclass(frozen=True)
class ComparisonConfig:
    """A comparison, as its YAML file describes it.

    Attributes:
        path: The YAML file, as `--config` names it.
        arms: Arms by name.
        output_dir: Folder of all results.
        seeds: Seeds with which each arm is trained.
        learning_rates: Learning rates to choose from on the validation split.
        budgets: Numbers of steps to train for, beside that of the main comparison.
        probe: Options of `run_probe.py`. `labels` maps a topic to its CSV file. Empty: no probes.
        note: Text for the terminal and the report.
        corpus: Corpus to generate. Without it, `train` and `eval` name files.
        train: Options of `run_train.py` that all arms share.
        eval: Options of `run_eval.py` that all arms share.
        feature_cache: Whether to encode each clip only once.
    """

    path: str
    arms: dict[str, ArmConfig]
    output_dir: str = "outputs/compare"
    seeds: list[int] = field(default_factory=lambda: [0])
    learning_rates: list[float] | None = None
    budgets: list[int] | None = None
    probe: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    corpus: CorpusConfig | None = None
    train: dict[str, Any] = field(default_factory=dict)
    eval: dict[str, Any] = field(default_factory=dict)
    feature_cache: bool = False

    def __post_init__(self) -> None:
        _check_list("seeds", self.seeds, int, "integers")
        _check_list("learning_rates", self.learning_rates, float, "numbers such as 1.0e-4")
        _check_list("budgets", self.budgets, int, "numbers of steps")
        if self.budgets and min(self.budgets) < 1:
            raise UserError(f"budgets is {self.budgets!r}: expected numbers of steps above 0")
        if self.probe and not self.corpus and not isinstance(self.probe.get("labels"), dict):
            raise UserError("probe lacks `labels`, a CSV file for each topic. Give audio_dir too.")
        for section in ("train", "eval"):
            _check_shared_options(section, getattr(self, section), self.corpus is not None)


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
    path: str, seeds: list[int] | None = None, output_dir: str | None = None
) -> ComparisonConfig:
    """Returns the comparison that a YAML file describes.

    Args:
        path: A file, or a preset. See `find_preset`.
        seeds: Override those of the file.
        output_dir: Overrides that of the file.

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
    overrides = {"seeds": seeds, "output_dir": output_dir}
    try:
        if not isinstance(settings, dict):
            raise UserError("expected a mapping with arms, train and eval")
        settings |= {name: value for name, value in overrides.items() if value is not None}
        return _build_config(path, settings)
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from error


def _build_config(path: str, settings: dict[str, Any]) -> ComparisonConfig:
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
    arms = {name: ArmConfig(name, options) for name, options in settings.pop("arms").items()}
    corpus = _build_corpus(settings.pop("corpus", None))
    probe = settings.pop("probe", None) or {}
    return ComparisonConfig(path, arms, corpus=corpus, probe=probe, **settings)


def _build_corpus(settings: dict[str, Any] | None) -> CorpusConfig | None:
    if not settings:
        return None
    if set(settings) != {"rows", "seed"}:
        raise UserError(f"corpus takes rows and seed, not {', '.join(map(str, settings))}")
    return CorpusConfig(**settings)


def _check_list(name: str, values: object, kind: type, expected: str) -> None:
    """Raises a `UserError` unless `values` is None or a list of different values of a type."""
    if values is None:
        return
    # `isinstance` would take True for an integer.
    is_typed = isinstance(values, list) and all(type(value) is kind for value in values)
    if not is_typed or not values or len(set(values)) != len(values):
        raise UserError(f"{name} is {values!r}: expected a list of different {expected}")


def _check_shared_options(section: str, options: dict[str, Any], has_corpus: bool) -> None:
    names = sorted(map(str, options))
    pushing = [name for name in names if name == "push_to_hub" or name.startswith("hub_")]
    if pushing:
        raise UserError(
            f"{section} sets {', '.join(pushing)}. Push a model with run_train.py instead."
        )
    reserved = RESERVED_OPTIONS | (CORPUS_OPTIONS if has_corpus else set())
    conflicts = [name for name in names if name in reserved]
    if conflicts:
        raise UserError(
            f"{section} sets {', '.join(conflicts)}, which the corpus, the arms or the top of the "
            "file set"
        )
