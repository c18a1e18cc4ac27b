"""What each option of transformers' `TrainingArguments` does here.

An option is supported, or recorded because it changes the numbers, or does not matter to them, or
is refused. tests/training/test_stock_options.py lists the supported ones and those that do not
matter. It fails when transformers has an option that stands in none of the four.
"""

from collections.abc import Collection
from dataclasses import fields
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from ..runtime import UserError

# They change the numbers. Those with another value than the default are part of a model's
# settings, which a resumed run and the other models of a comparison must share.
RECORDED = (
    "lr_scheduler_kwargs",
    "optim_args",
    "optim_target_modules",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "neftune_noise_alpha",
    "label_smoothing_factor",
    "full_determinism",
    "torch_compile_mode",
    "average_tokens_across_devices",
    "dataloader_drop_last",
    "load_best_model_at_end",
    "metric_for_best_model",
)
# Values other than the default are refused, for these reasons.
REFUSED = {
    "bf16_full_eval": "evaluations are a part of training and have its precision",
    "fp16_full_eval": "evaluations are a part of training and have its precision",
    "batch_eval_metrics": "the loss of an evaluation is computed over all of its rows",
    "prediction_loss_only": "the loss of each question type needs the predictions",
    "include_for_metrics": "the losses need nothing else",
    "eval_do_concat_batches": "the losses need all batches in one",
    "eval_use_gather_object": "the losses are tensors",
    "auto_find_batch_size": "the batch size is part of the experiment",
    "remove_unused_columns": "the batches are built from all columns",
    "label_names": "the model's labels are named `labels`",
    "length_column_name": "lengths are those of the tokens",
    "use_liger_kernel": "its kernels do not know this model",
    "liger_kernel_config": "its kernels do not know this model",
    "enable_jit_checkpoint": "SIGTERM and SIGINT already end a run with a checkpoint",
    "ignore_data_skip": "a resumed run goes on with the rows that it has not seen",
    "restore_callback_states_from_checkpoint": "no callback has a state",
    "data_seed": "--seed also draws the order of rows",
    "dataloader_in_order": "equal seeds would give different numbers",
    "parallelism_config": "each process has all of the model",
    "fsdp": "each process has all of the model",
    "fsdp_config": "each process has all of the model",
    "deepspeed": "each process has all of the model",
    "greater_is_better": "all metrics are losses",
    "do_predict": "use run_eval.py",
    "hub_token": "command lines and files can be read by others. Use `hf auth login` or HF_TOKEN",
}
# Mean over question types of the loss per answer token.
MACRO_LOSS = "macro_loss"
# Entries of `accelerator_config`. Others would split batches or change the order of rows.
ACCELERATOR_SETTINGS = ("non_blocking", "even_batches")


def default_values(group: type) -> dict[str, Any]:
    """Returns the default of each option that a dataclass of options declares."""
    defaults = {}
    for field in fields(group):
        is_factory = callable(field.default_factory)
        defaults[field.name] = field.default_factory() if is_factory else field.default
    return defaults


def check_stock_options(args: TrainingArguments) -> None:
    """Raises a `UserError` for an option that would be ignored, or would break the training."""
    defaults = default_values(type(args))
    for name, reason in REFUSED.items():
        value = getattr(args, name)
        if value != defaults[name] and (value or defaults[name] is not None):
            raise UserError(f"--{name}: not supported, because {reason}")  # It may be a token.
    for name in defaults:
        is_changed = name.startswith("hub_") and getattr(args, name) != defaults[name]
        if is_changed and not args.push_to_hub:
            raise UserError(f"--{name}: add --push_to_hub true")


def check_accelerator_config(config: AcceleratorConfig) -> None:
    """Raises a `UserError` for an entry that would change the batches."""
    stock = AcceleratorConfig().to_dict()
    for name, value in config.to_dict().items():
        if name not in ACCELERATOR_SETTINGS and value != stock[name]:
            raise UserError(f"--accelerator_config: {name} is not supported")


def recorded_options(args: TrainingArguments) -> list[str]:
    """Returns the options of `RECORDED` that have another value than the default."""
    defaults = default_values(type(args))
    return [name for name in RECORDED if getattr(args, name) != defaults[name]]


def check_best_metric(name: str | None, question_types: Collection[str]) -> None:
    """Raises a `UserError` if `--metric_for_best_model` is no loss of an evaluation."""
    names = [MACRO_LOSS]
    for question_type in question_types:
        names += [f"{question_type}_token_loss", f"{question_type}_loss"]
    if name is not None and name.removeprefix("eval_") not in names:
        raise UserError(f"--metric_for_best_model {name}: expected {', '.join(names)}")
