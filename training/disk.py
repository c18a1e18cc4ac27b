"""Free disk space before a run, and disk errors in plain words."""

import errno
import os
import re
import shutil
from pathlib import Path


def check_disk_space(model, args, adapters: bool) -> None:
    """Raises ValueError if the disk of `--output_dir` has no room for the checkpoints of a run and the model at its end.

    Args:
        adapters: checkpoints hold what trains alone.
    """
    whole = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    one = (trained if adapters else whole) + 2 * trained  # with the optimizer's two moments
    there = len(
        [*Path(args.output_dir).glob("checkpoint-*")]
    )  # of the run that goes on: they give way
    kept = max(
        1, (args.save_total_limit or 0) + 1 - there
    )  # an old one goes when the new one is there
    needed, free = whole + kept * one, shutil.disk_usage(args.output_dir).free
    if args.save_strategy == "no":
        needed = whole
    if needed > free:
        raise ValueError(
            f"--output_dir {args.output_dir}: no room: up to {needed / 1e6:,.1f} MB for {kept} checkpoints of {one / 1e6:,.1f} "
            f"MB and the model, of {free / 1e6:,.1f} MB free; free some, or lower --save_total_limit"
        )


def describe_disk_error(error: Exception) -> str | None:
    """What an error says of a disk that takes no more: full, over quota, read-only; None if it is of something else."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
    texts = "|".join(os.strerror(number) for number in numbers)
    if getattr(error, "errno", None) in numbers or re.search(texts, str(error)):
        return str(error)
    # torch's writer tells no reason; its reader, which fails on torn files, is another
    return (
        "the file could not be written"
        if re.search("PytorchStreamWriter|unexpected pos", str(error))
        else None
    )
