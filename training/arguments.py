"""What run_train.py is told: its options, their defaults (the experiment's), and what contradicts what."""

import argparse
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from ..configuration_audiolm import CHOICES, list_encoder_types, parse_encoder_type
from ..data import QUESTION_TYPES
from ..modeling_audiolm import TEXT_MODEL
from .resume import checkpoint_to_resume

ROWS_PER_STEP = 16  # of every arm, over all processes
NO_TOKEN = "others can read command lines and files; use `hf auth login` or HF_TOKEN"
POSITIVE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "num_stats_clips",
    "max_train_samples",
    "max_eval_samples",
    "audio_timeout",
    "max_rows_per_clip",
    "shuffle_buffer",
    "max_audio_seconds",
    "lm_learning_rate",
    "lora_r",
    "lora_alpha",
    "audio_tokens",
    "band_limit",
    "window_seconds",
)
DEFAULTS = {
    "train_sampling_strategy": "group_by_length",
    "output_dir": None,
    "learning_rate": 1e-4,
    "max_steps": 20_000,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.01,
    "eval_strategy": "steps",
    "eval_steps": 1000,
    "save_steps": 1000,
    "save_total_limit": 2,
    "logging_steps": 10,
    "dataloader_num_workers": 2,
    "per_device_eval_batch_size": 8,
    "report_to": "none",
    "remove_unused_columns": False,
    "logging_nan_inf_filter": False,
    "label_names": ["labels"],
    "seed": 0,
    "dataloader_pin_memory": torch.cuda.is_available(),
}
RECIPES = {
    "mellow": {
        "encoder_type": "mellow",
        "mapper_type": "mellow",
        "prompt_format": "mellow",
        "freeze_lm": False,
        "learning_rate": 1e-3,
    }
}


@dataclass
class ModelArguments:
    encoder_type: str = field(
        default="htsat", metadata={"help": "the arm: " + ", ".join(list_encoder_types())}
    )
    encoder_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Hub name, folder or file of its weights, or `random`; default: the published ones"
        },
    )
    text_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": f"language model: Hub name, folder or .gguf file; default: {TEXT_MODEL}"},
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "go on from this AudioLM, Hub name or folder, with a new optimizer; all its parts count"
        },
    )
    freeze_lm: bool = field(default=True, metadata={"help": "train the mapper alone"})
    lm_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "of the language model, if it or its adapters train; default: --learning_rate"
        },
    )
    lora_r: int | None = field(
        default=None,
        metadata={"help": "train LoRA adapters of this rank on the frozen language model"},
    )
    lora_alpha: int | None = field(
        default=None, metadata={"help": "their scale is this by --lora_r; default: twice --lora_r"}
    )
    lora_push: str = field(
        default="merged",
        metadata={
            "help": "push the whole model, `merged`, or `adapter`: of the model in --model_name_or_path"
        },
    )
    audio_tokens: int | None = field(
        default=None,
        metadata={
            "help": "tokens of each clip: its frames are averaged, or repeated, to so many; default: one for each frame"
        },
    )
    learn_code_embeddings: bool = field(
        default=False,
        metadata={
            "help": "learn a table of embeddings for each level of a codec's codes, in place of its own"
        },
    )
    band_limit: int | None = field(
        default=None,
        metadata={
            "help": "the encoder hears what a recording of so many samples a second holds, such as Mimi's 24000"
        },
    )
    window_seconds: float | None = field(
        default=None, metadata={"help": "of HTSAT's windows; default: those of its checkpoint"}
    )
    mapper_type: str = field(
        default="mlp",
        metadata={"help": "mlp, or `mellow`: Mellow's projection of latent and posteriors"},
    )
    prompt_format: str = field(
        default="audiolm",
        metadata={
            "help": "how questions are written: audiolm, or `mellow`, of 129 lower-cased tokens"
        },
    )
    recipe: str | None = field(
        default=None,
        metadata={
            "help": "`mellow`: Mellow's encoder, mapper and prompts, all of the language model trained, at 1e-3"
        },
    )
    no_audio: bool = field(
        default=False,
        metadata={
            "help": "control: every frame is the mean feature, so that the text alone is learnt from"
        },
    )


@dataclass
class DataArguments:
    train_file: str | None = field(
        default=None, metadata={"help": "ReasonAQA's train.json; default: data/train.json"}
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "ReasonAQA's val.json; without it, no evaluation"}
    )
    audio_dir: list[str] = field(
        default_factory=lambda: ["audio"],
        metadata={
            "help": "folder of the audio, or SOURCE=FOLDER for each first part of the rows' paths"
        },
    )
    max_audio_seconds: float = field(default=10.0, metadata={"help": "seconds used of each clip"})
    resume_with_changes: bool = field(
        default=False,
        metadata={"help": "go on from a checkpoint although data or settings differ from its own"},
    )
    max_skipped_steps: int = field(
        default=10,
        metadata={
            "help": "stop after more steps than these whose loss or gradients are not finite"
        },
    )
    on_bad_audio: str = field(
        default="error", metadata={"help": "`error`, or `skip` the rows of missing or broken files"}
    )
    max_bad_audio: float = field(
        default=0.01,
        metadata={
            "help": "with --on_bad_audio skip: stop if more than this share of the training clips turns bad in the run"
        },
    )
    audio_timeout: float = field(
        default=60.0,
        metadata={"help": "seconds that a batch's clip may take to decode before it is bad"},
    )
    subtypes: list[str] | None = field(
        default=None,
        metadata={
            "help": "train and evaluate on rows of these subtypes alone, such as `Clotho-MCQ CLE`"
        },
    )
    question_types: list[str] | None = field(
        default=None,
        metadata={
            "help": "train and evaluate on these question types alone: " + ", ".join(QUESTION_TYPES)
        },
    )
    max_rows_per_clip: int | None = field(
        default=None,
        metadata={"help": "train on at most so many rows of each clip, drawn by --seed"},
    )
    mix: list[str] | None = field(
        default=None,
        metadata={
            "help": "shares of question types or subtypes among the training rows, such as `caption=0.1,mcq=0.5`: rows are "
            "left out until they are right, none comes twice, and what is not named shares the rest"
        },
    )
    fix_cle_labels: list[str] | None = field(
        default=None,
        metadata={
            "help": "mend the labels of the subtype CLE: with AudioEntailment's csv files, what they say; with none, "
            "`definitely false` and `plausible` change places"
        },
    )
    shuffle_options: bool = field(
        default=False,
        metadata={
            "help": "train on multiple-choice options in an order drawn by --seed and the row"
        },
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "data set that `run_prepare.py convert` made, folder or Hub name, in place of --train_file, "
            "--validation_file and --audio_dir"
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "read --dataset_name, whose rows hold their audio, while training goes on"
        },
    )
    shuffle_buffer: int = field(
        default=4000,
        metadata={"help": "with --streaming: rows among which each worker draws the next one"},
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "use the first rows only"}
    )
    max_eval_samples: int = field(
        default=200, metadata={"help": "rows of each question type, always the same"}
    )
    num_stats_clips: int = field(
        default=2000, metadata={"help": "training clips whose features set the standardisation"}
    )
    feature_cache: str | None = field(
        default=None,
        metadata={"help": "folder of features kept from run to run: each clip is encoded once"},
    )


def contradiction(options) -> str | None:
    """What is wrong with options that contradict each other, in one line."""
    adapters, trained = (
        options.lora_r is not None,
        options.lora_r is not None or not options.freeze_lm,
    )
    if adapters and not options.freeze_lm:
        return "--lora_r trains adapters on a frozen language model; leave --freeze_lm false out"
    if options.lm_learning_rate is not None and not trained:
        return "--lm_learning_rate: the language model is frozen; give --freeze_lm false or --lora_r with it"
    if options.lora_alpha is not None and not adapters:
        return "--lora_alpha: give --lora_r with it"
    if options.lora_push == "adapter" and not (adapters and options.model_name_or_path):
        return "--lora_push adapter: an adapter names the model under it; give --lora_r and --model_name_or_path with it"
    if options.lora_push == "adapter" and Path(options.model_name_or_path).exists():
        return f"--lora_push adapter: {options.model_name_or_path} is a folder here, and nobody else has it; push it first"
    if options.dataset_name and (options.train_file or options.validation_file):
        return (
            "--dataset_name: it has splits of its own; leave --train_file and --validation_file out"
        )
    if options.streaming and not options.dataset_name:
        return "--streaming: give --dataset_name with it, a data set of `run_prepare.py convert --audio embedded`"
    if options.streaming and options.max_steps <= 0:
        return (
            "--streaming: a stream has no end; give --max_steps with it, and no --num_train_epochs"
        )
    if options.streaming and options.feature_cache:
        return "--streaming: its clips pass by once; leave --feature_cache out"
    for part in ("encoder_name_or_path", "text_model_name_or_path", "band_limit", "window_seconds"):
        if options.model_name_or_path and getattr(options, part):
            return f"--{part}: the model of --model_name_or_path brings its own"
    if options.prompt_format == "mellow" and options.streaming:
        return "--prompt_format mellow: the second clips of its rows are drawn from all, which a stream does not know"
    return None


def taken_compilation(args: TrainingArguments) -> tuple[str, str | None] | None:
    """Backend and mode that `--torch_compile` asks for, None without it; the Trainer, which would compile all of the model
    anew for many a length, hears nothing of it."""
    if not args.torch_compile:
        return None
    wanted = args.torch_compile_backend, args.torch_compile_mode
    args.torch_compile, args.torch_compile_backend, args.torch_compile_mode = False, None, None
    for name in ("BACKEND", "MODE"):
        os.environ.pop(f"ACCELERATE_DYNAMO_{name}", None)
    return wanted


def parse(argv=None, description: str | None = None, processes: int | None = None):
    """Arguments from flags over `--config` over the experiment's defaults; unknown names are errors.

    Args:
        processes: that a run will have which another process plans; by default those of this run.
    """
    planned = processes is not None
    argv = list(sys.argv[1:] if argv is None else argv)
    pre = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    pre.add_argument("--config")
    pre.add_argument("--recipe")
    given, rest = pre.parse_known_args(argv)
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, TrainingArguments),
        description=description,
        allow_abbrev=False,
        usage="%(prog)s [--OPTION VALUE ...], of which --help names all",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--config", help="YAML file of any of these options; flags override it")
    known = {action.dest for action in parser._actions}
    settings = {}
    if given.config:
        try:
            settings = yaml.safe_load(Path(given.config).read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            parser.error(f"--config {given.config}: {error}")
        if not isinstance(settings, dict):
            parser.error(
                f"--config {given.config}: options and their values are wanted, not {type(settings).__name__}"
            )
        if unknown := sorted(set(map(str, settings)) - known):
            parser.error(f"--config {given.config}: unknown options {', '.join(unknown)}")
        if "hub_token" in settings:
            parser.error(f"--config {given.config}: hub_token: {NO_TOKEN}")
    processes = processes or (
        int(os.environ.get("WORLD_SIZE", 1))
        if "LOCAL_RANK" in os.environ
        else max(1, torch.cuda.device_count())
    )
    computed = dict.fromkeys(
        [
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "dataloader_persistent_workers",
        ]
    )
    recipe = given.recipe or settings.get("recipe")
    if recipe is not None and recipe not in RECIPES:
        parser.error(f"--recipe {recipe!r}: {', '.join(RECIPES)} is there")
    parser.set_defaults(
        **{**DEFAULTS, **computed, **RECIPES.get(recipe, {}), **settings, "recipe": recipe}
    )
    for action in parser._actions:
        if action.nargs == "+" and isinstance(action.default, str):
            action.default = [action.default]
        if action.dest == "fix_cle_labels":
            action.nargs = "*"
        if action.dest == "per_device_train_batch_size":
            action.help = f"rows a process takes at once; {ROWS_PER_STEP} rows in all make a step"
        if action.dest == "train_sampling_strategy":
            action.help = "group_by_length: rows of about one length make a step, drawn by --seed, the same for every arm; random"
        if action.dest == "torch_compile":
            action.help = (
                "compile the language model's layers and, where it is frozen and on a GPU, replay CUDA graphs of them; the "
                "same numbers up to rounding"
            )
        if action.dest == "output_dir":
            action.help = (
                "where checkpoints and the trained model go; default: outputs/ENCODER_TYPE"
            )
    if any(word.split("=")[0].replace("-", "_") == "__hub_token" for word in rest):
        parser.error(f"--hub_token: {NO_TOKEN}")
    space, unknown = parser.parse_known_args(rest)
    if unknown:
        parser.error("unrecognized arguments: " + re.sub(r"hf_\w+", "hf_***", " ".join(unknown)))
    if space.per_device_train_batch_size is None:
        space.per_device_train_batch_size = max(1, ROWS_PER_STEP // processes)
    for name in POSITIVE:
        if (value := getattr(space, name)) is not None and value <= 0:
            parser.error(f"--{name} {value}: a number above 0 is wanted")
    if not 0 <= space.max_bad_audio <= 1:
        parser.error(f"--max_bad_audio {space.max_bad_audio}: a share is wanted, from 0 to 1")
    at_once = space.per_device_train_batch_size * processes
    if ROWS_PER_STEP % at_once:
        parser.error(
            f"a step takes {ROWS_PER_STEP} rows; {processes} processes of {space.per_device_train_batch_size} do not divide it"
        )
    if space.gradient_accumulation_steps not in (None, ROWS_PER_STEP // at_once):
        parser.error(
            f"--gradient_accumulation_steps {space.gradient_accumulation_steps}: a step of {ROWS_PER_STEP} rows, {at_once} at "
            f"once, makes it {ROWS_PER_STEP // at_once}"
        )
    space.gradient_accumulation_steps = ROWS_PER_STEP // at_once
    if space.dataloader_persistent_workers is None:  # a stream's workers begin anew with each pass
        space.dataloader_persistent_workers = (
            space.dataloader_num_workers > 0 and not space.streaming
        )
    if (
        space.accelerator_config is None
    ):  # else each copy of a batch to the GPU waits for all that it was told before
        space.accelerator_config = {"non_blocking": space.dataloader_pin_memory}
    if (short := os.environ.get("ACCELERATE_MIXED_PRECISION")) in ("bf16", "fp16") and not (
        space.bf16 or space.fp16
    ):
        setattr(
            space, short, True
        )  # the Trainer would compute so anyway, and a model's record would not say it
    if space.torch_compile and space.tf32 is None:
        space.tf32 = False  # which TrainingArguments would turn on with it
    if processes > 1 and not torch.accelerator.is_available():
        space.use_cpu = True  # else each of them would take itself for the only one
    if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ and not planned:
        parser.error(
            f"start {processes} GPUs with `accelerate launch`; one process cannot split a batch of clips"
        )
    try:
        parse_encoder_type(space.encoder_type)
    except ValueError as error:
        parser.error(f"--{error}")
    if space.lora_r and space.lora_alpha is None:
        space.lora_alpha = 2 * space.lora_r
    if space.output_dir is None:
        space.output_dir = (
            f"outputs/{space.encoder_type.replace('=', '-')}"  # a repository has its name
        )
    for name, values in (
        ("on_bad_audio", ("error", "skip")),
        ("lora_push", ("merged", "adapter")),
        *CHOICES.items(),
    ):
        if (value := getattr(space, name)) not in values:
            parser.error(f"--{name} {value!r} is neither {values[0]} nor {values[1]}")
    if wrong := contradiction(space):
        parser.error(wrong)
    if isinstance(space.fix_cle_labels, bool):  # of a YAML file
        space.fix_cle_labels = [] if space.fix_cle_labels else None
    if space.train_file is None and not space.dataset_name:
        space.train_file = "data/train.json"
    if space.validation_file is None and not space.dataset_name:
        space.eval_strategy = "no"
    try:
        space.resume_from_checkpoint = checkpoint_to_resume(
            space.resume_from_checkpoint, space.output_dir
        )
    except ValueError as error:
        parser.error(str(error))
    values = vars(space)
    values.pop("config")
    try:
        parsed = parser.parse_dict(values)
        for tracker in get_reporting_integration_callbacks(parsed[2].report_to):
            tracker()  # tells if its package is missing
    except (
        ValueError,
        TypeError,
        ImportError,
        RuntimeError,
    ) as error:  # what TrainingArguments objects to
        parser.error(str(error))
    return parsed
