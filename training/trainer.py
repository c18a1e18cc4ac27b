"""The Trainer of a run: the stock one with what correctness needs."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import has_length

from ..data.length_sampler import LengthBucketSampler
from .callbacks import EvaluationStopped
from .distributed import sharding_backend


class ParallelTrainer(Trainer):
    """The stock Trainer, whose steps and checkpoints are those of one process, however many there are."""

    _trained: list[torch.nn.Parameter] | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if (plugin := getattr(self.accelerator.state, "fsdp_plugin", None)) is not None:
            plugin.ignored_modules = (
                plugin.ignored_modules or "encoder"
            )  # it stays whole, and in float32
            if (policy := plugin.mixed_precision_policy) is not None:
                # accelerate's own would also round the loss, and the sound that the encoder hears
                plugin.mixed_precision_policy = MixedPrecisionPolicy(
                    policy.param_dtype, torch.float32, cast_forward_inputs=False
                )

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        made = super().get_batch_samples(
            map(self._without_repeated, epoch_iterator), num_batches, device
        )
        if (loader := self.accelerator.gradient_state.active_dataloader) is not None:
            loader._non_blocking = (
                self.accelerator.non_blocking
            )  # that of a resumed epoch has lost it
        return made

    def _get_dataloader(self, *args, **kwargs):
        """The Trainer's, whose workers' seeds are no draws from the run's own numbers: a resumed run makes its loaders anew."""
        loader = super()._get_dataloader(*args, **kwargs)
        getattr(loader, "base_dataloader", loader).generator = torch.Generator().manual_seed(
            self.args.seed
        )
        return loader

    def _without_repeated(self, batch: dict) -> dict:
        """A batch; in the last one of an epoch, nothing is learnt from rows that are there a second time.

        accelerate puts first ones behind the last ones, so that all processes have as many rows; how many there are, it does
        not know in an epoch that is resumed.
        """
        state, rows = self.accelerator.gradient_state, self.args.train_batch_size
        if (
            self.args.world_size == 1
            or not state.end_of_dataloader
            or not has_length(self.train_dataset)
        ):
            return batch
        if not (remainder := len(self.train_dataset) % (rows * self.args.world_size)):
            return batch
        kept = min(max(remainder - self.args.process_index * rows, 0), rows)
        batch["labels"][kept:] = -100
        if "label_index" in batch:
            before = batch["label_index"] < batch["labels"][:kept].numel()
            batch["label_index"] = batch["label_index"][before]
        return batch

    def _clip_grad_norm(self, model):
        """The Trainer's, without a way through all that is frozen in each step."""
        if sharding_backend(self.args):
            return super()._clip_grad_norm(model)
        if self._trained is None:
            self._trained = [
                parameter for parameter in model.parameters() if parameter.requires_grad
            ]
        return self.accelerator.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def _save(self, output_dir=None, state_dict=None):
        kind = type(self.model)
        if state_dict is not None:  # gathered, in which tied weights come twice
            for name in getattr(self.model, "all_tied_weights_keys", {}):
                state_dict.pop(name, None)
        if isinstance(self.model, FSDPModule):
            self.model.__class__ = kind.__bases__[
                1
            ]  # or a checkpoint would hold the source of FSDP's class
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.model.__class__ = kind


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

    def __init__(
        self,
        *args,
        sampler: LengthBucketSampler | None = None,
        on_bad: Callable | None = None,
        keep_record: Callable[[Path], None] | None = None,
        **kwargs,
    ):
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
        if (
            self.state.global_step >= self.state.max_steps
        ):  # resumed where it had ended: the Trainer would take one step more
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
        if (
            self.keep_record is not None and self.is_world_process_zero()
        ):  # whole before an earlier one gives way to it
            self.keep_record(Path(self.args.output_dir, f"checkpoint-{self.state.global_step}"))
        super()._save_checkpoint(*args, **kwargs)

    def _finalize_training(self, *args, **kwargs):
        if (
            self.state.global_step < self.state.max_steps
        ):  # the Trainer would leave the best one alone; the last one goes on
            self.state.best_model_checkpoint = None
        return super()._finalize_training(*args, **kwargs)

    def floating_point_ops(self, inputs):
        """The Trainer's estimate, which goes through all parameters, by its first value."""
        if self._flops_per_token is None:
            self._flops_per_token = (
                super().floating_point_ops(inputs) // inputs["input_ids"].numel()
            )
        return self._flops_per_token * inputs["input_ids"].numel()

    def _maybe_log_save_evaluate(self, tr_loss, *args, **kwargs):
        logged = self.control.should_log
        super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)
        if logged:
            tr_loss.zero_()  # the Trainer takes the sum from itself, which leaves NaN for the rest of the run
