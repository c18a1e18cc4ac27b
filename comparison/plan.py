"""What a comparison's YAML file describes: the runs, each of an arm, a seed, a learning rate and a number of steps.

Arms may differ in their encoder alone, and in what it hears or hands on. `seeds` trains each arm several times; `budgets` each
arm for other numbers of steps too, and `learning_rates` at others, of which the best on validation stands beside the equal
ones.
"""

import contextlib
import hashlib
import io
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import yaml

from ..configuration_audiolm import ARM_FIELDS
from ..evaluation import evaluate as run_eval
from ..training import train as run_train
from ..training.arguments import DEFAULTS as OF_TRAINING
from ..training.arguments import RECIPES

DEFAULTS = {
    "output_dir": "outputs/compare",
    "seed": 0,
    "seeds": None,
    "learning_rates": None,
    "budgets": None,
    "probe": None,
    "note": "",
    "corpus": None,
    "train": {},
    "eval": {},
    "feature_cache": False,
}
# What an arm is: its encoder, how much of a clip that one hears (`band_limit`, `window_seconds`), and what it hands on
# (`audio_tokens`, `learn_code_embeddings`). All of these change the representation, which is what a comparison is about;
# rows, steps and the language model stay the same.
ARM_KEYS = {"encoder_name_or_path", *ARM_FIELDS}
SET_HERE = {
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
FILES = {"train_file", "validation_file", "test_file", "audio_dir"}


HEARD_OTHERWISE = {"band_limit", "window_seconds"}  # such arms are not probed


class Planned(NamedTuple):
    """One run of a comparison: what it is of, its folder, and what its scripts are called with."""

    arm: str
    seed: int
    learning_rate: float
    max_steps: int
    folder: Path
    train: list[str]
    evaluate: list[str]


def read_config(path: str, seeds: list[int] | None = None, output_dir: str | None = None) -> dict:
    """The comparison that a YAML file describes; `seeds` and `output_dir` override it.

    Raises:
        ValueError: in one line, if the file cannot be read, a key is unknown or missing, or arms differ in more than encoders.
    """
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"--config {path}: a mapping with arms, train and eval is wanted")
    if unknown := sorted(set(map(str, config)) - {"arms", *DEFAULTS}):
        raise ValueError(
            f"--config {path}: unknown keys {', '.join(unknown)}; known are arms, {', '.join(DEFAULTS)}"
        )
    given = {"output_dir": output_dir, "seeds": seeds}
    config = {**DEFAULTS, **config, **{k: v for k, v in given.items() if v is not None}}
    if not isinstance(config.get("arms"), dict) or not config["arms"]:
        raise ValueError(f"--config {path}: `arms` names no arm")
    for section in ("train", "eval", *(name for name in ("corpus", "probe") if config[name])):
        if not isinstance(config[section], dict):
            raise ValueError(
                f"--config {path}: {section} is {config[section]!r}, not options and their values"
            )
    for arm, options in config["arms"].items():
        if (
            not isinstance(arm, str)
            or not re.fullmatch(r"[\w-]+", arm)
            or arm in ("corpus", "features")
        ):
            raise ValueError(
                f"--config {path}: arm {arm!r} cannot be a folder's name; take letters, digits, _ and -"
            )
        if not isinstance(options, dict) or "encoder_type" not in options:
            raise ValueError(f"--config {path}: arm {arm} lacks encoder_type")
        if other := sorted(set(map(str, options)) - ARM_KEYS):
            raise ValueError(
                f"--config {path}: arm {arm} sets {', '.join(other)}; arms may differ in {', '.join(sorted(ARM_KEYS))} only, "
                "or their results would not differ by what they hear alone. What all arms share stands under `train` and `eval`"
            )
    config["seeds"] = [config["seed"]] if config["seeds"] is None else config["seeds"]
    for key, kind, wanted in (
        ("seeds", int, "whole numbers"),
        ("learning_rates", float, "numbers above 0"),
        ("budgets", int, "numbers of steps above 0"),
    ):
        values = config[key]
        if values is not None and (
            not isinstance(values, list)
            or not values
            or len(set(map(str, values))) != len(values)
            or any(type(value) is not kind for value in values)
            or (key == "budgets" and min(values) < 1)
        ):
            raise ValueError(
                f"--config {path}: {key} is {values!r}; a list of different {wanted} is wanted"
            )
    if (
        config["probe"]
        and not config["corpus"]
        and not isinstance(config["probe"].get("labels"), dict)
    ):
        raise ValueError(
            f"--config {path}: probe wants `labels`, a csv file by what it is about, and audio_dir"
        )
    if config["corpus"] and set(config["corpus"]) != {"rows", "seed"}:
        raise ValueError(
            f"--config {path}: corpus takes rows and seed, not {', '.join(map(str, config['corpus']))}"
        )
    for section in ("train", "eval"):
        if pushing := sorted(
            key
            for key in map(str, config[section])
            if key == "push_to_hub" or key.startswith("hub_")
        ):
            raise ValueError(
                f"--config {path}: {section} sets {', '.join(pushing)}; push an arm with run_train.py, not from here"
            )
        if taken := sorted(
            set(config[section]) & (SET_HERE | (FILES if config["corpus"] else set()))
        ):
            where = "the corpus, the arms or the top of this file"
            raise ValueError(
                f"--config {path}: {section} sets {', '.join(taken)}, which {where} set"
            )
    return config


def flags(options: dict) -> list[str]:
    """Command-line flags of a mapping; None leaves an option at its default."""
    words = []
    for name, value in options.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            words += [
                f"--{name}",
                *(str(v).lower() if isinstance(v, bool) else str(v) for v in values),
            ]
    return words


def runs(config: dict) -> list[Planned]:
    """All runs, in the order in which they are done: every arm of a seed, at equal learning rates and for the usual number of
    steps first; then for other numbers of steps; then at other learning rates."""
    rate, steps = usual(config)
    points = [
        (rate, steps),
        *((rate, other) for other in config["budgets"] or [] if other != steps),
        *((other, steps) for other in config["learning_rates"] or [] if other != rate),
    ]
    return [
        planned(config, arm, seed, *point)
        for point in points
        for seed in config["seeds"]
        for arm, options in config["arms"].items()
        if point[0] == rate or not options.get("no_audio")
    ]


def usual(config: dict) -> tuple[float, int]:
    """Learning rate and number of steps of the main comparison."""
    train = {**OF_TRAINING, **RECIPES.get(config["train"].get("recipe"), {}), **config["train"]}
    return float(train["learning_rate"]), train["max_steps"]


def planned(config: dict, arm: str, seed: int, learning_rate: float, max_steps: int) -> Planned:
    """One of them. Its folder is the arm's; with several seeds, at another learning rate or for other steps, one inside."""
    output, corpus = Path(config["output_dir"]), Path(config["output_dir"], "corpus")
    rate, steps = usual(config)
    point = "" if learning_rate == rate else f"lr-{learning_rate:g}"
    point = point if max_steps == steps else f"steps-{max_steps}"
    folder = output / arm / point / (f"seed-{seed}" if len(config["seeds"]) > 1 else "")
    cache = {"feature_cache": output / "features"} if config["feature_cache"] else {}
    train, test = {**config["train"]}, {**config["eval"]}
    if learning_rate != rate:
        train["learning_rate"] = learning_rate
    if max_steps != steps:
        train["max_steps"] = max_steps
    if config["corpus"]:
        train |= {
            "train_file": corpus / "train.json",
            "validation_file": corpus / "val.json",
            "audio_dir": corpus,
        }
        test |= {"test_file": corpus / "test.json", "audio_dir": corpus}
    controls = test.get("controls") or []
    controls = controls if isinstance(controls, list) else [controls]
    if config["arms"][arm].get("no_audio"):  # it hears nothing that could be taken away
        test["controls"] = controls = ["majority"] if {"all", "majority"} & set(controls) else []
    if {"all", "majority"} & set(controls):
        test = {"train_file": train.get("train_file"), **test}
    train = {
        **config["arms"][arm],
        **train,
        **config["arms"][arm],
        **cache,
        "output_dir": folder,
        "seed": seed,
    }
    test = {**test, **cache, "model_name_or_path": folder, "output_dir": folder / "evaluation"}
    return Planned(arm, seed, learning_rate, max_steps, folder, flags(train), flags(test))


def probe_flags(config: dict, labels: dict[str, Path]) -> dict[str, list[str]]:
    """What run_probe.py is called with for each csv of labels: the arms that hear, each encoder once, as it is by itself."""
    output, arms = Path(config["output_dir"]), {}
    for options in config["arms"].values():
        if not options.get("no_audio") and not HEARD_OTHERWISE & set(options):
            arms.setdefault(options["encoder_type"], options.get("encoder_name_or_path"))
    given = {key: value for key, value in config["probe"].items() if key != "labels"}
    if config["corpus"]:
        given["audio_dir"] = output / "corpus"
    if config["feature_cache"]:
        given["feature_cache"] = output / "features"
    seconds = config["train"].get("max_audio_seconds")
    named = [f"{arm}={name}" for arm, name in arms.items() if name]
    return {
        kind: flags(
            {
                "encoder_type": list(arms),
                "encoder_name_or_path": named or None,
                "labels": file,
                "max_audio_seconds": seconds,
                **given,
                "output_dir": output / "probes" / kind,
            }
        )
        for kind, file in labels.items()
    }


def checked(parse, words: list[str], name: str):
    """`parse(words)`, an error of it as one line.

    Raises:
        ValueError: with what the parser says, without its list of every option.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse(words)
    except SystemExit as error:
        raise ValueError(
            f"{name}: " + said.getvalue().strip().split("\n")[-1].split("error: ", 1)[-1]
        ) from error


def digest(paths: list[str]) -> str:
    """SHA-256 of the files under these paths; what is not on this machine (a Hub name) counts by its name."""
    found = hashlib.sha256()
    for path in map(Path, paths):
        files = (
            sorted(p for p in path.rglob("*") if p.is_file())
            if path.is_dir()
            else [path]
            if path.is_file()
            else []
        )
        found.update(repr((str(path), len(files))).encode())
        for file in files:
            with open(file, "rb") as stream:
                found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()


def plan(config: dict, path: str, processes: int = 1) -> tuple[list[Planned], dict]:
    """The runs, each of so many processes, checked before minutes are spent, and what all of them read: `files` and
    `checkpoints`, and `audio_dir`.

    Raises:
        ValueError: in one line, if an option is unknown or wrong, or a file of the data is not there.
    """
    made, checkpoints = runs(config), {}
    for run in made:
        model, data, _ = checked(
            partial(run_train.parse, processes=processes), run.train, f"--config {path}: train"
        )
        evaluation = checked(run_eval.parse, run.evaluate, f"--config {path}: eval")
        if data.dataset_name or evaluation.dataset_name:
            raise ValueError(
                "dataset_name: the comparison reads train_file, validation_file and test_file"
            )
        files = [f for f in (data.train_file, data.validation_file, evaluation.test_file) if f]
        if not config["corpus"] and (missing := [f for f in files if not Path(f).is_file()]):
            raise ValueError(f"--config {path}: there is no file {missing[0]}")
        if config["learning_rates"] and not data.validation_file:
            raise ValueError(
                f"--config {path}: learning_rates are chosen on a validation_file; give one under `train`"
            )
        encoder = model.encoder_name_or_path or ""
        encoders = encoder.split("+") if "+" in model.encoder_type else [encoder]
        checkpoints[run.arm] = [p for p in (*encoders, model.text_model_name_or_path) if p]
    return made, {"files": files, "checkpoints": checkpoints, "audio_dir": evaluation.audio_dir}
