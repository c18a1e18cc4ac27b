"""Plans the runs of a comparison. A run trains and evaluates one arm with one seed."""

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from ..evaluation.arguments import parse_arguments as parse_eval_arguments
from ..runtime import PACKAGE_FOLDER, UserError, file_digest
from ..training.arguments import parse_arguments as parse_train_arguments
from .config import ComparisonConfig
from .planned_run import PlannedRun

# A probe measures an encoder on its usual input, so arms with these options are not probed.
INPUT_OPTIONS = {"band_limit", "window_seconds"}
CHECKPOINT_OPTIONS = ("encoder_name_or_path", "text_model_name_or_path")


def plan_runs(config: ComparisonConfig, processes: int = 1) -> list[PlannedRun]:
    """Returns all runs with their command lines: the arms of the first seed, then of the next."""
    runs = []
    for seed, arm in product(config.seeds, config.arms):
        name = f"{arm}/seed-{seed}" if len(config.seeds) > 1 else arm
        folder = Path(config.output_dir, name)
        train = {**config.shared_options("train"), **config.arms[arm]}
        for option in CHECKPOINT_OPTIONS:
            if train.get(option):
                train[option] = find_demo_checkpoint(train[option])
        train |= {"output_dir": folder, "seed": seed}
        evaluation = {
            **_eval_options(config, arm),
            # The comparison trains the model, and the file of its encoder is the one that it gives.
            "trust_remote_code": ":" in config.arms[arm]["encoder_type"] or None,
            "model_name_or_path": folder,
            "output_dir": folder / "evaluation",
        }
        argv = {"train": to_argv(train), "evaluate": to_argv(evaluation)}
        runs.append(PlannedRun(arm, seed, name, folder, argv, processes=processes))
    return runs


def _eval_options(config: ComparisonConfig, arm: str) -> dict[str, Any]:
    options = config.shared_options("eval")
    controls = options.get("controls") or []
    has_majority = "all" in controls or "majority" in controls
    if config.is_text_only(arm):
        # The other controls take the audio away, and this arm has none.
        options["controls"] = ["majority"] if has_majority else None
    train_file = config.shared_options("train").get("train_file")
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


def probe_argv(config: ComparisonConfig, topic: str, labels: Path) -> list[str]:
    """Returns the command line of `audiolm probe` for a topic's CSV, with each encoder once."""
    output = Path(config.output_dir)
    encoders: dict[str, str | None] = {}
    for arm, options in config.arms.items():
        if not config.is_text_only(arm) and not INPUT_OPTIONS & set(options):
            encoders.setdefault(options["encoder_type"], options.get("encoder_name_or_path"))
    options = {
        "encoder_type": list(encoders),
        "encoder_name_or_path": [
            find_demo_checkpoint(name) if name else "published" for name in encoders.values()
        ],
        "labels": labels,
        "max_audio_seconds": config.train.get("max_audio_seconds"),
        # Labels of another folder come with it.
        "audio_dir": output / "corpus" if config.corpus else None,
        **(config.probe or {}),
        "output_dir": output / "probes" / topic,
    }
    return to_argv({**options, "labels": labels})


def plan_comparison(config: ComparisonConfig, processes: int = 1) -> list[PlannedRun]:
    """Returns the runs and what they read, after checking every command line.

    Raises:
        UserError: If an option is unknown or wrong, or a data file does not exist.
    """
    source = f"--config {config.path}"
    parse_train = partial(parse_train_arguments, processes=processes)
    runs = []
    for run in plan_runs(config, processes):
        model, data, _ = _parse_or_explain(parse_train, run.argv["train"], f"{source}: train")
        argv = run.argv["evaluate"]
        evaluation = _parse_or_explain(parse_eval_arguments, argv, f"{source}: eval")
        files = (data.train_file, data.validation_file, evaluation.test_file)
        data_files = tuple(file for file in files if file)
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
        code = [part.rpartition(":")[0] for part in arm_types]
        checkpoints = tuple(filter(None, [*encoders, model.text_model_name_or_path, *code]))
        runs.append(replace(run, data_files=data_files, checkpoints=checkpoints))
    return runs


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


def digest_inputs(runs: list[PlannedRun]) -> list[PlannedRun]:
    """Returns the runs with digests of what they read. A change does them again."""
    paths = {*(run.data_files for run in runs), *(run.checkpoints for run in runs)}
    digests = {group: digest_paths(group) for group in paths}
    return [
        replace(
            run,
            digests={"corpus": digests[run.data_files], "checkpoints": digests[run.checkpoints]},
        )
        for run in runs
    ]


def digest_paths(paths: Iterable[str]) -> str:
    """Returns the SHA-256 of the files under some paths. A Hub name counts by its name."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        digest.update(repr((str(path), len(files))).encode())
        for file in files:
            digest.update(bytes.fromhex(file_digest(file)))
    return digest.hexdigest()
