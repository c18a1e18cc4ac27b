"""Checks folders and free disk space before a run, and describes disk errors."""

import errno
import os
import re
import shutil
from pathlib import Path

from torch import nn

from ..runtime import UserError, format_bytes
from .arguments import AudioLMTrainingArguments


def create_folder(option: str, folder: str) -> None:
    """Creates the folder of an option, or raises a `UserError`."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--{option} {folder}: {error.strerror}") from error


def check_disk_space(
    model: nn.Module, args: AudioLMTrainingArguments, saves_adapters: bool
) -> None:
    """Raises a `UserError` if `--output_dir` has no space for the checkpoints and the final model.

    With `saves_adapters` checkpoints hold only the trained weights.
    """
    model_size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    trained_size = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    optimizer_size = 2 * trained_size  # the two moments of Adam
    checkpoint_size = (trained_size if saves_adapters else model_size) + optimizer_size
    # A new checkpoint is written before the oldest is deleted, also one of a resumed run.
    existing = len(list(Path(args.output_dir).glob("checkpoint-*")))
    count = max(1, (args.save_total_limit or 0) + 1 - existing)
    needed = model_size
    if args.save_strategy != "no":
        needed += count * checkpoint_size
    free = shutil.disk_usage(args.output_dir).free
    if needed > free:
        raise UserError(
            f"--output_dir {args.output_dir}: not enough disk space: the model and {count} "
            f"checkpoints of {format_bytes(checkpoint_size)} need {format_bytes(needed)}, "
            f"{format_bytes(free)} are free. Free some space, or lower --save_total_limit"
        )


def describe_disk_error(error: Exception) -> str | None:
    """Describes an error of a disk that is full, over quota or read-only; None for other errors."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
    texts = "|".join(os.strerror(code) for code in codes)
    if getattr(error, "errno", None) in codes or re.search(texts, str(error)):
        return str(error)
    # torch's writer gives no reason. Its reader has other messages for incomplete files.
    if re.search("PytorchStreamWriter|unexpected pos", str(error)):
        return "the file could not be written"
    return None
