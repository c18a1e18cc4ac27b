"""Training in several processes: FSDP, and the examples that accelerate repeats."""

import os

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from ..runtime import UserError

CONFIG_FOLDER = "configs/accelerate"
FSDP_SETTINGS = {
    "FSDP_VERSION": "2",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def is_sharded(args: TrainingArguments) -> bool:
    """Returns whether FSDP shards the model, so that no process has all of it."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def precision(args: TrainingArguments) -> str:
    """Returns the number format that the language model computes in, such as `bf16 autocast`."""
    if not (args.bf16 or args.fp16):
        return "tf32" if args.tf32 else "fp32"
    number_format = "bf16" if args.bf16 else "fp16"
    return number_format if is_sharded(args) else f"{number_format} autocast"


def check_distributed_options(
    args: TrainingArguments, lora_r: int | None, lm_learning_rate: float | None
) -> None:
    """Raises a `UserError` for DeepSpeed, and for options that do not work with FSDP."""
    if args.deepspeed_plugin is not None:
        raise UserError("DeepSpeed is not supported. Use DDP, or FSDP to shard the weights.")
    if not is_sharded(args):
        return
    if args.torch_compile:
        raise UserError("--torch_compile does not work with FSDP. Use one of them.")
    if lora_r:
        raise UserError("--lora_r does not work with FSDP. Adapters are small: use DDP.")
    if lm_learning_rate:
        raise UserError(
            "--lm_learning_rate does not work with FSDP, where the Trainer builds the optimizer."
        )
    for name, expected in FSDP_SETTINGS.items():
        value = os.environ.get(name, expected)
        if value.lower() != expected.lower():
            raise UserError(
                f"{name.lower()} {value}: expected {expected}, as in {CONFIG_FOLDER}/fsdp.yaml."
            )


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


def any_not_finite(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Returns whether a gradient holds NaN or infinity, as a bool tensor on their device.

    Reading the value waits for the GPU. For sharded gradients all processes get the same answer.
    """
    local = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    is_bad = ~torch.stack(torch._foreach_norm(local)).isfinite().all()
    if any(isinstance(g, DTensor) for g in gradients):
        flag = is_bad.float()
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        is_bad = flag > 0
    return is_bad
