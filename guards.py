"""What keeps a run from being lost: signals that end it, and numbers that go wrong."""

import logging
import signal
from collections.abc import Callable

import torch
from transformers import TrainerCallback

logger = logging.getLogger("audiolm.train")


class StopOnSignal(TrainerCallback):
    """On SIGTERM or SIGINT, which a machine that is taken back or a person sends, lets the step end and saves it.

    Several processes agree on the step: a signal does not reach all of them in the same one. On a GPU they ask one another
    where a step is logged, which waits anyway. A second signal ends the process at once.
    """

    def __init__(self):
        self.received: int | None = None
        self.before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}

    def _receive(self, number, frame):
        self.received = number
        self.restore()

    def restore(self) -> None:
        """Signals do again what they did before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size > 1 and (args.device.type == "cpu" or control.should_log):
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
        if args.fp16:  # its scaler skips them
            return
        inner = getattr(optimizer, "optimizer", optimizer)  # as accelerate wraps it
        trained = [p for group in inner.param_groups for p in group["params"] if p.grad is not None]
        bad = ~torch.stack(torch._foreach_norm([p.grad for p in trained])).isfinite().all()
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
            logger.warning("step %d: loss or gradients are not finite; its update was skipped%s", step, rows)
        if self.failed:
            control.should_save = control.should_training_stop = True
