"""Several processes that train as one would: the last rows of an epoch, and a model that GPUs share (FSDP, DeepSpeed)."""

import os

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import Trainer
from transformers.trainer_utils import has_length

CONFIGURATIONS = "configs/accelerate"
FSDP_SETTINGS = {"FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}


def shared_by(args) -> str | None:
    """`FSDP` or `DeepSpeed`, if flags or the configuration of `accelerate launch` ask for it; None where each process has a
    model of its own."""
    if args.deepspeed_plugin is not None:
        return "DeepSpeed"
    return "FSDP" if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" else None


def precision(args) -> str:
    """What the language model computes in, for a model's record."""
    autocast = args.deepspeed_plugin.deepspeed_config.get("torch_autocast", {}) if args.deepspeed_plugin is not None else {}
    if autocast.get("enabled"):  # DeepSpeed's own
        return "fp16 autocast" if autocast.get("dtype") == "float16" else "bf16 autocast"
    short = "bf16" if args.bf16 else "fp16" if args.fp16 else None
    if short is None:
        return "tf32" if args.tf32 else "fp32"
    return short if shared_by(args) == "FSDP" else f"{short} autocast"


def refusal(args, lora_r: int | None, lm_learning_rate: float | None) -> str | None:
    """What does not go together with a shared model, in one line; None if nothing of it is asked for."""
    kind = shared_by(args)
    if kind and args.torch_compile:
        return f"--torch_compile: not with {kind}; leave one of them out"
    if kind == "FSDP":
        if lora_r:
            return "--lora_r: not with FSDP, which shares out what is trained; adapters are small: use DDP"
        if lm_learning_rate:
            return "--lm_learning_rate: not with FSDP, under which the Trainer makes the optimizer"
        for name, wanted in FSDP_SETTINGS.items():
            if (found := os.environ.get(name, wanted)).lower() != wanted.lower():
                return f"{name.lower()} {found}: {wanted} is wanted, as in {CONFIGURATIONS}/fsdp.yaml"
    if kind == "DeepSpeed":
        if args.deepspeed_plugin.zero_stage == 3:
            return "DeepSpeed's ZeRO-3 is not supported; FSDP shares out weights too"
        if args.bf16 or args.fp16:
            return (f"--bf16, --fp16 and mixed_precision: under DeepSpeed they would round the encoder too; "
                    f"{CONFIGURATIONS}/deepspeed_zero2.yaml computes in bfloat16 by autocast")  # fmt: skip
    return None


def not_finite(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Whether any of these is not finite, a bool on their device; of shared ones, in any process."""
    parts = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    found = ~torch.stack(torch._foreach_norm(parts)).isfinite().all()
    if any(isinstance(g, DTensor) for g in gradients):
        number = found.float()
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        found = number > 0
    return found


class ParallelTrainer(Trainer):
    """The stock Trainer, whose steps and checkpoints are those of one process, however many there are."""

    _trained: list[torch.nn.Parameter] | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if (plugin := getattr(self.accelerator.state, "fsdp_plugin", None)) is not None:
            plugin.ignored_modules = plugin.ignored_modules or "encoder"  # it stays whole, and in float32
            if (policy := plugin.mixed_precision_policy) is not None:
                # accelerate's own would also round the loss, and the sound that the encoder hears
                plugin.mixed_precision_policy = MixedPrecisionPolicy(
                    policy.param_dtype, torch.float32, cast_forward_inputs=False
                )

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        made = super().get_batch_samples(map(self._without_repeated, epoch_iterator), num_batches, device)
        if (loader := self.accelerator.gradient_state.active_dataloader) is not None:
            loader._non_blocking = self.accelerator.non_blocking  # that of a resumed epoch has lost it
        return made

    def _get_dataloader(self, *args, **kwargs):
        """The Trainer's, whose workers' seeds are no draws from the run's own numbers: a resumed run makes its loaders anew."""
        loader = super()._get_dataloader(*args, **kwargs)
        getattr(loader, "base_dataloader", loader).generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _without_repeated(self, batch: dict) -> dict:
        """A batch; in the last one of an epoch, nothing is learnt from rows that are there a second time.

        accelerate puts first ones behind the last ones, so that all processes have as many rows; how many there are, it does
        not know in an epoch that is resumed.
        """
        state, rows = self.accelerator.gradient_state, self.args.train_batch_size
        if self.args.world_size == 1 or not state.end_of_dataloader or not has_length(self.train_dataset):
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
        if shared_by(self.args):
            return super()._clip_grad_norm(model)
        if self._trained is None:
            self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return self.accelerator.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def _save(self, output_dir=None, state_dict=None):
        kind = type(self.model)
        if state_dict is not None:  # gathered, in which tied weights come twice
            for name in getattr(self.model, "all_tied_weights_keys", {}):
                state_dict.pop(name, None)
        if isinstance(self.model, FSDPModule):
            self.model.__class__ = kind.__bases__[1]  # or a checkpoint would hold the source of FSDP's class
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.model.__class__ = kind
