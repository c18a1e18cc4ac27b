"""Checkpoints to resume a run from: which one, whether it is whole, and whether it is of the same encoder."""

import json
from pathlib import Path
from pickle import UnpicklingError
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import get_last_checkpoint


def checkpoint_to_resume(asked: str | bool | None, output_dir: str) -> str | None:
    """The checkpoint that `--resume_from_checkpoint` names: a folder, or `true` for the last one of `output_dir`.

    Raises:
        ValueError: if there is none, or one of its files is missing or torn.
    """
    if asked is None or str(asked).lower() in ("false", "no"):
        return None
    folder = asked
    if str(asked).lower() in ("true", "yes", "last"):
        folder = get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None
        if folder is None:
            raise ValueError(f"--resume_from_checkpoint {asked}: {output_dir} holds no checkpoint")
    weights = "adapter_model.safetensors" if Path(folder, "adapter_config.json").is_file() else "model.safetensors"
    names = [weights, "optimizer.pt", "scheduler.pt", "trainer_state.json"]
    states = [path.name for path in Path(folder).glob("rng_state*.pth")] or ["rng_state.pth"]
    for name in names + states:
        file = Path(folder, name)
        try:
            if name.endswith(".safetensors"):
                with safe_open(file, "pt") as tensors:
                    tensors.keys()
            elif name.endswith(".json"):
                json.loads(file.read_text())
            elif name in states:
                ZipFile(file).close()  # its end lists its parts
            else:
                torch.load(file, map_location="meta", weights_only=True)
        except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, UnpicklingError, BadZipFile) as error:
            raise ValueError(f"--resume_from_checkpoint: {file} is missing or torn ({error}); name an earlier one") from error
    return folder


def check_encoder(model, folder: str, adapters: bool = False) -> None:
    """Raises ValueError if a checkpoint holds another encoder than `model`, whose features are computed before it is read.

    Args:
        adapters: whether LoRA trains. Its checkpoints hold no encoder; the mean of its features tells it from another.
    """
    if Path(folder, "adapter_config.json").is_file() != adapters:
        raise ValueError(f"--resume_from_checkpoint {folder} was trained {'without' if adapters else 'with'} --lora_r")
    if adapters:
        wanted, prefix = {"mapper.feature_mean": model.mapper.feature_mean}, "base_model.model."
    else:
        wanted, prefix = model.encoder.state_dict(prefix="encoder."), ""
    with safe_open(Path(folder, "adapter_model.safetensors" if adapters else "model.safetensors"), "pt") as file:
        names = set(file.keys())
        for name, tensor in wanted.items():
            if prefix + name not in names:
                continue
            found, here = file.get_tensor(prefix + name), tensor.cpu()
            if found.shape != here.shape or not (torch.allclose(found, here, 1e-2) if adapters else torch.equal(found, here)):
                raise ValueError(
                    f"--resume_from_checkpoint {folder} was trained with another encoder ({name} differs); give the same "
                    "--encoder_type, --encoder_name_or_path and, if that is `random`, --seed"
                )
