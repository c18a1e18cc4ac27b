"""Callbacks of a run: signals, losses that are not finite, clips that turn bad, progress."""

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from transformers import (
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
)
from transformers.trainer_utils import IntervalStrategy

from ..runtime import UserError

GPU_SYNC_INTERVAL = 10  # steps

logger = logging.getLogger("audiolm.train")


class EvaluationStopped(Exception):
    """A signal arrived during an evaluation."""


def _save_and_stop(control: TrainerControl) -> None:
    control.should_save = True
    control.should_training_stop = True


class StopOnSignal(TrainerCallback):
    """Ends the run with a checkpoint after SIGTERM (preemption) or SIGINT (Ctrl-C).

    A step runs to its end. An evaluation stops at once in one process. Several processes finish it,
    and agree on the step to stop at, because one that left would make the others wait forever. A
    second signal ends the process immediately. transformers' own handles SIGTERM only.
    """

    def __init__(self):
        self.received: int | None = None  # number of the signal
        numbers = (signal.SIGTERM, signal.SIGINT)
        self.previous_handlers = {n: signal.signal(n, self._receive) for n in numbers}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.restore()

    def restore(self) -> None:
        """Restores the signal handlers from before the run."""
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)

    def on_prediction_step(self, args, state, control, **kwargs) -> None:
        """Interrupts an evaluation of a single process."""
        if self.received and args.world_size == 1:
            raise EvaluationStopped

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Stops the run if a process received a signal."""
        if args.world_size > 1:
            # They communicate where they wait for the GPU anyway.
            is_due = state.global_step % GPU_SYNC_INTERVAL == 0 or control.should_log
            if args.device.type != "cpu" and not is_due:
                return
            number = torch.tensor(self.received or 0, device=args.device)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
            self.received = int(number.item()) or None
        if self.received:
            _save_and_stop(control)


class EvaluateLastStep(TrainerCallback):
    """Evaluates the last step too, if it is no multiple of `--eval_steps`."""

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Requests the evaluation."""
        has_steps = args.eval_strategy == IntervalStrategy.STEPS
        if has_steps and state.global_step >= state.max_steps:
            control.should_evaluate = True


class SkipNonFinite(TrainerCallback):
    """Skips the update of a step whose gradients are not finite.

    The step and its examples are named at the next logged step. Until then nothing waits for the
    GPU: the fused optimizer reads the flag there. For other optimizers the host reads it.

    Args:
        most: Number of such steps after which the run stops, with a checkpoint.
        describe: Names the examples of a step. Steps are counted from 1.
    """

    def __init__(self, most: int, describe: Callable[[int], str]):
        self.most = most
        self.describe = describe
        self.skipped: list[int] = []  # steps
        self._pending: dict[int, torch.Tensor] = {}  # step to flag, not read yet

    def on_pre_optimizer_step(self, args, state, control, optimizer: Any = None, **kwargs) -> None:
        """Passes the optimizer a flag that makes it skip the update."""
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        parameters: list[nn.Parameter] = []
        for group in optimizer.param_groups:
            parameters += group["params"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if args.fp16:  # Its scaler skips such steps itself.
            return
        is_bad = ~torch.stack(torch._foreach_norm(gradients)).isfinite().all()
        self._pending[state.global_step + 1] = is_bad
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = is_bad.float()
        elif is_bad.item():
            for parameter in parameters:
                parameter.grad = None

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Reads the flags if the step is logged or saved, which waits for the GPU anyway."""
        if control.should_log or control.should_save:
            self._read_flags()
            if len(self.skipped) > self.most:
                _save_and_stop(control)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Reads the flags of the last steps."""
        self._read_flags()

    def check(self, step: int) -> None:
        """Raises a `UserError` if too many steps were skipped. The last one, `step`, is saved."""
        if len(self.skipped) > self.most:
            raise UserError(
                f"loss or gradients of the steps {', '.join(map(str, self.skipped))} were not "
                f"finite, more than --max_skipped_steps {self.most}; step {step} is saved, "
                "without their updates"
            )

    def _read_flags(self) -> None:
        flags = torch.stack(list(self._pending.values())).tolist() if self._pending else []
        for step, is_bad in zip(self._pending, flags):
            if is_bad:
                self.skipped.append(step)
                message = "step %d: loss or gradients are not finite; its update was skipped; "
                logger.warning(message + "its rows: %s", step, self.describe(step))
        self._pending.clear()


class BadAudioLog:
    """Logs a clip that turned bad during the run once, and lists it in `bad_audio.txt`.

    Args:
        output_dir: Folder of the list.
    """

    def __init__(self, output_dir: str):
        self.listing = Path(output_dir, "bad_audio.txt")
        self.faults: set[str] = set()  # seen by this process

    def __call__(self, fault: str) -> None:
        """Logs and lists what is wrong with a clip. It begins with the clip's path."""
        if fault in self.faults:
            return
        self.faults.add(fault)
        logger.warning("%s; another row of its batch takes its place", fault)
        line = fault.replace("\n", " ") + "\n"
        self.listing.parent.mkdir(parents=True, exist_ok=True)
        with self.listing.open("a+", encoding="utf-8") as file:
            file.seek(0)
            if line not in file:  # Another process may have written it.
                file.write(line)


def is_cpu_shared(args: TrainingArguments) -> bool:
    """Whether other programs slow down a run on the CPU. The time left then changes with them."""
    if args.device.type != "cpu" or not hasattr(os, "getloadavg"):
        return False
    own_load = torch.get_num_threads() + args.dataloader_num_workers
    return os.getloadavg()[0] > own_load * args.world_size + 0.5


class Progress(ProgressCallback):
    """The stock progress bars, which say when the CPU is shared."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Writes a line above the bar."""
        super().on_log(args, state, control, logs=logs, **kwargs)
        if self.training_bar is not None:
            shared = is_cpu_shared(args)
            self.training_bar.set_postfix({"CPU": "shared with other programs"} if shared else {})
