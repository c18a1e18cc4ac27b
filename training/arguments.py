"""Options of `run_train.py`: dataclasses with the experiment's defaults, checks and the parser.

The module is long because it declares every option with its help.
"""

# ruff: noqa: RUF009
# The functions that declare an option return a field of the dataclass.

import argparse
import os
import sys
from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy, SchedulerType

from ..configuration_audiolm import (
    CHOICES,
    import_encoders,
    list_encoder_types,
)
from ..data.cache import choose_feature_cache
from ..data.reasonaqa import QUESTION_TYPES
from ..modeling_audiolm import DEFAULT_TEXT_MODEL
from ..runtime import (
    PACKAGE_FOLDER,
    SECRET_VALUE,
    UserError,
    check_positive,
    explain_errors,
    is_bfloat16_fast,
    option,
    remove_secrets,
)
from .resume import checkpoint_to_resume
from .stock_options import (
    MACRO_LOSS,
    check_accelerator_config,
    check_stock_options,
    recorded_options,
)

MIN_COMPILED_STEPS = 1000  # Compiling and recording take a minute, and save 20 ms a step.
BATCH_SIZE = 16  # examples per optimizer step, over all processes
DATA_DIR = "reasonaqa"  # where `audiolm prepare download reasonaqa` puts ReasonAQA
ENCODER_OVERRIDES = ("band_limit", "window_seconds")
DESCRIPTION = f"""Trains one AudioLM. Flags override --config. The defaults are the experiment's:
batch size {BATCH_SIZE}, learning rate 1e-4, 20,000 steps, 10 s of audio."""


def _stock(name: str, default: Any) -> Any:
    """Declares an option of `TrainingArguments` with another default and its stock help."""
    return field(default=default, metadata=TrainingArguments.__dataclass_fields__[name].metadata)


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise UserError(f"--{name} {value!r}: expected {' or '.join(choices)}")


def _refuse(is_conflict: object, message: str) -> None:
    if is_conflict:
        raise UserError(message)


@dataclass
class ModelArguments:
    """Options of the model: its parts, how it represents audio, and what is trained."""

    encoder_type: str = option("Encoder (arm): " + ", ".join(list_encoder_types()), "htsat")
    encoder_name_or_path: str | None = option(
        "Encoder weights: Hub name, folder, file or `random`; default: the published ones"
    )
    text_model_name_or_path: str | None = option(
        f"Language model: Hub name, folder or .gguf file; default: {DEFAULT_TEXT_MODEL}"
    )
    model_name_or_path: str | None = option("Trained AudioLM to start from: name or folder")
    freeze_lm: bool = option("Freeze the language model and train only the mapper", True)
    lm_learning_rate: float | None = option("Learning rate of language model or adapters")
    lora_r: int | None = option("Train LoRA adapters of this rank on the language model")
    lora_alpha: int | None = option("Scale of the adapters; default: twice --lora_r")
    audio_tokens: int | None = option("Audio tokens per clip; default: one per frame")
    learn_code_embeddings: bool = option("Learn an embedding table for each codebook", False)
    band_limit: int | None = option("Low-pass audio to this sampling rate in Hz")
    window_seconds: float | None = option("Window of HTSAT; default: the checkpoint's")
    mapper_hidden_size: int | None = option("Width of the mapper's hidden layer; default: 576")
    mapper_type: str = option("`mlp`, or `mellow`: Mellow's projection", "mlp")
    prompt_format: str = option("`audiolm`, or `mellow`: Mellow's 129 tokens", "audiolm")
    no_audio: bool = option("Train a text-only model: the mean feature replaces audio", False)

    def __post_init__(self):
        try:
            self.encoder_type = import_encoders(self.encoder_type)
        except ValueError as error:
            raise UserError(f"--{error}") from error
        check_positive(self, *vars(self))
        for name, choices in CHOICES.items():
            _check_choice(name, getattr(self, name), choices)
        self._check_adapters()
        if self.model_name_or_path:
            for name in ("encoder_name_or_path", "text_model_name_or_path", *ENCODER_OVERRIDES):
                message = f"--{name}: the model of --model_name_or_path has its own"
                _refuse(getattr(self, name), message)
        if self.lora_r and self.lora_alpha is None:
            self.lora_alpha = 2 * self.lora_r

    def _check_adapters(self) -> None:
        message = "--lora_r trains adapters on a frozen language model; remove --freeze_lm false"
        _refuse(self.lora_r and not self.freeze_lm, message)
        message = "--lm_learning_rate: the language model is frozen; unfreeze it or add --lora_r"
        _refuse(self.lm_learning_rate and self.freeze_lm and not self.lora_r, message)
        _refuse(self.lora_alpha and not self.lora_r, "--lora_alpha: add --lora_r")


@dataclass
class DataArguments:
    """Options of the data: files, subsets, and what happens to audio that cannot be read."""

    train_file: str | None = option("ReasonAQA's train.json; default: reasonaqa/train.json")
    validation_file: str | None = option("ReasonAQA's val.json; default: no evaluation")
    audio_dir: list[str] = option("Folder of the audio; or several SOURCE=FOLDER", [DATA_DIR])
    max_audio_seconds: float = option("Seconds used of each clip", 10.0)
    resume_with_changes: bool = option("Resume although data or settings differ", False)
    max_skipped_steps: int = option("Stop after more steps with NaN or infinity than this", 10)
    on_bad_audio: str = option("`error`, or `skip` examples with unreadable audio", "error")
    audio_timeout: float = option("Seconds after which a clip counts as unreadable", 60.0)
    subtypes: list[str] | None = option("Use only subtypes, such as `Clotho-MCQ CLE`")
    question_types: list[str] | None = option("Use only: " + ", ".join(QUESTION_TYPES))
    max_rows_per_clip: int | None = option("Most examples of each clip, drawn by --seed")
    mix: list[str] | None = option("Shares of types, such as `caption=0.1,mcq=0.5`")
    fix_cle_labels: list[str] | None = option(
        "Relabel CLE from csv files of AudioEntailment; without a file, swap two of its labels"
    )
    shuffle_options: bool = option("Shuffle the options of questions, by --seed", False)
    dataset_name: str | None = option("Converted data set, not files: folder or Hub name")
    streaming: bool = option("Stream --dataset_name, which must embed its audio", False)
    shuffle_buffer: int = option("Examples that a worker shuffles with --streaming", 4000)
    max_train_samples: int | None = option("Train on the first examples only")
    max_eval_samples: int = option("Examples of each question type to evaluate on", 200)
    num_stats_clips: int = option("Clips for the mean and deviation of features", 1000)
    feature_cache: str | None = option(
        "Folder of encoded clips, or `none`; default: $XDG_CACHE_HOME/audiolm/features"
    )

    def __post_init__(self):
        for name in ("audio_dir", "subtypes", "question_types", "mix", "fix_cle_labels"):
            value = getattr(self, name)
            if isinstance(value, str):
                setattr(self, name, [value])
        if isinstance(self.fix_cle_labels, bool):
            self.fix_cle_labels = [] if self.fix_cle_labels else None
        check_positive(self, *(vars(self).keys() - {"max_skipped_steps"}))
        _check_choice("on_bad_audio", self.on_bad_audio, ("error", "skip"))
        message = "--dataset_name has its own splits; remove --train_file and --validation_file"
        _refuse(self.dataset_name and (self.train_file or self.validation_file), message)
        has_audio_dir = self.audio_dir != [DATA_DIR]
        message = "--dataset_name has its own audio; remove --audio_dir"
        _refuse(self.dataset_name and has_audio_dir, message)
        message = "--streaming: add --dataset_name, converted with `--audio embedded`"
        _refuse(self.streaming and not self.dataset_name, message)
        message = "--streaming reads each clip once; remove --feature_cache"
        _refuse(self.streaming and self.feature_cache not in (None, "none"), message)
        self.feature_cache = None if self.streaming else choose_feature_cache(self.feature_cache)
        is_default = self.shuffle_buffer == DataArguments.shuffle_buffer
        _refuse(not (is_default or self.streaming), "--shuffle_buffer: add --streaming true")
        if self.train_file is None and not self.dataset_name:
            self.train_file = f"{DATA_DIR}/train.json"


@dataclass
class AudioLMTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with the experiment's defaults.

    Args:
        processes: Number of processes that share a batch. Default: those of this run.

    Attributes:
        argv: Command line without secrets, for `run_info.json`.
        recorded: Stock options that change the numbers and were given, for the run's record.
    """

    argv: list[str] | None = field(default=None, init=False)
    recorded: dict[str, Any] = field(default_factory=dict, init=False)

    output_dir: str = option(  # ty: ignore[incompatible-mutable-override]
        "Folder of the run; default: outputs/ENCODER_TYPE"
    )
    per_device_train_batch_size: int = option(
        f"Default: {BATCH_SIZE} / processes / --gradient_accumulation_steps"
    )
    gradient_accumulation_steps: int = _stock("gradient_accumulation_steps", 1)
    train_sampling_strategy: str = option(
        "`group_by_length`: batches of similar length, the same for every encoder; or `random`",
        "group_by_length",
        choices=["random", "sequential", "group_by_length", "batch_rebalance"],
    )
    learning_rate: float = _stock("learning_rate", 1e-4)
    num_train_epochs: float = option("Train these epochs, instead of --max_steps")
    max_steps: int = option("Optimizer steps; default: 20,000, or --num_train_epochs")
    lr_scheduler_type: SchedulerType | str = option("Schedule of the learning rate", "cosine")
    warmup_steps: float = _stock("warmup_steps", 0.01)
    eval_strategy: IntervalStrategy | str = option("Never without --validation_file", "steps")
    eval_steps: float | None = _stock("eval_steps", 1000)
    save_steps: float = _stock("save_steps", 1000)
    save_total_limit: int | None = _stock("save_total_limit", 2)
    logging_steps: float = _stock("logging_steps", 10)
    logging_nan_inf_filter: bool = _stock("logging_nan_inf_filter", False)
    # HfArgumentParser reads the union in this order.
    report_to: None | str | list[str] = option(  # noqa: RUF036
        "Experiment trackers, such as wandb or tensorboard", "none"
    )
    remove_unused_columns: bool = _stock("remove_unused_columns", False)
    label_names: list[str] | None = option("Names of the model's label inputs", ["labels"])
    resume_from_checkpoint: str | None = option(
        "`true`: the last complete checkpoint in --output_dir. Or the folder of a checkpoint"
    )
    hub_strategy: str = option(
        "`every_save`: push each checkpoint and the trained model; `end`: the latter", "every_save"
    )
    seed: int = _stock("seed", 0)
    dataloader_num_workers: int = _stock("dataloader_num_workers", 2)
    dataloader_pin_memory: bool = option("Pin memory of batches; default: with a GPU")
    dataloader_persistent_workers: bool = option("Default: true without --streaming")
    bf16: bool = option("bfloat16 autocast; default: where the device is faster with it")
    torch_compile: bool = option(
        "Compile the language model, and replay CUDA graphs; default: on a GPU with a frozen "
        f"language model, from {MIN_COMPILED_STEPS:,} steps on"
    )
    processes: InitVar[int | None] = None

    def __post_init__(self, processes: int | None):
        check_stock_options(self)
        is_plan = processes is not None
        processes = processes or _count_processes()
        gpus = torch.cuda.device_count()
        message = f"found {gpus} GPUs: use `accelerate launch` to start one process for each"
        _refuse(gpus > 1 and "LOCAL_RANK" not in os.environ and not is_plan, message)
        for backend in ("FSDP", "DEEPSPEED"):
            is_used = os.environ.get(f"ACCELERATE_USE_{backend}", "false").lower() == "true"
            _refuse(is_used, f"{backend} is not supported: launch with configs/accelerate/*.yaml")
        self._split_batch(processes)
        has_both = self.num_train_epochs and (self.max_steps or 0) > 0
        _refuse(has_both, "--num_train_epochs: remove --max_steps")
        if self.max_steps is None:
            self.max_steps = -1 if self.num_train_epochs else 20_000
        self.num_train_epochs = self.num_train_epochs or 3.0
        if not torch.accelerator.is_available():
            # Without it, each of several processes on a CPU would take itself for the only one,
            # and bfloat16 would be refused.
            self.use_cpu = True
        self._fill_defaults()
        self.resume_from_checkpoint = checkpoint_to_resume(
            self.resume_from_checkpoint, self.output_dir
        )
        self._choose_metric()
        names = recorded_options(self)
        super().__post_init__()
        check_accelerator_config(self.accelerator_config)
        self.recorded = {name.replace("_", " "): getattr(self, name) for name in names}
        for start_tracker in get_reporting_integration_callbacks(self.report_to):
            start_tracker()  # raises if the tracker's package is missing

    def _split_batch(self, processes: int) -> None:
        """Sets the batch of a process, by default so that a step has `BATCH_SIZE` examples."""
        check_positive(self, "gradient_accumulation_steps", "per_device_eval_batch_size")
        if self.per_device_train_batch_size is None:
            share = BATCH_SIZE // (processes * self.gradient_accumulation_steps)
            self.per_device_train_batch_size = max(1, share)
        check_positive(self, "per_device_train_batch_size")

    def _choose_metric(self) -> None:
        """Sets the loss by which the best checkpoint and some schedules are chosen."""
        schedule = SchedulerType(self.lr_scheduler_type).value
        users = {
            "--load_best_model_at_end": self.load_best_model_at_end,
            f"--lr_scheduler_type {schedule}": schedule in ("reduce_lr_on_plateau", "greedy"),
            "--save_strategy best": self.save_strategy == "best",
        }
        for user, is_used in users.items():
            message = f"{user} needs evaluations: add --validation_file"
            _refuse(is_used and self.eval_strategy == "no", message)
        if self.metric_for_best_model is None and any(users.values()):
            self.metric_for_best_model = MACRO_LOSS

    def _fill_defaults(self) -> None:
        """Sets what depends on the machine, the launcher or another option."""
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = torch.cuda.is_available()
        if self.dataloader_persistent_workers is None:
            self.dataloader_persistent_workers = self.dataloader_num_workers > 0
        if self.accelerator_config is None:
            # A blocking copy of a batch would wait for all kernels that were launched before it.
            self.accelerator_config = {"non_blocking": self.dataloader_pin_memory}
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
        if precision in ("bf16", "fp16") and not (self.bf16 or self.fp16):
            # The Trainer follows the launcher anyway. This makes the record of the run say so.
            setattr(self, precision, True)
        if self.bf16 is None:
            self.bf16 = not self.fp16 and is_bfloat16_fast(self.use_cpu)
        if self.torch_compile and self.tf32 is None:
            # TrainingArguments would turn TF32 on together with compilation.
            self.tf32 = False


def _count_processes() -> int:
    if "LOCAL_RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE", 1))
    return max(1, torch.cuda.device_count())


def find_preset(name: str) -> Path:
    """Returns the YAML file that `--config` names: a path, or a preset in the package's `configs/`.

    `demo`, `demo.yaml` and `configs/demo.yaml` name one preset. A file at that path comes first.
    """
    preset = PACKAGE_FOLDER / "configs" / f"{Path(name).name.removesuffix('.yaml')}.yaml"
    is_preset_name = str(Path(name).parent) in (".", "configs") and preset.is_file()
    return preset if is_preset_name and not Path(name).is_file() else Path(name)


def load_config_file(name: str, option_names: set[str]) -> dict[str, Any]:
    """Reads options from a YAML file, or from the package's config of that name."""
    with explain_errors(f"--config {name}", OSError, yaml.YAMLError):
        options = yaml.safe_load(find_preset(name).read_text(encoding="utf-8")) or {}
    kind = type(options).__name__
    message = f"--config {name}: expected options with their values, found a {kind}"
    _refuse(kind != "dict", message)
    unknown = sorted(set(map(str, options)) - option_names)
    _refuse(unknown, f"--config {name}: unknown options {', '.join(unknown)}")
    return options


def build_parser() -> HfArgumentParser:
    """Builds the parser of `run_train.py`."""
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, AudioLMTrainingArguments),
        description=DESCRIPTION,
        allow_abbrev=False,
        usage="%(prog)s [--config CONFIG] [--OPTION VALUE ...]  (--help lists all options)",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--config", help="YAML file with any of these options, or a name in the package's configs/"
    )
    for action in parser._actions:
        if isinstance(action, argparse._StoreFalseAction):
            action.help = f"The same as `--{action.dest} false`"
        if action.dest == "fix_cle_labels":
            action.nargs = "*"
    return parser


def _read_options(parser: HfArgumentParser, argv: list[str]) -> dict[str, Any]:
    """Returns all options: flags over `--config` over defaults."""
    config = parser.parse_known_args(argv)[0].config
    if config:
        option_names = {action.dest for action in parser._actions}
        parser.set_defaults(**load_config_file(config, option_names))
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        hidden = SECRET_VALUE.sub(r"\1***", " ".join(unknown))
        raise UserError(f"unrecognized arguments: {hidden}")
    options = vars(namespace)
    options.pop("config")
    return options


def _fill_shared_defaults(options: dict[str, Any]) -> None:
    """Checks and sets training options that depend on the model or the data."""
    streaming = options["streaming"]
    message = "--streaming: a stream has no end; use --max_steps, not --num_train_epochs"
    counts_epochs = options["num_train_epochs"] or (options["max_steps"] or 1) <= 0
    _refuse(streaming and counts_epochs, message)
    message = "--prompt_format mellow pairs clips of the whole corpus; remove --streaming"
    _refuse(streaming and options["prompt_format"] == "mellow", message)
    if options["output_dir"] is None:
        # The folder's name is also the name of a repository, which has no "=" and no ":".
        name = options["encoder_type"].rpartition(":")[2]
        options["output_dir"] = f"outputs/{name.replace('=', '-')}"
    if streaming and options["dataloader_persistent_workers"] is None:
        # Each pass over a stream starts new workers.
        options["dataloader_persistent_workers"] = False
    if options["validation_file"] is None and not options["dataset_name"]:
        options["eval_strategy"] = "no"


def parse_arguments(
    argv: list[str] | None = None, processes: int | None = None
) -> tuple[ModelArguments, DataArguments, AudioLMTrainingArguments]:
    """Parses flags over `--config` over the experiment's defaults. Errors exit with status 2.

    `processes` is the number of processes of the run, if another process plans it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    try:
        options = _read_options(parser, argv)
        model_args = ModelArguments(**_select(options, ModelArguments))
        data_args = DataArguments(**_select(options, DataArguments))
        _fill_shared_defaults(options)
        selected = _select(options, AudioLMTrainingArguments)
        args = AudioLMTrainingArguments(**selected, processes=processes)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        # TrainingArguments raises all of these for options that do not fit.
        parser.error(str(error))
    args.argv = remove_secrets(argv)
    return model_args, data_args, args


def _select(options: dict[str, Any], group: Any) -> dict[str, Any]:
    return {f.name: options[f.name] for f in fields(group) if f.init}
