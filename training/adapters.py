"""Training the language model beside the mapper: all of it at a learning rate of its own, or LoRA adapters on it."""

import copy

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from ..modeling_audiolm import AudioLMForConditionalGeneration


def with_lora(model: AudioLMForConditionalGeneration, r: int, alpha: int):
    """The model with adapters of rank `r` on every linear layer of its language model (arXiv 2106.09685), as a `PeftModel`.

    The mapper trains with them and is saved with them; all else is frozen.

    Raises:
        ImportError: if peft is missing.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("--lora_r needs the package peft: `uv sync --extra lora`") from error
    layers = [name for name, module in model.named_modules()
              if name.startswith("language_model.model.") and isinstance(module, nn.Linear)]  # fmt: skip
    revision = getattr(model.config, "_commit_hash", None)  # of the model under them, if it came from the Hub
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=layers, modules_to_save=["mapper"], revision=revision)
    return get_peft_model(model, config)


def merged(model) -> AudioLMForConditionalGeneration:
    """A copy of a `PeftModel`'s model with its adapters added into the weights, like any other AudioLM; others as they are."""
    if not hasattr(model, "merge_and_unload"):
        return model
    device = model.device
    try:
        whole = copy.deepcopy(model.cpu()).merge_and_unload()  # a GPU may have no room for two
    finally:
        model.to(device)
    return whole.train(False)


def optimizer_by_part(model, args: TrainingArguments, lm_learning_rate: float) -> torch.optim.Optimizer:
    """The Trainer's optimizer, with `lm_learning_rate` for the language model (or its adapters) and `args.learning_rate` for
    the mapper; as there, biases and norms do not decay."""
    decaying = set(Trainer.get_decay_parameter_names(None, model))
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = lm_learning_rate if "language_model." in name else args.learning_rate
            groups.setdefault((rate, args.weight_decay if name in decaying else 0.0), []).append(parameter)
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    return kind([{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()], **settings)


def cast_once(language_model: nn.Module) -> None:
    """Keeps what bfloat16 autocast makes of a frozen language model's weights, which it would cast anew in each step.

    The same numbers come out. The weights stay as they are, for whatever runs without autocast and for checkpoints.
    """
    for module in language_model.modules():
        if type(module) is nn.Linear and not any(parameter.requires_grad for parameter in module.parameters()):
            module.__class__ = CastLinear


class CastLinear(nn.Linear):
    """A linear layer whose weight seldom changes."""

    kept = of = None  # the weight in bfloat16, and what it was made of; no buffer, which DDP would send around

    def refresh(self) -> None:
        """Brings the kept weight up to date; a compiled layer leaves that to whoever calls it."""
        if self.of != (now := (self.weight.data_ptr(), self.weight._version)):  # another one was loaded
            if self.kept is None or self.kept.device != self.weight.device:
                self.kept = torch.empty_like(self.weight, dtype=torch.bfloat16, requires_grad=False)
                torch._dynamo.mark_static(self.kept)  # as a parameter is, for whatever compiles the layer
            self.kept.copy_(self.weight.detach())  # in place, where CUDA graphs look for it
            self.of = now

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if torch.is_autocast_enabled(x.device.type) and torch.get_autocast_dtype(x.device.type) == torch.bfloat16:
            if not torch.compiler.is_compiling():
                self.refresh()
            weight = self.kept
        return nn.functional.linear(x, weight, self.bias)
