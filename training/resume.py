"""Finds the checkpoint to resume from, and checks that it is complete and belongs to the run."""

import json
import logging
import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from safetensors import SafetensorError, safe_open

from ..runtime import UserError

logger = logging.getLogger("audiolm.train")
RECORD_FILE = "training_data.json"  # the `RunRecord` in a checkpoint
# Settings without which a checkpoint does not load, or gives another model.
FIXED_SETTINGS = ("encoder weights", "LoRA")


def _read_file(file: Path) -> None:
    """Reads enough of a checkpoint's file to fail if it is missing or incomplete."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as tensors:
            tensors.keys()
    elif file.suffix == ".json":
        json.loads(file.read_text())
    else:  # torch writes zip files, whose list of members stands at their end
        ZipFile(file).close()


def find_checkpoint_problem(folder: str | Path) -> str | None:
    """Describes what is missing or incomplete in a checkpoint, or returns None.

    A process that is killed while it saves leaves an incomplete checkpoint.
    """
    folder = Path(folder)
    has_adapters = (folder / "adapter_config.json").is_file()
    states = [path.name for path in folder.glob("rng_state*.pth")]
    weights = "adapter_model.safetensors" if has_adapters else "model.safetensors"
    names = [weights, "optimizer.pt", "scheduler.pt", *states, "trainer_state.json", RECORD_FILE]
    for name in names:
        try:
            _read_file(folder / name)
        except (OSError, SafetensorError, ValueError, BadZipFile) as error:
            return f"{name} is missing or incomplete ({error})"
    processes = _read_record(folder)["processes"]
    if processes != len(states):
        return f"expected the random states of {processes} processes, found {len(states)}"
    return None


def checkpoint_to_resume(option: str | None, output_dir: str) -> str | None:
    """Returns the checkpoint that `--resume_from_checkpoint` names, or None for a fresh run.

    The option is a folder, `true` for the last complete checkpoint in `output_dir`, or `false`.

    Raises:
        UserError: There is no checkpoint, or it is incomplete.
    """
    if option is None or str(option).lower() == "false":
        return None
    if str(option).lower() != "true":
        problem = find_checkpoint_problem(option)
        if problem:
            raise UserError(f"--resume_from_checkpoint {option}: {problem}; use an earlier one")
        return option
    folders = list(Path(output_dir).glob("checkpoint-*[0-9]"))
    folders.sort(key=lambda folder: int(folder.name.rpartition("-")[2]), reverse=True)
    for folder in folders:
        problem = find_checkpoint_problem(folder)
        if not problem:
            return str(folder)
        if os.environ.get("RANK", "0") == "0":
            logger.warning("skipping %s: %s", folder, problem)
    missing = "no complete checkpoint" if folders else "no checkpoint"
    raise UserError(f"--resume_from_checkpoint {option}: {output_dir} holds {missing}")


def _read_record(folder: str | Path) -> dict[str, Any]:
    return json.loads(Path(folder, RECORD_FILE).read_text(encoding="utf-8"))


def check_settings(folder: str, settings: dict[str, Any], allows_changes: bool) -> None:
    """Raises a `UserError` if a checkpoint was trained on other data or with other settings.

    With `allows_changes` only those of `FIXED_SETTINGS` must be equal.
    """
    earlier = _read_record(folder)["settings"]
    names = [name for name in {**earlier, **settings} if earlier.get(name) != settings.get(name)]
    is_fixed = any(name in FIXED_SETTINGS for name in names)
    if not names or (allows_changes and not is_fixed):
        return
    differing = [f"{name} {earlier.get(name)} (now {settings.get(name)})" for name in names]
    way_out = "" if is_fixed else ", or --resume_with_changes true"
    raise UserError(
        f"--resume_from_checkpoint {folder} was trained with {', '.join(differing)}; "
        f"use the same options{way_out}"
    )
