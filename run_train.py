"""Trains one arm with the stock Trainer: `accelerate launch run_train.py --encoder_type mimi_full`.

Flags override `--config FILE.yaml`; the defaults are the experiment's: 16 rows a step, lr 1e-4, 20,000 steps, 10 s.
"""

import argparse
import ctypes
import logging
import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from transformers import AutoTokenizer, HfArgumentParser, Trainer, TrainingArguments, set_seed

from audiolm.configuration_audiolm import ENCODER_TYPES
from audiolm.data import (
    QUESTION_TYPES,
    FeatureCache,
    ReasonAQACollator,
    audio_roots,
    encode_clips,
    feature_statistics,
    load_reasonaqa,
    sound_rows,
)  # fmt: skip
from audiolm.encoder_checkpoints import load_encoder
from audiolm.evaluation.loss import token_loss, token_losses
from audiolm.modeling_audiolm import AudioLMForConditionalGeneration, text_model_source
from audiolm.processing_audiolm import AudioLMProcessor
from audiolm.resume import check_encoder, checkpoint_to_resume

logger = logging.getLogger("audiolm.train")
ROWS_PER_STEP = 16  # of every arm, over all processes
POSITIVE = ("per_device_train_batch_size", "per_device_eval_batch_size", "num_stats_clips", "max_train_samples",
            "max_eval_samples", "max_audio_seconds")  # fmt: skip
DEFAULTS = {
    "output_dir": None, "learning_rate": 1e-4, "max_steps": 20_000, "lr_scheduler_type": "cosine", "warmup_steps": 0.01,
    "eval_strategy": "steps", "eval_steps": 1000, "save_steps": 1000, "save_total_limit": 2, "logging_steps": 10,
    "dataloader_num_workers": 2, "per_device_eval_batch_size": 8, "report_to": "none", "remove_unused_columns": False,
    "logging_nan_inf_filter": False, "label_names": ["labels"], "seed": 0, "dataloader_pin_memory": torch.cuda.is_available(),
}  # fmt: skip


@dataclass
class ModelArguments:
    encoder_type: str = field(default="htsat", metadata={"help": "the arm: " + ", ".join(ENCODER_TYPES)})
    encoder_name_or_path: str | None = field(
        default=None, metadata={"help": "Hub name, folder or file of its weights, or `random`; default: the published ones"}
    )
    text_model_name_or_path: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "language model: Hub name, folder or .gguf file"}
    )
    freeze_lm: bool = field(default=True, metadata={"help": "train the mapper alone"})
    no_audio: bool = field(
        default=False, metadata={"help": "control: every frame is the mean feature, so that the text alone is learnt from"}
    )


@dataclass
class DataArguments:
    train_file: str = field(default="data/train.json", metadata={"help": "ReasonAQA's train.json"})
    validation_file: str | None = field(default=None, metadata={"help": "ReasonAQA's val.json; without it, no evaluation"})
    audio_dir: list[str] = field(
        default_factory=lambda: ["audio"],
        metadata={"help": "folder of the audio, or SOURCE=FOLDER for each first part of the rows' paths"},
    )
    max_audio_seconds: float = field(default=10.0, metadata={"help": "seconds used of each clip"})
    on_bad_audio: str = field(default="error", metadata={"help": "`error`, or `skip` the rows of missing or broken files"})
    max_train_samples: int | None = field(default=None, metadata={"help": "use the first rows only"})
    max_eval_samples: int = field(default=200, metadata={"help": "rows of each question type, always the same"})
    num_stats_clips: int = field(default=2000, metadata={"help": "training clips whose features set the standardisation"})
    feature_cache: str | None = field(
        default=None, metadata={"help": "folder of features kept from run to run: each clip is encoded once"}
    )


def parse(argv=None):
    """Arguments from flags over `--config` over the experiment's defaults; unknown names are errors."""
    argv = list(sys.argv[1:] if argv is None else argv)
    pre = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    pre.add_argument("--config")
    given, rest = pre.parse_known_args(argv)
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, TrainingArguments), description=__doc__, allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--config", help="YAML file of any of these options; flags override it")
    known = {action.dest for action in parser._actions}
    settings = {}
    if given.config:
        try:
            settings = yaml.safe_load(Path(given.config).read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            parser.error(f"--config {given.config}: {error}")
        if not isinstance(settings, dict):
            parser.error(f"--config {given.config}: options and their values are wanted, not {type(settings).__name__}")
        if unknown := sorted(set(map(str, settings)) - known):
            parser.error(f"--config {given.config}: unknown options {', '.join(unknown)}")
    processes = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else max(1, torch.cuda.device_count())
    computed = {"per_device_train_batch_size": None, "gradient_accumulation_steps": None}
    parser.set_defaults(**{**DEFAULTS, **computed, **settings})
    for action in parser._actions:
        if action.nargs == "+" and isinstance(action.default, str):
            action.default = [action.default]
        if action.dest == "per_device_train_batch_size":
            action.help = f"rows a process takes at once; {ROWS_PER_STEP} rows in all make a step"
        if action.dest == "output_dir":
            action.help = "where checkpoints and the trained model go; default: outputs/ENCODER_TYPE"
    space = parser.parse_args(rest)
    if space.per_device_train_batch_size is None:
        space.per_device_train_batch_size = max(1, ROWS_PER_STEP // processes)
    for name in POSITIVE:
        if (value := getattr(space, name)) is not None and value <= 0:
            parser.error(f"--{name} {value}: a number above 0 is wanted")
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
    if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
        parser.error(f"start {processes} GPUs with `accelerate launch`; one process cannot split a batch of clips")
    if space.encoder_type not in ENCODER_TYPES:
        parser.error(f"--encoder_type {space.encoder_type!r} is none of {', '.join(ENCODER_TYPES)}")
    if space.output_dir is None:
        space.output_dir = f"outputs/{space.encoder_type}"
    if space.on_bad_audio not in ("error", "skip"):
        parser.error(f"--on_bad_audio {space.on_bad_audio!r} is neither error nor skip")
    if space.validation_file is None:
        space.eval_strategy = "no"
    try:
        space.resume_from_checkpoint = checkpoint_to_resume(space.resume_from_checkpoint, space.output_dir)
    except ValueError as error:
        parser.error(str(error))
    values = vars(space)
    values.pop("config")
    try:
        return parser.parse_dict(values)
    except (ValueError, TypeError, ImportError) as error:  # what TrainingArguments objects to
        parser.error(str(error))


def use_all_of_the_cpu() -> None:
    """Without a GPU: every core for this process's share, and freed memory kept for the next activations.

    `accelerate launch` leaves a CPU process one thread, and glibc gives each large block back to the system, so that half
    of an encoder's time goes to page faults.
    """
    if torch.cuda.is_available():
        return
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if os.environ.get("OMP_NUM_THREADS") == "1" and "ACCELERATE_DYNAMO_BACKEND" in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local))
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    mallopt(-4, 0)  # M_MMAP_MAX
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def encoded(model, extractor, training, evaluation: dict, data_args: DataArguments, seed: int):
    """What is encoded before the first step: all clips with a cache, else those of evaluation, which come again and again.

    Sets the mapper's mean and deviation per channel as well, from training clips that are the same for every arm.
    """

    def clips(rows):
        return sorted({path for row in rows["audio"] for path in row})

    of_training = clips(training)
    of_evaluation = sorted({path for rows in evaluation.values() for path in clips(rows)})
    order = torch.randperm(len(of_training), generator=torch.Generator().manual_seed(seed))
    chosen = [of_training[i] for i in order[: data_args.num_stats_clips].tolist()]
    if data_args.feature_cache:
        features = FeatureCache(data_args.feature_cache, model.encoder, extractor)
        features.fill(of_training + of_evaluation)
        heard = (features[path] for path in chosen)
    else:
        features = dict(encode_clips(model.encoder, extractor, of_evaluation, desc="evaluation clips"))
        heard = (clip for _, clip in encode_clips(model.encoder, extractor, chosen, desc="feature statistics"))
    mean, deviation = feature_statistics(model.encoder, heard)
    model.mapper.feature_mean.copy_(mean)
    model.mapper.feature_std.copy_(deviation)
    return features


def summary(model, trainer, arguments) -> str:
    """The table at the end of a run."""
    log = trainer.state.log_history
    losses = [entry["loss"] for entry in log if "loss" in entry]
    rows = {
        "encoder": arguments.encoder_type,
        "trained parameters": f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}",
        "steps": trainer.state.global_step,
    }
    if losses:
        rows["training loss"] = f"{losses[0]:.3f} → {losses[-1]:.3f}"
    for kind in QUESTION_TYPES:
        found = [e[f"eval_{kind}_token_loss"] for e in log if f"eval_{kind}_token_loss" in e]
        if found:
            rows[f"{kind} loss"] = f"{found[0]:.3f} → {found[-1]:.3f}" if len(found) > 1 else f"{found[0]:.3f}"
    return "\n".join(f"{name:<20} {value}" for name, value in rows.items())


def main(argv=None):
    model_args, data_args, args = parse(argv)
    logging.basicConfig(level=logging.INFO if args.process_index == 0 else logging.ERROR, format="%(message)s")
    use_all_of_the_cpu()
    set_seed(args.seed)
    try:
        files = {"train": data_args.train_file, "validation": data_args.validation_file}
        data = load_reasonaqa({s: f for s, f in files.items() if f}, audio_roots(data_args.audio_dir))
        if data_args.max_train_samples:
            data["train"] = data["train"].select(range(min(data_args.max_train_samples, len(data["train"]))))
        with args.main_process_first(desc="checking audio"):  # the others find its verdicts
            data = sound_rows(data, data_args.max_audio_seconds, data_args.on_bad_audio, args.output_dir)
        model = AudioLMForConditionalGeneration.from_pretrained_parts(
            model_args.encoder_type, load_encoder(model_args.encoder_type, model_args.encoder_name_or_path),
            model_args.text_model_name_or_path, max_audio_seconds=data_args.max_audio_seconds, freeze_lm=model_args.freeze_lm,
            no_audio=model_args.no_audio,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(**text_model_source(model_args.text_model_name_or_path))
        processor = AudioLMProcessor.from_config(model.config, tokenizer)
        if args.resume_from_checkpoint:
            check_encoder(model, args.resume_from_checkpoint)
        for folder in (args.output_dir, data_args.feature_cache):
            Path(folder or ".").mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError, ImportError, SafetensorError) as error:
        sys.exit(f"run_train.py: {error}")
    extractor = processor.feature_extractor
    samples = int(data_args.max_audio_seconds * extractor.sampling_rate)
    logger.info("%s: %d tokens for %g s", model_args.encoder_type, extractor.num_frames(samples), data_args.max_audio_seconds)
    model.to(args.device)
    evaluation = None
    if "validation" in data:
        rows = data["validation"]
        chosen = {kind: [i for i, t in enumerate(rows["question_type"]) if t == kind] for kind in QUESTION_TYPES}
        evaluation = {k: rows.select(i[: data_args.max_eval_samples]) for k, i in chosen.items() if i}
    with args.main_process_first(desc="encoding clips") if data_args.feature_cache else nullcontext():  # others find its files
        features = encoded(model, extractor, data["train"], evaluation or {}, data_args, args.seed)
    trainer = Trainer(
        model=model, args=args, train_dataset=data["train"], eval_dataset=evaluation,
        data_collator=ReasonAQACollator(processor, features=features), processing_class=processor,
        compute_metrics=token_loss, preprocess_logits_for_metrics=token_losses,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    done = trainer.state.global_step
    if evaluation and not any("eval" in key for e in trainer.state.log_history if e["step"] == done for key in e):
        trainer.evaluate()
    trainer.save_model()
    trainer.save_state()
    if args.push_to_hub:
        trainer.push_to_hub()
    if trainer.is_world_process_zero():
        print(summary(model, trainer, model_args))


if __name__ == "__main__":
    main()
