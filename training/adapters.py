"""Training the language model beside the mapper: all of it at a learning rate of its own, or LoRA adapters on it."""

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from ..modeling_audiolm import AudioLMForConditionalGeneration


def add_lora_adapters(model: AudioLMForConditionalGeneration, r: int, alpha: int):
    """The model with adapters of rank `r` on every linear layer of its language model (arXiv 2106.09685), as a `PeftModel`.

    The mapper trains with them and is saved with them; all else is frozen.

    Raises:
        ImportError: if peft is missing.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("--lora_r needs the package peft: `uv sync --extra lora`") from error
    layers = [
        name
        for name, module in model.named_modules()
        if name.startswith("language_model.model.") and isinstance(module, nn.Linear)
    ]
    revision = getattr(
        model.config, "_commit_hash", None
    )  # of the model under them, if it came from the Hub
    config = LoraConfig(
        r=r, lora_alpha=alpha, target_modules=layers, modules_to_save=["mapper"], revision=revision
    )
    return get_peft_model(model, config)


def build_optimizer(
    model, args: TrainingArguments, lm_learning_rate: float
) -> torch.optim.Optimizer:
    """The Trainer's optimizer, with `lm_learning_rate` for the language model (or its adapters) and `args.learning_rate` for
    the mapper; as there, biases and norms do not decay."""
    decaying = set(Trainer.get_decay_parameter_names(None, model))
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = lm_learning_rate if "language_model." in name else args.learning_rate
            groups.setdefault((rate, args.weight_decay if name in decaying else 0.0), []).append(
                parameter
            )
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    return kind(
        [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()],
        **settings,
    )
