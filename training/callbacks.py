"""What keeps a run from being lost: signals that end it, numbers that go wrong, and disks that are full."""

import logging
import math
import signal
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from .distributed import any_not_finite

logger = logging.getLogger("audiolm.train")


class EvaluationStopped(Exception):
    """A signal came while an evaluation ran."""


def ask(args, state, control) -> bool:
    """Whether several processes ask one another in this step: on a GPU, which would wait for it, not in each."""
    return args.device.type == "cpu" or control.should_log or state.global_step % 10 == 0


class StopOnSignal(TrainerCallback):
    """On SIGTERM or SIGINT, which a machine that is taken back or a person sends, lets the step end and saves it.

    An evaluation of one process is broken off; several end it, since one that leaves would let the others wait for ever.

    Several processes agree on the step: a signal does not reach all of them in the same one. On a GPU they ask one another
    in every tenth step and where one is logged. A second signal ends the process at once.
    """

    def __init__(self):
        self.received: int | None = None
        self.before = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGTERM, signal.SIGINT)
        }

    def _receive(self, number, frame):
        self.received = number
        self.restore()

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.received and args.world_size == 1:
            raise EvaluationStopped

    def restore(self) -> None:
        """Signals do again what they did before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size > 1 and ask(args, state, control):
            number = torch.tensor(self.received or 0, device=args.device)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
            stop = self.received = number.item() or None
        else:
            stop = self.received if args.world_size == 1 else None
        if stop:
            control.should_save = control.should_training_stop = True


class SkipNonFinite(TrainerCallback):
    """Leaves out the update of a step whose gradients are not finite, and says so, with its rows, where the step is logged.

    Until then nothing waits for the GPU: the fused optimizer reads the flag there; the host asks for it with other optimizers.
    After more than `most` such steps the run stops, with a checkpoint of weights that none of them changed.

    Args:
        most: steps. describe: names the rows of a step, counted from 1.
    """

    def __init__(self, most: int, describe: Callable[[int], str] | None = None):
        self.most, self.describe = most, describe
        self.pending: list[tuple[int, torch.Tensor]] = []
        self.skipped: list[int] = []

    @property
    def failed(self) -> bool:
        return len(self.skipped) > self.most

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        inner = getattr(optimizer, "optimizer", optimizer)  # as accelerate wraps it
        trained = [p for group in inner.param_groups for p in group["params"] if p.grad is not None]
        if args.fp16 or not trained:  # whose scaler skips them; DeepSpeed has made its step already
            return
        bad = any_not_finite([p.grad for p in trained])
        self.pending.append((state.global_step + 1, bad))
        if inner.defaults.get("fused"):
            inner.found_inf = bad.float()
        elif bad.item():
            for parameter in trained:
                parameter.grad = None

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_log or control.should_save:
            self._read(control)

    def on_train_end(self, args, state, control, **kwargs):
        self._read(control)

    def _read(self, control) -> None:
        if not self.pending:
            return
        steps, flags = zip(*self.pending)
        self.pending = []
        for step in [step for step, bad in zip(steps, torch.stack(flags).tolist()) if bad]:
            self.skipped.append(step)
            rows = f"; its rows: {self.describe(step)}" if self.describe else ""
            logger.warning(
                "step %d: loss or gradients are not finite; its update was skipped%s", step, rows
            )
        if self.failed:
            control.should_save = control.should_training_stop = True


class LossSpikes(TrainerCallback):
    """Says so where a logged loss stands out of those before: by `FAR` times their spread, and by half of their median.

    Nothing else is done: one spike in a long run is common, and a row of them says that the learning rate is too high.
    """

    WINDOW, LEAST, FAR = (
        50,
        10,
        8.0,
    )  # entries that are looked back at, and are needed; median absolute deviations

    def __init__(self):
        self.losses: deque[float] = deque(maxlen=self.WINDOW)
        self.since = 0  # the step of the last entry

    def on_train_begin(self, args, state, control, **kwargs):
        self.since = state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss = (logs or {}).get("loss")
        if loss is None or not math.isfinite(loss := float(loss)):
            return
        if len(self.losses) >= self.LEAST:
            middle = median(self.losses)
            spread = median(abs(other - middle) for other in self.losses)
            if loss > middle + self.FAR * spread and loss > 1.5 * middle:
                logger.warning(
                    "steps %d to %d: loss %.3f, after a median of %.3f",
                    self.since + 1,
                    state.global_step,
                    loss,
                    middle,
                )
        self.losses.append(loss)
        self.since = state.global_step


class BadAudio(TrainerCallback):
    """Counts the clips that turned bad since they were checked, whose rows were replaced, and stops a run that has too many.

    Args:
        most: of clips. output_dir: where `bad_audio.txt` gets a line for each.
    """

    def __init__(self, most: int, output_dir: str):
        self.most, self.listing = most, Path(output_dir, "bad_audio.txt")
        self.faults: dict[str, int] = {}  # and the rows that were replaced for each
        self.clips = 0  # of all processes

    @property
    def failed(self) -> bool:
        return self.clips > self.most

    def found(self, fault: str) -> None:
        """Takes note of what is wrong with a clip."""
        if fault in self.faults:
            return
        self.faults[fault], line = 0, fault.replace("\n", " ") + "\n"
        logger.warning("%s; another row of its batch takes its place", fault)
        self.listing.parent.mkdir(parents=True, exist_ok=True)
        with self.listing.open("a+", encoding="utf-8") as file:
            file.seek(0)
            if line not in file:  # of another process
                file.write(line)

    def __call__(self, fault: str) -> None:
        """Counts a row that was replaced for it."""
        self.found(fault)
        self.faults[fault] += 1

    def on_step_end(self, args, state, control, **kwargs):
        self.clips = len(self.faults)
        if args.world_size > 1 and ask(args, state, control):
            of_all = [None] * args.world_size
            torch.distributed.all_gather_object(of_all, list(self.faults))
            self.clips = len(set().union(*of_all))
        elif args.world_size > 1:
            self.clips = 0  # of the others nothing is known in this step
        if self.failed:
            control.should_save = control.should_training_stop = True

    def __str__(self) -> str:
        return f"{sum(self.faults.values())} rows were replaced, since {len(self.faults)} clips turned bad: {self.listing}"


def format_log_line(step: int, steps: int, logs: dict) -> str:
    """What is logged at a step, as a person reads it."""
    shown = {"loss": "{:.4f}", "grad_norm": "{:.3g}", "learning_rate": "{:.2e}", "epoch": "{:.2f}"}
    parts = [
        f"{name.removeprefix('eval_').replace('_', ' ')} {shown.get(name, '{:.4g}').format(value)}"
        for name, value in logs.items()
        if isinstance(value, (int, float)) and name != "total_flos"
    ]
    evaluated = " evaluation:" if any(name.startswith("eval_") for name in logs) else ""
    return f"step {step:,} of {steps:,}:{evaluated} {', '.join(parts)}"


class Progress(ProgressCallback):
    """The stock bars, with lines that say their step."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(format_log_line(state.global_step, state.max_steps, logs))


class LineLogger(PrinterCallback):
    """The same lines without bars, for `--disable_tqdm true`."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            print(format_log_line(state.global_step, state.max_steps, logs), flush=True)
