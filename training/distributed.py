"""Several processes that train as one would: the last rows of an epoch, and a model that GPUs share (FSDP, DeepSpeed)."""

import os

import torch
from torch.distributed.tensor import DTensor

CONFIGURATIONS = "configs/accelerate"
FSDP_SETTINGS = {
    "FSDP_VERSION": "2",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def sharding_backend(args) -> str | None:
    """`FSDP` or `DeepSpeed`, if flags or the configuration of `accelerate launch` ask for it; None where each process has a
    model of its own."""
    if args.deepspeed_plugin is not None:
        return "DeepSpeed"
    return (
        "FSDP"
        if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        else None
    )


def precision(args) -> str:
    """What the language model computes in, for a model's record."""
    autocast = (
        args.deepspeed_plugin.deepspeed_config.get("torch_autocast", {})
        if args.deepspeed_plugin is not None
        else {}
    )
    if autocast.get("enabled"):  # DeepSpeed's own
        return "fp16 autocast" if autocast.get("dtype") == "float16" else "bf16 autocast"
    short = "bf16" if args.bf16 else "fp16" if args.fp16 else None
    if short is None:
        return "tf32" if args.tf32 else "fp32"
    return short if sharding_backend(args) == "FSDP" else f"{short} autocast"


def refusal(args, lora_r: int | None, lm_learning_rate: float | None) -> str | None:
    """What does not go together with a shared model, in one line; None if nothing of it is asked for."""
    kind = sharding_backend(args)
    if kind and args.torch_compile:
        return f"--torch_compile: not with {kind}; leave one of them out"
    if kind == "FSDP":
        if lora_r:
            return "--lora_r: not with FSDP, which shares out what is trained; adapters are small: use DDP"
        if lm_learning_rate:
            return "--lm_learning_rate: not with FSDP, under which the Trainer makes the optimizer"
        for name, wanted in FSDP_SETTINGS.items():
            if (found := os.environ.get(name, wanted)).lower() != wanted.lower():
                return (
                    f"{name.lower()} {found}: {wanted} is wanted, as in {CONFIGURATIONS}/fsdp.yaml"
                )
    if kind == "DeepSpeed":
        if args.deepspeed_plugin.zero_stage == 3:
            return "DeepSpeed's ZeRO-3 is not supported; FSDP shares out weights too"
        if args.bf16 or args.fp16:
            return (
                f"--bf16, --fp16 and mixed_precision: under DeepSpeed they would round the encoder too; "
                f"{CONFIGURATIONS}/deepspeed_zero2.yaml computes in bfloat16 by autocast"
            )
    return None


def any_not_finite(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Whether any of these is not finite, a bool on their device; of shared ones, in any process."""
    parts = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    found = ~torch.stack(torch._foreach_norm(parts)).isfinite().all()
    if any(isinstance(g, DTensor) for g in gradients):
        number = found.float()
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        found = number > 0
    return found
