"""Plans the runs of a comparison. A run trains and evaluates one arm with one seed.

`seeds` trains each arm several times.
"""

import contextlib
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..evaluation.arguments import parse_arguments as parse_eval_arguments
from ..runtime import UserError, file_digest
from ..training.arguments import parse_arguments as parse_train_arguments
from .config import PACKAGE_FOLDER, ComparisonConfig
from .planned_run import PlannedRun

# A probe measures an encoder on its usual input, so arms with these options are not probed.
INPUT_OPTIONS = {"band_limit", "window_seconds"}
CHECKPOINT_OPTIONS = ("encoder_name_or_path", "text_model_name_or_path")


@dataclass(frozen=True)
class Plan:
    """The runs of a comparison, and what they read."""

    runs: list[PlannedRun]  # in the order in which they start
    data_files: list[str]  # training, validation and test file
    checkpoints: dict[str, list[str]]  # names or paths of what each arm reads: weights, files
    audio_dir: list[str]  # folders of the audio, as `run_eval.py` gets them

    def digest_inputs(self) -> list[PlannedRun]:
        """Returns the runs with digests of what they read. A change does them again."""
        corpus = digest_paths(self.data_files)
        checkpoints = {arm: digest_paths(paths) for arm, paths in self.checkpoints.items()}
        runs = []
        for run in self.runs:
            digests = {"corpus": corpus, "checkpoints": checkpoints[run.arm]}
            runs.append(replace(run, digests=digests))
        return runs


def plan_runs(config: ComparisonConfig, processes: int = 1) -> list[PlannedRun]:
    """Returns all runs in order: the arms of the first seed, then those of the next."""
    runs = []
    for seed in config.seeds:
        for arm in config.arms:
            runs.append(replace(plan_run(config, arm, seed), processes=processes))
    return runs


def plan_run(config: ComparisonConfig, arm: str, seed: int) -> PlannedRun:
    """Returns one run with its folder and command lines."""
    name = f"{arm}/seed-{seed}" if len(config.seeds) > 1 else arm
    folder = Path(config.output_dir, name)
    train = {**_train_options(config, arm), "output_dir": folder, "seed": seed}
    evaluation = {
        **_eval_options(config, arm),
        # The comparison trains the model, and the file of its encoder is the one that it gives.
        "trust_remote_code": ":" in config.arms[arm]["encoder_type"] or None,
        "model_name_or_path": folder,
        "output_dir": folder / "evaluation",
    }
    argv = {"train": to_argv(train), "evaluate": to_argv(evaluation)}
    return PlannedRun(arm, seed, name, folder, argv)


def _train_options(config: ComparisonConfig, arm: str) -> dict[str, Any]:
    shared = dict(config.train)
    if config.corpus:
        corpus = Path(config.output_dir, "corpus")
        shared |= {
            "train_file": corpus / "train.json",
            "validation_file": corpus / "val.json",
            "audio_dir": corpus,
        }
    # An arm's options come first on the command line, and win over those under `train`.
    options = {**config.arms[arm], **shared, **config.arms[arm]}
    for name in CHECKPOINT_OPTIONS:
        if options.get(name):
            options[name] = find_demo_checkpoint(options[name])
    return options


def _eval_options(config: ComparisonConfig, arm: str) -> dict[str, Any]:
    options = dict(config.eval)
    train_file = config.train.get("train_file")
    if config.corpus:
        corpus = Path(config.output_dir, "corpus")
        train_file = corpus / "train.json"
        options |= {"test_file": corpus / "test.json", "audio_dir": corpus}
    controls = options.get("controls") or []
    has_majority = "all" in controls or "majority" in controls
    if config.is_text_only(arm):
        # The other controls take the audio away, and this arm has none.
        options["controls"] = ["majority"] if has_majority else None
    return {"train_file": train_file, **options} if has_majority else options


def find_demo_checkpoint(name: str) -> str:
    """Returns the names of checkpoints joined by +. `demo/...`, if not here, is the package's."""
    paths = []
    for path in str(name).split("+"):
        packaged = PACKAGE_FOLDER / path
        is_packaged = path.startswith("demo/") and not Path(path).exists() and packaged.exists()
        paths.append(str(packaged) if is_packaged else path)
    return "+".join(paths)


def to_argv(options: dict[str, Any]) -> list[str]:
    """Returns the command line of a mapping of options. None leaves an option at its default."""
    argv = []
    for name, value in options.items():
        if value is None:
            continue
        argv.append(f"--{name}")
        for item in value if isinstance(value, list) else [value]:
            argv.append(str(item).lower() if isinstance(item, bool) else str(item))
    return argv


def probe_argv(config: ComparisonConfig, labels: dict[str, Path]) -> dict[str, list[str]]:
    """Returns the command line of `audiolm probe` for each topic's CSV, with each encoder once."""
    output = Path(config.output_dir)
    encoders: dict[str, str | None] = {}
    for arm, options in config.arms.items():
        if not config.is_text_only(arm) and not INPUT_OPTIONS & set(options):
            encoders.setdefault(options["encoder_type"], options.get("encoder_name_or_path"))
    names = [str(find_demo_checkpoint(name)) if name else "published" for name in encoders.values()]
    shared = {name: value for name, value in (config.probe or {}).items() if name != "labels"}
    if config.corpus:
        # Labels of another folder come with it.
        shared.setdefault("audio_dir", output / "corpus")
    argv = {}
    for topic, file in labels.items():
        options = {
            "encoder_type": list(encoders),
            "encoder_name_or_path": names,
            "labels": file,
            "max_audio_seconds": config.train.get("max_audio_seconds"),
            **shared,
            "output_dir": output / "probes" / topic,
        }
        argv[topic] = to_argv(options)
    return argv


def plan_comparison(config: ComparisonConfig, processes: int = 1) -> Plan:
    """Returns the runs and what they read, after checking every command line.

    Raises:
        UserError: If an option is unknown or wrong, or a data file does not exist.
    """
    source = f"--config {config.path}"
    parse_train = partial(parse_train_arguments, processes=processes)
    runs = plan_runs(config, processes)
    data_files: list[str] = []
    audio_dir: list[str] = []
    checkpoints = {}
    for run in runs:
        model, data, _ = _parse_or_explain(parse_train, run.argv["train"], f"{source}: train")
        argv = run.argv["evaluate"]
        evaluation = _parse_or_explain(parse_eval_arguments, argv, f"{source}: eval")
        if data.dataset_name or evaluation.dataset_name:
            raise UserError(
                f"{source}: dataset_name is not supported. Give train_file, validation_file and "
                "test_file."
            )
        files = (data.train_file, data.validation_file, evaluation.test_file)
        data_files = [file for file in files if file]
        audio_dir = evaluation.audio_dir
        missing = [file for file in data_files if not Path(file).is_file()]
        if missing and not config.corpus:
            raise UserError(
                f"{source}: {missing[0]}: file not found. Download ReasonAQA with `audiolm prepare "
                "download reasonaqa`, give its folder with --data_dir, or try without data: "
                "--config demo"
            )
        name = model.encoder_name_or_path or ""
        encoders = name.split("+") if "+" in model.encoder_type else [name]
        # An encoder in a file of its own is code that a run reads.
        arm_types = config.arms[run.arm]["encoder_type"].split("+")
        files = [part.rpartition(":")[0] for part in arm_types]
        weights = [*encoders, model.text_model_name_or_path, *files]
        checkpoints[run.arm] = [path for path in weights if path]
    return Plan(runs, data_files, checkpoints, audio_dir)


def _parse_or_explain(parse: Callable, argv: list[str], section: str) -> Any:
    """Calls a command's parser. Its error becomes one line that begins with `section`."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return parse(argv)
    except UserError as error:
        raise UserError(f"{section}: {error}") from error
    except SystemExit as error:
        last_line = stderr.getvalue().strip().split("\n")[-1]
        raise UserError(f"{section}: {last_line.split('error: ', 1)[-1]}") from error


def digest_paths(paths: list[str]) -> str:
    """Returns the SHA-256 of the files under some paths. A Hub name counts by its name."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        digest.update(repr((str(path), len(files))).encode())
        for file in files:
            digest.update(bytes.fromhex(file_digest(file)))
    return digest.hexdigest()
