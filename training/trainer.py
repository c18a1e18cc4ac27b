"""The Trainer of a run: the stock one, with what exact resuming and several processes need.

transformers 5.23 has no public hook for most of this, so seven private methods are overridden.
Their docstrings say why.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import ProgressCallback, Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput, has_length

from ..data.collator import encode_new_clips
from ..data.length_sampler import LengthGroupedSampler
from .callbacks import EvaluationStopped, Progress
from .stock_options import MACRO_LOSS


class AudioLMTrainer(Trainer):
    """The stock Trainer, with results that do not depend on interruptions or on the processes.

    Args:
        sampler: Order of the training examples. Default: the stock Trainer's.
        on_bad: Receives what is wrong with a clip whose example the collator replaced.
        keep_record: Writes the record of the run into the folder of a checkpoint.
    """

    def __init__(
        self,
        *args,
        sampler: LengthGroupedSampler | None = None,
        on_bad: Callable[[str], None] | None = None,
        keep_record: Callable[[Path], None] | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.sampler = sampler
        self.on_bad = on_bad
        self.keep_record = keep_record
        self.features: Any = getattr(self.data_collator, "features", None)
        self._flops_per_token: int | None = None
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(Progress)

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        """Returns the sampler of the run. It can go once the Trainer takes a sampler."""
        return super()._get_train_sampler(train_dataset) if self.sampler is None else self.sampler

    def _get_dataloader(self, *args, **kwargs) -> DataLoader:
        """Gives a loader its own generator. It can go once the Trainer passes one.

        Otherwise building the loaders of a resumed run would change its dropout.
        """
        loader = super()._get_dataloader(*args, **kwargs)
        base_loader = getattr(loader, "base_dataloader", loader)
        base_loader.generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """Returns the batches of a step and their answer tokens, with no example counted twice."""
        batches = map(self._mask_repeated_examples, epoch_iterator)
        samples = super().get_batch_samples(batches, num_batches, device)
        loader = self.accelerator.gradient_state.active_dataloader
        if loader is not None:
            # accelerate's `skip_first_batches` drops this setting in a resumed epoch.
            loader._non_blocking = self.accelerator.non_blocking
        return samples

    def _mask_repeated_examples(self, batch: dict) -> dict:
        is_last = self.accelerator.gradient_state.end_of_dataloader
        if is_last and has_length(self.train_dataset):
            mask_repeated_examples(batch, len(self.train_dataset), self.args)
        return batch

    def _prepare_inputs(self, inputs: dict) -> dict:
        """Reports replaced clips and encodes those that the feature cache lacks.

        It can go once a callback receives all batches.
        """
        faults = inputs.pop("bad_audio", ())
        if self.on_bad is not None:
            for fault in faults:
                self.on_bad(fault)
        inputs = super()._prepare_inputs(inputs)
        return encode_new_clips(inputs, self.features) if "new_clips" in inputs else inputs

    def _run_epoch(self, *args, **kwargs) -> None:
        """Runs no epoch after the last step, where the Trainer would add one to a resumed run.

        It also tells the sampler the epoch, which accelerate does not if processes skip batches.
        """
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        if self.sampler is not None:
            self.sampler.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def _evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Saves and stops when a signal interrupts an evaluation.

        It can go once a callback can end an evaluation early.
        """
        try:
            return super()._evaluate(*args, **kwargs)
        except EvaluationStopped:
            self.control.should_evaluate = False
            self.control.should_save = self.control.should_training_stop = True
            return {}

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict:
        """Evaluates, and adds the mean loss over the question types."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(rows, dict):
            losses = [metrics[f"{metric_key_prefix}_{name}_token_loss"] for name in rows]
            name = f"{metric_key_prefix}_{MACRO_LOSS}"
            metrics[name] = sum(losses) / len(losses)
            self.log({name: metrics[name]})
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial) -> bool:
        """Requests a save after an interrupted evaluation. It goes together with `_evaluate`."""
        return not metrics or super()._determine_best_metric(metrics, trial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs with the step, and resets the running loss, which would keep a NaN."""
        super().log({"step": self.state.global_step, **logs}, start_time)
        if "loss" in logs:
            self._tr_loss.zero_()

    def floating_point_ops(self, inputs: dict) -> int:
        """Returns the Trainer's estimate, which takes 2.6 ms of a step's 10 ms on a GPU."""
        num_tokens = inputs["input_ids"].numel()
        if self._flops_per_token is None:
            self._flops_per_token = super().floating_point_ops(inputs) // num_tokens
        return self._flops_per_token * num_tokens

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model. A checkpoint also gets the record of the run.

        A callback would write it after the Trainer deletes an earlier checkpoint, so that a run
        killed in between would have none.
        """
        is_checkpoint = output_dir is not None
        if is_checkpoint and self.keep_record is not None and self.is_world_process_zero():
            self.keep_record(Path(output_dir))
        super().save_model(output_dir, _internal_call)

    def _finalize_training(self, *args, **kwargs) -> TrainOutput:
        """Keeps the last checkpoint of a run that stopped early, from which it resumes.

        With `--load_best_model_at_end` the Trainer would delete it.
        """
        if self.state.global_step < self.state.max_steps:
            self.state.best_model_checkpoint = None
        return super()._finalize_training(*args, **kwargs)


def mask_repeated_examples(batch: dict, num_examples: int, args: TrainingArguments) -> None:
    """Takes repeated examples out of the loss in the last batch of an epoch.

    accelerate appends the first examples of an epoch to the last ones, so that each process has
    equally many. It does not know their number in a resumed epoch. `labels` and `label_index` of
    `batch`, one process's share of the last batch, change.
    """
    batch_size = args.train_batch_size
    remainder = num_examples % (batch_size * args.world_size)
    if args.world_size == 1 or remainder == 0:
        return
    num_own = min(max(remainder - args.process_index * batch_size, 0), batch_size)
    batch["labels"][num_own:] = -100
    if "label_index" in batch:
        is_own = batch["label_index"] < batch["labels"][:num_own].numel()
        batch["label_index"] = batch["label_index"][is_own]
