"""The order of rows in training: batches of rows of about one length, the same for every arm."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback

from ..training.callbacks import EvaluationStopped
from ..training.distributed import ParallelTrainer

# what a row's length is measured by, whatever an arm makes of a second of audio
TOKENS_PER_SECOND, TOKENS_PER_CHARACTER = 10, 0.25
STEPS_PER_DRAW = 64  # rows are drawn for so many steps at once, and sorted among these
DRAWS = 8  # at least, in an epoch: sorted all at once, the same rows would always meet


def row_lengths(rows, seconds: dict[str, float], max_seconds: float) -> list[float]:
    """About how many tokens each row has: by the seconds that are used of its clips, and its text's characters.

    Args:
        rows: a `Dataset`, or another mapping of columns. seconds: of each clip.
    """
    return [
        TOKENS_PER_SECOND * sum(min(seconds[clip], max_seconds) for clip in clips)
        + TOKENS_PER_CHARACTER * (len(question) + len(answer))
        for clips, question, answer in zip(rows["audio"], rows["input"], rows["answer"])
    ]


class LengthBucketSampler(Sampler[int]):
    """Numbers of all rows in an order in which each `rows_per_step` that follow one another are of about one length.

    Drawn anew for each epoch, by `seed` and its number alone: a run that is resumed, another arm, more processes or smaller
    batches find the same rows in each step. Within a step they come by length, shortest first.
    """

    def __init__(self, lengths: list[float], rows_per_step: int, seed: int):
        self.lengths, self.rows_per_step, self.seed, self.epoch = torch.tensor(lengths), rows_per_step, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """As the Trainer calls it before each epoch, counted from 0."""
        self.epoch = epoch

    def order(self, epoch: int) -> torch.Tensor:
        """Numbers of the rows in an epoch, (rows,); of steps that are not full, the last one."""
        name = hashlib.sha256(f"{self.seed} {epoch}".encode()).digest()
        draw = torch.Generator().manual_seed(int.from_bytes(name[:7], "big"))
        drawn, full = torch.randperm(len(self), generator=draw), len(self) // self.rows_per_step
        steps, rest = drawn[: full * self.rows_per_step], drawn[full * self.rows_per_step :]
        at_once = self.rows_per_step * max(1, min(STEPS_PER_DRAW, full // DRAWS))
        by_length = [part[self.lengths[part].argsort(stable=True)] for part in (*steps.split(at_once), rest)]
        steps = torch.cat(by_length[:-1]).view(full, self.rows_per_step)
        return torch.cat([steps[torch.randperm(full, generator=draw)].flatten(), by_length[-1]])

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self.epoch).tolist())

    def rows_of(self, step: int) -> list[int]:
        """Numbers of the rows of a training step, counted from 1 over all epochs."""
        epoch, step = divmod(step - 1, -(-len(self) // self.rows_per_step))
        return self.order(epoch)[step * self.rows_per_step :][: self.rows_per_step].tolist()

    def digest(self) -> str:
        """SHA-256 of the first epoch's order: equal where all batches are."""
        return hashlib.sha256(self.order(0).numpy().astype("<i8").tobytes()).hexdigest()


class _Epochs(TrainerCallback):
    """Tells a sampler which epoch begins; accelerate loses sight of it where batches are skipped in several processes."""

    def __init__(self, sampler: LengthBucketSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int((state.epoch or 0) + 1e-6))


class BucketTrainer(ParallelTrainer):
    """The stock Trainer, whose rows come in the order of a sampler, if one is given; a loss of NaN spoils one log entry.

    Args:
        on_bad: is told what is wrong with the clips whose rows a batch replaced. keep_record: writes into a checkpoint's
            folder what the run was given.
    """

    _flops_per_token = None

    def __init__(self, *args, sampler: LengthBucketSampler | None = None, on_bad: Callable | None = None,
                 keep_record: Callable[[Path], None] | None = None, **kwargs):  # fmt: skip
        super().__init__(*args, **kwargs)
        self.sampler, self.on_bad, self.keep_record = sampler, on_bad, keep_record
        if sampler is not None:
            self.add_callback(_Epochs(sampler))

    def _get_train_sampler(self, train_dataset=None):
        return super()._get_train_sampler(train_dataset) if self.sampler is None else self.sampler

    def _prepare_inputs(self, inputs):
        for fault in inputs.pop("bad_audio", ()):
            self.on_bad(fault)
        return super()._prepare_inputs(inputs)

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # resumed where it had ended: the Trainer would take one step more
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _evaluate(self, *args, **kwargs):
        try:
            return super()._evaluate(*args, **kwargs)
        except EvaluationStopped:
            self.control.should_evaluate = False
            self.control.should_save = self.control.should_training_stop = True
            return {}

    def _determine_best_metric(self, metrics, trial):
        return bool(metrics) and super()._determine_best_metric(metrics, trial)

    def _save_checkpoint(self, *args, **kwargs):
        if self.keep_record is not None and self.is_world_process_zero():  # whole before an earlier one gives way to it
            self.keep_record(Path(self.args.output_dir, f"checkpoint-{self.state.global_step}"))
        super()._save_checkpoint(*args, **kwargs)

    def _finalize_training(self, *args, **kwargs):
        if self.state.global_step < self.state.max_steps:  # the Trainer would leave the best one alone; the last one goes on
            self.state.best_model_checkpoint = None
        return super()._finalize_training(*args, **kwargs)

    def floating_point_ops(self, inputs):
        """The Trainer's estimate, which goes through all parameters, by its first value."""
        if self._flops_per_token is None:
            self._flops_per_token = super().floating_point_ops(inputs) // inputs["input_ids"].numel()
        return self._flops_per_token * inputs["input_ids"].numel()

    def _maybe_log_save_evaluate(self, tr_loss, *args, **kwargs):
        logged = self.control.should_log
        super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)
        if logged:
            tr_loss.zero_()  # the Trainer takes the sum from itself, which leaves NaN for the rest of the run
