"""Options of `run_train.py`: dataclasses with the experiment's defaults, checks and the parser.

The module is long because it declares every option with its help.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy, SchedulerType

from ..configuration_audiolm import CHOICES, list_encoder_types, parse_encoder_type
from ..data import QUESTION_TYPES
from ..modeling_audiolm import TEXT_MODEL
from ..runtime import SECRET_VALUE, UserError, remove_secrets
from .resume import checkpoint_to_resume

BATCH_SIZE = 16  # examples per optimizer step, over all processes
ENCODER_OVERRIDES = ("band_limit", "window_seconds")
CONFIG_FOLDER = Path(__file__).parents[1] / "configs"
DESCRIPTION = f"""Train one AudioLM. Flags override --config. The defaults are the experiment's:
batch size {BATCH_SIZE}, learning rate 1e-4, 20,000 steps, 10 s of audio."""
NO_TOKEN = "command lines and files can be read by others. Use `hf auth login` or HF_TOKEN."
RECIPES = {
    "mellow": {
        "encoder_type": "mellow",
        "mapper_type": "mellow",
        "prompt_format": "mellow",
        "freeze_lm": False,
        "learning_rate": 1e-3,
    }
}


def _option(default: Any, help: str, **argparse_options: Any) -> Any:
    """Declares an option of the command line."""
    return field(default=default, metadata={"help": help, **argparse_options})


def _stock(name: str, default: Any) -> Any:
    """Declares an option of `TrainingArguments` with another default and its stock help."""
    return field(default=default, metadata=TrainingArguments.__dataclass_fields__[name].metadata)


def _check_positive(options: object, names: Iterable[str]) -> None:
    for name in names:
        value = getattr(options, name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and value <= 0:
            raise UserError(f"--{name} {value}: expected a positive number")


def _check_choice(options: object, name: str, choices: Sequence[str]) -> None:
    value = getattr(options, name)
    if value not in choices:
        raise UserError(f"--{name} {value!r}: expected {' or '.join(choices)}")


def _check_conflicts(conflicts: dict[str, object]) -> None:
    """Raises the first message whose condition is true."""
    for message, is_conflict in conflicts.items():
        if is_conflict:
            raise UserError(message)


@dataclass
class ModelArguments:
    """Options of the model: its parts, how it represents audio, and what is trained."""

    encoder_type: str = _option(
        "htsat", "Encoder configuration (arm): " + ", ".join(list_encoder_types())
    )
    encoder_name_or_path: str | None = _option(
        None, "Encoder weights: Hub name, folder, file or `random`; default: the published ones"
    )
    text_model_name_or_path: str | None = _option(
        None, f"Language model: Hub name, folder or .gguf file; default: {TEXT_MODEL}"
    )
    model_name_or_path: str | None = _option(
        None,
        "Initialise from this trained AudioLM (Hub name or folder); the optimizer starts fresh",
    )
    freeze_lm: bool = _option(True, "Freeze the language model and train only the mapper")
    lm_learning_rate: float | None = _option(
        None, "Learning rate of the language model or its adapters; default: --learning_rate"
    )
    lora_r: int | None = _option(
        None, "Train LoRA adapters of this rank on the frozen language model"
    )
    lora_alpha: int | None = _option(
        None, "Adapters are scaled by this number / --lora_r; default: twice --lora_r"
    )
    lora_push: str = _option(
        "merged",
        "Push the full model, `merged`, or only the `adapter` of the model in --model_name_or_path",
    )
    audio_tokens: int | None = _option(
        None,
        "Pool or repeat the frames of a clip to this many audio tokens; default: one per frame",
    )
    learn_code_embeddings: bool = _option(
        False, "Learn an embedding table per codebook instead of using the codec's"
    )
    band_limit: int | None = _option(
        None, "Low-pass the encoder's input to this sampling rate in Hz, such as Mimi's 24000"
    )
    window_seconds: float | None = _option(
        None, "Seconds of one window of HTSAT; default: the checkpoint's"
    )
    mapper_type: str = _option(
        "mlp", "`mlp`, or `mellow`: Mellow's projection of latents and class posteriors"
    )
    prompt_format: str = _option(
        "audiolm", "`audiolm`, or `mellow`: Mellow's prompt of 129 lower-cased tokens"
    )
    recipe: str | None = _option(
        None,
        "`mellow`: Mellow's encoder, mapper and prompt, full fine-tuning, learning rate 1e-3",
    )
    no_audio: bool = _option(
        False, "Train a text-only model: the mean feature replaces every audio frame"
    )

    def __post_init__(self):
        try:
            parse_encoder_type(self.encoder_type)
        except ValueError as error:
            raise UserError(f"--{error}") from error
        _check_positive(self, vars(self))
        for name, choices in {"lora_push": ("merged", "adapter"), **CHOICES}.items():
            _check_choice(self, name, choices)
        self._check_adapters()
        if self.model_name_or_path:
            for name in ("encoder_name_or_path", "text_model_name_or_path", *ENCODER_OVERRIDES):
                if getattr(self, name):
                    raise UserError(f"--{name}: the model of --model_name_or_path has its own")
        if self.lora_r and self.lora_alpha is None:
            self.lora_alpha = 2 * self.lora_r

    def _check_adapters(self) -> None:
        trains_lm = self.lora_r or not self.freeze_lm
        base = self.model_name_or_path
        pushes_adapter = self.lora_push == "adapter"
        is_local = base is not None and Path(base).exists()
        _check_conflicts(
            {
                "--lora_r trains adapters on a frozen language model; remove --freeze_lm false": (
                    self.lora_r and not self.freeze_lm
                ),
                "--lm_learning_rate: the language model is frozen; unfreeze it or add --lora_r": (
                    self.lm_learning_rate and not trains_lm
                ),
                "--lora_alpha: add --lora_r": self.lora_alpha and not self.lora_r,
                "--lora_push adapter: add --lora_r and --model_name_or_path": (
                    pushes_adapter and not (self.lora_r and base)
                ),
                f"--lora_push adapter: {base} is a local folder; push it to the Hub first": (
                    pushes_adapter and is_local
                ),
            }
        )


@dataclass
class DataArguments:
    """Options of the data: files, subsets, and what happens to audio that cannot be read."""

    train_file: str | None = _option(None, "ReasonAQA's train.json; default: data/train.json")
    validation_file: str | None = _option(
        None, "ReasonAQA's val.json; without it the run does not evaluate"
    )
    audio_dir: list[str] = field(
        default_factory=lambda: ["audio"],
        metadata={
            "help": "Folder of the audio, or SOURCE=FOLDER for each first part of the audio paths"
        },
    )
    max_audio_seconds: float = _option(10.0, "Seconds used of each clip")
    resume_with_changes: bool = _option(
        False, "Resume from a checkpoint although its data or settings differ"
    )
    max_skipped_steps: int = _option(
        10, "Stop after more steps than this with a loss or gradients that are not finite"
    )
    on_bad_audio: str = _option(
        "error", "`error`, or `skip` examples whose audio is missing or unreadable"
    )
    max_bad_audio: float = _option(
        0.01,
        "With --on_bad_audio skip, stop when more than this share of the training clips fails",
    )
    audio_timeout: float = _option(60.0, "Seconds until a clip that does not decode counts as bad")
    subtypes: list[str] | None = field(
        default=None,
        metadata={"help": ("Use only examples of these subtypes, such as `Clotho-MCQ CLE`")},
    )
    question_types: list[str] | None = field(
        default=None,
        metadata={"help": ("Use only these question types: " + ", ".join(QUESTION_TYPES))},
    )
    max_rows_per_clip: int | None = _option(
        None, "Train on at most this many examples of each clip, drawn by --seed"
    )
    mix: list[str] | None = field(
        default=None,
        metadata={
            "help": (
                "Shares of question types or subtypes in training, such as `caption=0.1,mcq=0.5`; "
                "examples are dropped, never repeated, and unlisted types split the remainder"
            )
        },
    )
    fix_cle_labels: list[str] | None = field(
        default=None,
        metadata={
            "help": (
                "Relabel the subtype CLE from AudioEntailment's csv files; without a file, swap "
                "`definitely false` and `plausible`"
            )
        },
    )
    shuffle_options: bool = _option(
        False, "Shuffle the options of multiple-choice questions, by --seed and the example"
    )
    dataset_name: str | None = _option(
        None,
        "Folder or Hub name of a data set of `audiolm prepare convert`; replaces --train_file, "
        "--validation_file and --audio_dir",
    )
    streaming: bool = _option(False, "Stream --dataset_name, which must embed its audio")
    shuffle_buffer: int = _option(
        4000, "With --streaming, examples in the shuffle buffer of each worker"
    )
    max_train_samples: int | None = _option(None, "Train on the first examples only")
    max_eval_samples: int = _option(200, "Examples of each question type to evaluate on")
    num_stats_clips: int = _option(
        2000, "Training clips from which feature mean and deviation are computed"
    )
    feature_cache: str | None = _option(
        None, "Folder that caches encoder features, so that each clip is encoded once"
    )

    def __post_init__(self):
        for name in ("audio_dir", "subtypes", "question_types", "mix", "fix_cle_labels"):
            value = getattr(self, name)
            if isinstance(value, str):
                setattr(self, name, [value])
        if isinstance(self.fix_cle_labels, bool):
            self.fix_cle_labels = [] if self.fix_cle_labels else None
        _check_positive(self, vars(self).keys() - {"max_skipped_steps", "max_bad_audio"})
        if not 0 <= self.max_bad_audio <= 1:
            raise UserError(f"--max_bad_audio {self.max_bad_audio}: expected a share from 0 to 1")
        _check_choice(self, "on_bad_audio", ("error", "skip"))
        _check_conflicts(
            {
                "--dataset_name has its own splits; remove --train_file and --validation_file": (
                    self.dataset_name and (self.train_file or self.validation_file)
                ),
                "--streaming: add --dataset_name, converted with `--audio embedded`": (
                    self.streaming and not self.dataset_name
                ),
                "--streaming reads each clip once; remove --feature_cache": (
                    self.streaming and self.feature_cache
                ),
            }
        )
        if self.train_file is None and not self.dataset_name:
            self.train_file = "data/train.json"


@dataclass
class AudioLMTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with the experiment's defaults.

    Args:
        processes: Number of processes that share a batch. Default: those of this run.

    Attributes:
        argv: Command line without secrets, for `run_info.json`.
    """

    argv: list[str] | None = field(default=None, init=False)

    output_dir: str = _option(
        None, "Folder of checkpoints and the trained model; default: outputs/ENCODER_TYPE"
    )
    per_device_train_batch_size: int = _option(
        None, f"Examples per process and forward pass; default: {BATCH_SIZE} / processes"
    )
    gradient_accumulation_steps: int = _option(
        None, f"Forward passes per step; only the number that makes the batch size {BATCH_SIZE}"
    )
    train_sampling_strategy: str = _option(
        "group_by_length",
        "`group_by_length`: batches of similar length, the same for every encoder; or `random`",
        choices=["random", "sequential", "group_by_length", "batch_rebalance"],
    )
    learning_rate: float = _stock("learning_rate", 1e-4)
    max_steps: int = _stock("max_steps", 20_000)
    lr_scheduler_type: SchedulerType | str = field(
        default="cosine", metadata={"help": "Schedule of the learning rate"}
    )
    warmup_steps: float = _stock("warmup_steps", 0.01)
    eval_strategy: IntervalStrategy | str = field(
        default="steps", metadata={"help": "When to evaluate; without --validation_file never"}
    )
    eval_steps: float | None = _stock("eval_steps", 1000)
    save_steps: float = _stock("save_steps", 1000)
    save_total_limit: int | None = _stock("save_total_limit", 2)
    logging_steps: float = _stock("logging_steps", 10)
    logging_nan_inf_filter: bool = _stock("logging_nan_inf_filter", False)
    # HfArgumentParser reads the union in this order.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="none", metadata={"help": "Experiment trackers, such as wandb or tensorboard"}
    )
    remove_unused_columns: bool = _stock("remove_unused_columns", False)
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"], metadata={"help": "Names of the model's label inputs"}
    )
    seed: int = _stock("seed", 0)
    dataloader_num_workers: int = _stock("dataloader_num_workers", 2)
    dataloader_pin_memory: bool = _option(
        None, "Pin the memory of batches; default: true with a GPU"
    )
    dataloader_persistent_workers: bool = _option(
        None, "Keep the data loader's workers between epochs; default: true without --streaming"
    )
    torch_compile: bool = _option(
        False,
        "Compile the language model's layers; if it is frozen on a GPU, also replay CUDA graphs; "
        "results are the same up to rounding",
    )
    processes: InitVar[int | None] = None

    def __post_init__(self, processes: int | None):
        is_plan = processes is not None
        processes = processes or _count_processes()
        gpus = torch.cuda.device_count()
        if gpus > 1 and "LOCAL_RANK" not in os.environ and not is_plan:
            raise UserError(
                f"found {gpus} GPUs: use `accelerate launch` to start one process for each"
            )
        self._split_batch(processes)
        self._fill_defaults()
        if processes > 1 and not torch.accelerator.is_available():
            # Without it, each process on a CPU would take itself for the only one.
            self.use_cpu = True
        self.resume_from_checkpoint = checkpoint_to_resume(
            self.resume_from_checkpoint, self.output_dir
        )
        super().__post_init__()
        for start_tracker in get_reporting_integration_callbacks(self.report_to):
            start_tracker()  # raises if the tracker's package is missing

    def _split_batch(self, processes: int) -> None:
        """Sets the batch of a process and the accumulation so that they make `BATCH_SIZE`."""
        if self.per_device_train_batch_size is None:
            self.per_device_train_batch_size = max(1, BATCH_SIZE // processes)
        _check_positive(self, ["per_device_train_batch_size", "per_device_eval_batch_size"])
        forward_size = self.per_device_train_batch_size * processes
        accumulation = BATCH_SIZE // forward_size
        if BATCH_SIZE % forward_size:
            raise UserError(
                f"--per_device_train_batch_size {self.per_device_train_batch_size}: "
                f"{processes} processes do not divide the batch size {BATCH_SIZE}"
            )
        if self.gradient_accumulation_steps not in (None, accumulation):
            raise UserError(
                f"--gradient_accumulation_steps {self.gradient_accumulation_steps}: the batch size "
                f"{BATCH_SIZE} makes it {accumulation}"
            )
        self.gradient_accumulation_steps = accumulation

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
        if self.torch_compile and self.tf32 is None:
            # TrainingArguments would turn TF32 on together with compilation.
            self.tf32 = False


def _count_processes() -> int:
    if "LOCAL_RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE", 1))
    return max(1, torch.cuda.device_count())


def find_config(name: str) -> Path:
    """Returns the path of a config: a file, or the name of one in the package's `configs/`."""
    packaged = CONFIG_FOLDER / f"{name}.yaml"
    return packaged if packaged.is_file() and not Path(name).is_file() else Path(name)


def load_config_file(name: str, option_names: set[str]) -> dict[str, Any]:
    """Reads options from a YAML file, or from the package's config of that name.

    Raises:
        UserError: The file cannot be read, or holds an option that is not in `option_names`.
    """
    try:
        options = yaml.safe_load(find_config(name).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--config {name}: {error}") from error
    if not isinstance(options, dict):
        kind = type(options).__name__
        raise UserError(f"--config {name}: expected options with their values, found a {kind}")
    unknown = sorted(set(map(str, options)) - option_names)
    if unknown:
        raise UserError(f"--config {name}: unknown options {', '.join(unknown)}")
    if "hub_token" in options:
        raise UserError(f"--config {name}: hub_token: {NO_TOKEN}")
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
    """Returns all options: flags over `--config` over `--recipe` over defaults."""
    first_look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first_look.add_argument("--config")
    first_look.add_argument("--recipe")
    first, _ = first_look.parse_known_args(argv)
    options = {}
    if first.config:
        options = load_config_file(first.config, {action.dest for action in parser._actions})
    recipe = first.recipe or options.get("recipe")
    if recipe is not None and recipe not in RECIPES:
        raise UserError(f"--recipe {recipe!r}: expected {' or '.join(RECIPES)}")
    parser.set_defaults(**{**RECIPES.get(recipe, {}), **options})
    if any(word.split("=")[0].replace("-", "_") == "__hub_token" for word in argv):
        raise UserError(f"--hub_token: {NO_TOKEN}")
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        hidden = SECRET_VALUE.sub(r"\1***", " ".join(unknown))
        raise UserError(f"unrecognized arguments: {hidden}")
    options = vars(namespace)
    options.pop("config")
    return options


def _fill_shared_defaults(options: dict[str, Any]) -> None:
    """Sets training options whose default depends on the model or the data."""
    if options["output_dir"] is None:
        # The folder's name is also the name of a repository, which has no "=".
        options["output_dir"] = f"outputs/{options['encoder_type'].replace('=', '-')}"
    if options["streaming"] and options["dataloader_persistent_workers"] is None:
        # Each pass over a stream starts new workers.
        options["dataloader_persistent_workers"] = False
    if options["validation_file"] is None and not options["dataset_name"]:
        options["eval_strategy"] = "no"


def _check_streaming(options: dict[str, Any]) -> None:
    streaming = options["streaming"]
    _check_conflicts(
        {
            "--streaming: a stream has no end; use --max_steps, not --num_train_epochs": (
                streaming and options["max_steps"] <= 0
            ),
            "--prompt_format mellow pairs clips of the whole corpus; remove --streaming": (
                streaming and options["prompt_format"] == "mellow"
            ),
        }
    )


def parse_arguments(
    argv: list[str] | None = None, processes: int | None = None
) -> tuple[ModelArguments, DataArguments, AudioLMTrainingArguments]:
    """Parses flags over `--config` over the experiment's defaults.

    Errors exit with status 2, as those of argparse do.

    Args:
        argv: Command line. Default: this process's.
        processes: Number of processes of the run, if another process plans it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    try:
        options = _read_options(parser, argv)
        model_args = ModelArguments(**_select(options, ModelArguments))
        data_args = DataArguments(**_select(options, DataArguments))
        _check_streaming(options)
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


def pop_compile_options(args: TrainingArguments) -> tuple[str, str | None] | None:
    """Removes `--torch_compile` from the Trainer's arguments: it would recompile for every length.

    Returns:
        Backend and mode for [`compile_layers`], or None without `--torch_compile`.
    """
    if not args.torch_compile:
        return None
    options = (args.torch_compile_backend or "inductor", args.torch_compile_mode)
    args.torch_compile = False
    args.torch_compile_backend = None
    args.torch_compile_mode = None
    for name in ("BACKEND", "MODE"):
        os.environ.pop(f"ACCELERATE_DYNAMO_{name}", None)
    return options


TRAINING_DEFAULTS = {
    f.name: f.default
    for f in fields(AudioLMTrainingArguments)
    if f.name in AudioLMTrainingArguments.__annotations__ and f.init
}
parse = parse_arguments  # RENAMED
DEFAULTS = TRAINING_DEFAULTS  # RENAMED
ROWS_PER_STEP = BATCH_SIZE  # RENAMED
