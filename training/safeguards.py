"""Runs the Trainer, and reports what ended it early: audio, a full disk, a worker or a signal."""

import errno
import os
import re
import signal
import sys

from safetensors import SafetensorError

from ..data.features import FeatureCache
from ..runtime import UserError
from .callbacks import SkipNonFinite, StopOnSignal
from .trainer import AudioLMTrainer

PROGRAM = "run_train.py"


def run_training(trainer: AudioLMTrainer, stop: StopOnSignal, non_finite: SkipNonFinite) -> None:
    """Trains, and reports why training ended if it ended early.

    Raises:
        UserError: Audio, the disk, a data loader or the loss ended it.
        SystemExit: A signal ended it (status 128 + signal).
    """
    try:
        trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    except (OSError, SafetensorError, RuntimeError) as error:
        advice = describe_failure(error)
        if advice is None:
            raise
        print(file=sys.stderr)  # ends the line of the progress bar
        raise UserError(advice) from error
    finally:
        stop.restore()
        if isinstance(trainer.features, FeatureCache):
            trainer.features.save()
    non_finite.check(trainer.state.global_step)
    if stop.received:
        if trainer.is_world_process_zero():
            print(
                f"{PROGRAM}: stopped by {signal.Signals(stop.received).name}; "
                f"step {trainer.state.global_step} is saved. "
                "To resume, add --resume_from_checkpoint true to the same command.",
                file=sys.stderr,
            )
        sys.exit(128 + stop.received)


def describe_failure(error: Exception) -> str | None:
    """Describes a dead worker, or a disk that is full or read-only; None for other errors."""
    message = str(error)
    if "DataLoader worker" in message:
        return (
            f"{message.splitlines()[0]}. A killed worker often ran out of memory. "
            "Lower --dataloader_num_workers."
        )
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
    reasons = [os.strerror(code) for code in codes]
    # torch's writer gives no reason. Its reader has other messages for incomplete files.
    reasons += ["PytorchStreamWriter", "unexpected pos"]
    if getattr(error, "errno", None) in codes or re.search("|".join(reasons), message):
        return (
            f"a file could not be written ({message.splitlines()[0]}). Free disk space or lower "
            "--save_total_limit, and add --resume_from_checkpoint true to the same command"
        )
    return None
