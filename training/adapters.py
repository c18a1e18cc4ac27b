"""Training the language model beside the mapper: at its own learning rate, or by LoRA adapters."""

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from ..modeling_audiolm import AudioLMForConditionalGeneration
from ..runtime import UserError

if TYPE_CHECKING:
    from peft import PeftModel

# `Trainer.get_decay_parameter_names` is a method that does not use its instance.
NO_TRAINER: Any = None


def add_lora_adapters(model: AudioLMForConditionalGeneration, r: int, alpha: int) -> "PeftModel":
    """Adds LoRA adapters (arXiv 2106.09685) to every linear layer of the language model.

    The mapper trains and is saved with them. Everything else is frozen. The model is changed in
    place. Adapters of rank `r` are scaled by `alpha / r`.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("--lora_r needs the package peft: `uv sync --extra lora`.") from error
    layers = [
        name
        for name, module in model.named_modules()
        if name.startswith("language_model.model.") and isinstance(module, nn.Linear)
    ]
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        target_modules=layers,
        modules_to_save=["mapper"],
        # The commit of the model underneath, if it came from the Hub.
        revision=getattr(model.config, "_commit_hash", None),
    )
    return get_peft_model(model, config)


def build_optimizer(
    model: PreTrainedModel, args: TrainingArguments, lm_learning_rate: float
) -> torch.optim.Optimizer:
    """Builds the Trainer's optimizer, with a learning rate for each part.

    As in the Trainer, biases and norms do not decay. `lm_learning_rate` is the rate of the language
    model or its adapters, `args.learning_rate` the mapper's.
    """
    decaying = set(Trainer.get_decay_parameter_names(NO_TRAINER, model))
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = lm_learning_rate if "language_model." in name else args.learning_rate
            decay = args.weight_decay if name in decaying else 0.0
            groups[rate, decay].append(parameter)
    optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    parameter_groups = [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    return optimizer_class(parameter_groups, **settings)
