"""Finds the checkpoint to resume from, and checks that it is complete and belongs to the run."""

import json
import logging
import os
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError, safe_open

from ..modeling_audiolm import AudioLMForConditionalGeneration
from ..runtime import UserError

logger = logging.getLogger("audiolm.train")
UNREADABLE = (OSError, SafetensorError, RuntimeError, LookupError, ValueError)
UNREADABLE += (EOFError, UnpicklingError, BadZipFile)
RECORD_FILE = "training_data.json"  # the `RunRecord` in a checkpoint
ADAPTER_CONFIG_FILE = "adapter_config.json"


def _optimizer_files(folder: Path, processes: int) -> list[str]:
    """Returns the files of a checkpoint's optimizer, and of sharded weights."""
    latest = folder / "latest"
    if latest.is_file():  # DeepSpeed writes it last
        step = latest.read_text().strip()
        shards = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(processes)]
        return [f"{step}/{name}" for name in ("mp_rank_00_model_states.pt", *shards)]
    if (folder / "pytorch_model_fsdp.bin").is_file():
        return ["pytorch_model_fsdp.bin", "optimizer.bin"]
    return ["optimizer.pt"]


def _read_file(file: Path) -> None:
    """Reads enough of a checkpoint's file to fail if it is missing or incomplete."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as tensors:
            tensors.keys()
    elif file.suffix == ".json":
        json.loads(file.read_text())
    elif file.name.startswith("rng_state") or file.parent.name.startswith("global_step"):
        # The list of a zip file's members stands at its end.
        ZipFile(file).close()
    else:
        torch.load(file, map_location="meta", weights_only=True)


def find_checkpoint_problem(folder: str | Path) -> str | None:
    """Describes what is missing or incomplete in a checkpoint, or returns None.

    A process that is killed while it saves leaves an incomplete checkpoint.
    """
    folder = Path(folder)
    has_adapters = (folder / ADAPTER_CONFIG_FILE).is_file()
    weights = "adapter_model.safetensors" if has_adapters else "model.safetensors"
    states = [path.name for path in folder.glob("rng_state_*.pth")] or ["rng_state.pth"]
    optimizer = _optimizer_files(folder, len(states))
    for name in (weights, *optimizer, "scheduler.pt", "trainer_state.json", *states, RECORD_FILE):
        try:
            _read_file(folder / name)
        except UNREADABLE as error:
            return f"{name} is missing or incomplete ({error})"
    processes = _read_record(folder).get("processes", len(states))
    if processes != len(states):
        return f"expected the random states of {processes} processes, found {len(states)}"
    return None


def checkpoint_to_resume(option: str | None, output_dir: str) -> str | None:
    """Returns the checkpoint that `--resume_from_checkpoint` names, or None for a fresh run.

    The option is a folder, `true` for the last complete checkpoint in `output_dir`, or `false`.

    Raises:
        UserError: There is no checkpoint, or it is incomplete.
    """
    if option is None or str(option).lower() in ("false", "no"):
        return None
    if str(option).lower() not in ("true", "yes", "last"):
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


def delete_incomplete_checkpoint(output_dir: str, step: int) -> str:
    """Deletes a step's checkpoint if it is incomplete, and describes how to resume.

    This frees the space that the next attempt needs.
    """
    folder = Path(output_dir, f"checkpoint-{step}")
    is_complete = find_checkpoint_problem(folder) is None
    if not is_complete:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        complete = checkpoint_to_resume("true", output_dir)
        advice = f"--resume_from_checkpoint true resumes from {complete}"
    except UserError:
        advice = "there is no checkpoint to resume from"
    saved = "saved" if is_complete else "not saved"
    return f"step {step} is {saved}. Free disk space or lower --save_total_limit; {advice}"


def _read_record(folder: str | Path) -> dict[str, Any]:
    return json.loads(Path(folder, RECORD_FILE).read_text(encoding="utf-8"))


def check_settings(folder: str, settings: dict[str, Any]) -> None:
    """Raises a `UserError` if a checkpoint was trained on other data or with other settings."""
    earlier = _read_record(folder).get("settings", {})
    differing = [
        f"{name} {earlier.get(name)} (now {settings.get(name)})"
        for name in {**earlier, **settings}
        if earlier.get(name) != settings.get(name)
    ]
    if differing:
        raise UserError(
            f"--resume_from_checkpoint {folder} was trained with {', '.join(differing)}; "
            "use the same options, or --resume_with_changes true"
        )


def check_stream(folder: str, settings: dict[str, Any]) -> None:
    """Raises a `UserError` if a checkpoint is not a place in this stream."""
    earlier = _read_record(folder).get("stream")
    if earlier is None:
        raise UserError(f"--resume_from_checkpoint {folder} was trained without --streaming")
    differing = [name for name in settings if earlier.get(name) != settings[name]]
    if differing:
        listed = ", ".join(f"{name} {earlier.get(name)}" for name in differing)
        raise UserError(
            f"--resume_from_checkpoint {folder} was trained on a stream with {listed}; use the "
            "same options, or examples are repeated and skipped"
        )


def check_encoder(model: AudioLMForConditionalGeneration, folder: str) -> None:
    """Raises a `UserError` if a checkpoint holds another encoder than `model`, or adapters."""
    if Path(folder, ADAPTER_CONFIG_FILE).is_file():
        raise UserError(f"--resume_from_checkpoint {folder} was trained with --lora_r")
    with safe_open(Path(folder, "model.safetensors"), "pt") as file:
        names = set(file.keys())
        for name, tensor in model.encoder.state_dict(prefix="encoder.").items():
            if name in names and not torch.equal(file.get_tensor(name), tensor.cpu()):
                raise UserError(
                    f"--resume_from_checkpoint {folder} was trained with another encoder ({name} "
                    "differs); use the same --encoder_type, --encoder_name_or_path and, for random "
                    "weights, --seed"
                )


def check_adapters(folder: str, r: int, alpha: int) -> None:
    """Raises a `UserError` if a checkpoint holds no LoRA adapters of this rank and scale."""
    config_file = Path(folder, ADAPTER_CONFIG_FILE)
    if not config_file.is_file():
        raise UserError(f"--resume_from_checkpoint {folder} was trained without --lora_r")
    config = json.loads(config_file.read_text())
    if (config["r"], config["lora_alpha"]) != (r, alpha):
        raise UserError(
            f"--resume_from_checkpoint {folder} was trained with --lora_r {config['r']} "
            f"--lora_alpha {config['lora_alpha']}"
        )


def check_features(model: AudioLMForConditionalGeneration, folder: str) -> None:
    """Raises a `UserError` if adapters, saved without an encoder, expect other features."""
    with safe_open(Path(folder, "adapter_model.safetensors"), "pt") as file:
        expected = file.get_tensor("base_model.model.mapper.feature_mean")
    mean = model.mapper.feature_mean.cpu()
    if expected.shape != mean.shape or not torch.allclose(expected, mean, 1e-2, 1e-3):
        raise UserError(
            f"--resume_from_checkpoint {folder} was trained with another encoder or on other clips "
            "(mapper.feature_mean differs); use the same --encoder_type, --encoder_name_or_path, "
            "--train_file and --max_audio_seconds"
        )
