"""Training in several processes: FSDP or DeepSpeed, and the examples that accelerate repeats."""

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


def sharding_backend(args: TrainingArguments) -> str | None:
    """Returns `FSDP`, `DeepSpeed`, or None if each process has the full model."""
    if args.deepspeed_plugin is not None:
        return "DeepSpeed"
    if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return "FSDP"
    return None


def precision(args: TrainingArguments) -> str:
    """Returns the number format that the language model computes in, such as `bf16 autocast`."""
    if args.deepspeed_plugin is not None:
        autocast = args.deepspeed_plugin.deepspeed_config.get("torch_autocast", {})
        if autocast.get("enabled"):
            return "fp16 autocast" if autocast.get("dtype") == "float16" else "bf16 autocast"
    if not (args.bf16 or args.fp16):
        return "tf32" if args.tf32 else "fp32"
    number_format = "bf16" if args.bf16 else "fp16"
    return number_format if sharding_backend(args) == "FSDP" else f"{number_format} autocast"


def check_distributed_options(
    args: TrainingArguments, lora_r: int | None, lm_learning_rate: float | None
) -> None:
    """Raises a `UserError` if the options do not work with FSDP or DeepSpeed, if used."""
    backend = sharding_backend(args)
    if backend and args.torch_compile:
        raise UserError(f"--torch_compile does not work with {backend}. Use one of them.")
    if backend == "FSDP":
        _check_fsdp_options(lora_r, lm_learning_rate)
    elif backend == "DeepSpeed":
        if args.deepspeed_plugin.zero_stage == 3:
            raise UserError("DeepSpeed ZeRO-3 is not supported. Use FSDP to shard the weights.")
        if args.bf16 or args.fp16:
            raise UserError(
                "--bf16, --fp16 and mixed_precision would round the encoder too under DeepSpeed. "
                f"{CONFIG_FOLDER}/deepspeed_zero2.yaml computes in bfloat16 by autocast."
            )


def _check_fsdp_options(lora_r: int | None, lm_learning_rate: float | None) -> None:
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
