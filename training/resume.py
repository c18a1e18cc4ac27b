"""Checkpoints to resume a run from: which one, whether it is whole, and whether it is of the same encoder, adapters, stream."""

import json
import logging
import os
import shutil
from pathlib import Path
from pickle import UnpicklingError
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError, safe_open

from ..runtime import write_run_info

logger = logging.getLogger("audiolm.train")
UNREADABLE = (
    OSError,
    SafetensorError,
    RuntimeError,
    LookupError,
    ValueError,
    EOFError,
    UnpicklingError,
    BadZipFile,
)
RECORD = "training_data.json"  # of a checkpoint: what it was trained on


def _optimizer_files(folder: Path, processes: int) -> list[str]:
    """Names of the files that hold a checkpoint's optimizer; where GPUs share a model, also weights in their form."""
    if (folder / "latest").is_file():  # DeepSpeed writes it last
        step = (folder / "latest").read_text().strip()
        parts = [
            f"{step}/zero_pp_rank_{number}_mp_rank_00_optim_states.pt"
            for number in range(processes)
        ]
        return [f"{step}/mp_rank_00_model_states.pt", *parts]
    if (folder / "pytorch_model_fsdp.bin").is_file():
        return ["pytorch_model_fsdp.bin", "optimizer.bin"]
    return ["optimizer.pt"]


def find_checkpoint_problem(folder: str | Path) -> str | None:
    """What is missing or torn in a checkpoint, as by a process that was killed while it wrote; None if it is whole."""
    folder = Path(folder)
    weights = (
        "adapter_model.safetensors"
        if (folder / "adapter_config.json").is_file()
        else "model.safetensors"
    )
    states = [path.name for path in folder.glob("rng_state_*.pth")] or ["rng_state.pth"]
    for name in (
        weights,
        *_optimizer_files(folder, len(states)),
        "scheduler.pt",
        "trainer_state.json",
        *states,
        RECORD,
    ):
        file = folder / name
        try:
            if name.endswith(".safetensors"):
                with safe_open(file, "pt") as tensors:
                    tensors.keys()
            elif name == RECORD:
                if len(states) != (
                    wanted := json.loads(file.read_text()).get("processes", len(states))
                ):
                    return (
                        f"the states of {wanted} processes are wanted, but {len(states)} are there"
                    )
            elif name.endswith(".json"):
                json.loads(file.read_text())
            elif name in states or name.startswith("global_step"):
                ZipFile(file).close()  # its end lists its parts
            else:
                torch.load(file, map_location="meta", weights_only=True)
        except UNREADABLE as error:
            return f"{name} is missing or torn ({error})"
    return None


def checkpoint_to_resume(asked: str | bool | None, output_dir: str) -> str | None:
    """The checkpoint that `--resume_from_checkpoint` names: a folder, or `true` for the last whole one of `output_dir`.

    Raises:
        ValueError: if there is none, or the folder's is not whole.
    """
    if asked is None or str(asked).lower() in ("false", "no"):
        return None
    if str(asked).lower() not in ("true", "yes", "last"):
        if found := find_checkpoint_problem(asked):
            raise ValueError(f"--resume_from_checkpoint {asked}: {found}; name an earlier one")
        return asked
    numbers = [
        int(path.name.rpartition("-")[2]) for path in Path(output_dir).glob("checkpoint-*[0-9]")
    ]
    for number in sorted(numbers, reverse=True):
        folder = str(Path(output_dir, f"checkpoint-{number}"))
        if not (found := find_checkpoint_problem(folder)):
            return folder
        if os.environ.get("RANK", "0") == "0":  # once, not by each process
            logger.warning("%s is passed over: %s", folder, found)
    torn = "no whole checkpoint" if numbers else "no checkpoint"
    raise ValueError(f"--resume_from_checkpoint {asked}: {output_dir} holds {torn}")


def delete_incomplete_checkpoint(output_dir: str, step: int) -> str:
    """Removes a step's checkpoint if it is torn, so that the disk has its room again; tells how to go on."""
    if find_checkpoint_problem(folder := Path(output_dir, f"checkpoint-{step}")):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        whole = f"{checkpoint_to_resume('true', output_dir)} is whole: --resume_from_checkpoint true goes on from it"
    except ValueError:
        whole = "there is no earlier one"
    saved = f"step {step} is {'' if folder.is_dir() else 'not '}saved"
    return f"{saved}; free some room, or lower --save_total_limit; {whole}"


def save_run_record(record: dict, info: dict, folder: Path) -> None:
    """Writes into a checkpoint what it was trained on, where adapters alone are saved too.

    Args:
        record: `data`, `changes`, `settings`, the number of `processes` and, if rows are streamed, `stream`: what their order
            depends on. info: of [`run_info`].
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    write_run_info(folder, info)


def check_settings(folder: str, settings: dict) -> None:
    """Raises ValueError, which names what differs, if a checkpoint was trained on other data or with other settings."""
    earlier = json.loads(Path(folder, RECORD).read_text(encoding="utf-8")).get("settings", {})
    differing = [
        f"{name} {earlier.get(name)} (now {settings.get(name)})"
        for name in {**earlier, **settings}
        if earlier.get(name) != settings.get(name)
    ]
    if differing:
        raise ValueError(
            f"--resume_from_checkpoint {folder} was trained with {', '.join(differing)}; give the same, or "
            "--resume_with_changes true"
        )


def check_stream(folder: str, settings: dict) -> None:
    """Raises ValueError if a checkpoint was trained on a stream of other settings, in which its place is another one."""
    try:
        earlier = json.loads(Path(folder, RECORD).read_text(encoding="utf-8"))["stream"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"--resume_from_checkpoint {folder}: {RECORD} is missing or torn ({error})"
        ) from error
    if earlier is None:
        raise ValueError(f"--resume_from_checkpoint {folder} was trained without --streaming")
    if differing := [
        f"{name} {earlier.get(name)}" for name in settings if earlier.get(name) != settings[name]
    ]:
        raise ValueError(
            f"--resume_from_checkpoint {folder} was trained on a stream with {', '.join(differing)}; give the "
            "same, or rows come twice or never"
        )


def check_encoder(model, folder: str) -> None:
    """Raises ValueError if a checkpoint holds another encoder than `model`, whose features are computed before it is read."""
    if Path(folder, "adapter_config.json").is_file():
        raise ValueError(f"--resume_from_checkpoint {folder} was trained with --lora_r")
    with safe_open(Path(folder, "model.safetensors"), "pt") as file:
        names = set(file.keys())
        for name, tensor in model.encoder.state_dict(prefix="encoder.").items():
            if name in names and not torch.equal(file.get_tensor(name), tensor.cpu()):
                raise ValueError(
                    f"--resume_from_checkpoint {folder} was trained with another encoder ({name} differs); give the same "
                    "--encoder_type, --encoder_name_or_path and, if that is `random`, --seed"
                )


def check_adapters(folder: str, r: int, alpha: int) -> None:
    """Raises ValueError if a checkpoint does not hold LoRA adapters of this rank and scale."""
    settings = Path(folder, "adapter_config.json")
    if not settings.is_file():
        raise ValueError(f"--resume_from_checkpoint {folder} was trained without --lora_r")
    earlier = json.loads(settings.read_text())
    if (found := (earlier["r"], earlier["lora_alpha"])) != (r, alpha):
        raise ValueError(
            f"--resume_from_checkpoint {folder} was trained with --lora_r {found[0]} --lora_alpha {found[1]}"
        )


def check_features(model, folder: str) -> None:
    """Raises ValueError if a checkpoint of adapters, which holds no encoder, was trained on other features than `model`'s."""
    with safe_open(Path(folder, "adapter_model.safetensors"), "pt") as file:
        found, here = (
            file.get_tensor("base_model.model.mapper.feature_mean"),
            model.mapper.feature_mean.cpu(),
        )
    if found.shape != here.shape or not torch.allclose(found, here, 1e-2, 1e-3):
        raise ValueError(
            f"--resume_from_checkpoint {folder} was trained with another encoder or on other clips (mapper.feature_mean "
            "differs); give the same --encoder_type, --encoder_name_or_path, --train_file and --max_audio_seconds"
        )
