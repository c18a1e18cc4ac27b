"""Trains one AudioLM: the steps of a run, in their order."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from transformers import TrainerCallback, set_seed

from ..checkpoints.load import merge_adapters
from ..data.collator import ReasonAQACollator
from ..data.decoder import ClipDecoder
from ..data.reasonaqa import QUESTION_TYPES
from ..hub.model_card import model_card
from ..hub.push import PushToHub
from ..runtime import (
    RUN_INFO_FILE,
    UserError,
    format_duration,
    use_all_of_the_cpu,
    write_json,
    write_text,
)
from .adapters import build_optimizer
from .arguments import BATCH_SIZE, AudioLMTrainingArguments, DataArguments, ModelArguments
from .build import build_model, choose_compilation, prepare_model
from .callbacks import BadAudioLog, EvaluateLastStep, SkipNonFinite, StopOnSignal
from .dataset import load_training_dataset
from .encode import encode_audio
from .loss import token_loss, token_losses
from .resume import check_settings
from .run_record import RunRecord, count_trained_parameters
from .safeguards import run_training
from .trainer import AudioLMTrainer

logger = logging.getLogger("audiolm.train")


def train(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: AudioLMTrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
) -> AudioLMTrainer:
    """Trains a model, saves it to `--output_dir`, and pushes it if the options ask for it.

    `callbacks` are called before those of this package. A signal ends the run with `SystemExit`.
    """
    configure_process(args, encodes_audio=not data_args.feature_cache)
    dataset = load_training_dataset(model_args, data_args, args)
    model, processor = build_model(model_args, data_args)
    choose_compilation(model, model_args, args)
    record = RunRecord.create(model, dataset, model_args, data_args, args)
    prepare_output(args, record.settings, data_args.resume_with_changes)
    # Before training, so that a wrong name or token is found early.
    push = PushToHub(args, partial(model_card, record.card)) if args.push_to_hub else None
    skips_bad_audio = data_args.on_bad_audio == "skip"
    decoder = ClipDecoder(processor.feature_extractor, data_args.audio_timeout, skips_bad_audio)
    bad_audio = BadAudioLog(args.output_dir)
    on_bad = bad_audio if skips_bad_audio else None
    model.to(args.device)
    cache = data_args.feature_cache
    features = encode_audio(model, decoder.extractor, dataset, cache, on_bad)
    model, pad_to = prepare_model(model, model_args, args)
    log_settings(record.card.settings)
    record.card.trained_parameters = count_trained_parameters(model)
    lm_rate = model_args.lm_learning_rate
    optimizer = build_optimizer(model, args, lm_rate) if lm_rate else None
    non_finite = SkipNonFinite(data_args.max_skipped_steps, dataset.describe_step)
    stop = StopOnSignal()
    guards = [EvaluateLastStep(), non_finite, stop, *([push] if push else [])]
    trainer = AudioLMTrainer(
        model=model,
        args=args,
        train_dataset=dataset.rows,
        eval_dataset=dataset.eval_rows,
        data_collator=ReasonAQACollator(processor, features, pad_to, decoder),
        processing_class=processor,
        compute_metrics=token_loss,
        preprocess_logits_for_metrics=token_losses,
        optimizers=(optimizer, None),
        callbacks=[*callbacks, *guards],
        sampler=dataset.sampler,
        on_bad=bad_audio,
        keep_record=record.save,
    )
    run_training(trainer, stop, non_finite)
    finish(trainer, record, model_args, push)
    return trainer


def configure_process(args: AudioLMTrainingArguments, encodes_audio: bool) -> None:
    """Sets up logging, the CPU's threads and memory, and the seeds."""
    # Other packages log only warnings. The client of the Hub would log each request.
    logging.basicConfig(format="%(message)s")
    level = logging.INFO if args.process_index == 0 else logging.ERROR
    logging.getLogger("audiolm").setLevel(level)
    use_all_of_the_cpu(encodes=encodes_audio)
    set_seed(args.seed)


def log_settings(settings: dict) -> None:
    """Logs what the device decides, and a batch size that is not the experiment's."""
    logger.info("precision: %s (--bf16 chooses it)", settings["precision"])
    if settings["rows a step"] != BATCH_SIZE:
        message = "%d examples per optimizer step, where the experiment has %d"
        logger.info(message, settings["rows a step"], BATCH_SIZE)


def prepare_output(args: AudioLMTrainingArguments, settings: dict, allows_changes: bool) -> None:
    """Creates the folder of a run, or checks that the checkpoint there has its settings."""
    folder = Path(args.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {folder}: {error.strerror}") from error
    if args.resume_from_checkpoint:
        check_settings(args.resume_from_checkpoint, settings, allows_changes)
    elif any(folder.glob("checkpoint-*")):
        logger.warning(
            "%s already holds checkpoints; they will be overwritten. "
            "Use --resume_from_checkpoint true to resume.",
            folder,
        )


def finish(
    trainer: AudioLMTrainer, record: RunRecord, model_args: ModelArguments, push: PushToHub | None
) -> None:
    """Saves the model with its card, prints a summary and pushes."""
    if not model_args.lora_r:
        trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        folder = Path(trainer.args.output_dir)
        if model_args.lora_r:
            # In one folder, `from_pretrained` would add the adapters to the merged weights again.
            trainer.model.save_pretrained(folder / "adapter")  # ty: ignore[not-callable]
            merge_adapters(trainer.model).save_pretrained(folder)
            trainer.processing_class.save_pretrained(folder)
        machine = record.info["machine"]
        seconds = [entry.get("train_runtime", 0) for entry in trainer.state.log_history]
        record.card.machine["hardware"] = f"{machine['processes']} x {machine['device']}"
        record.card.machine["training time"] = format_duration(sum(seconds))
        write_json(folder / RUN_INFO_FILE, record.info)
        write_text(folder / "README.md", model_card(record.card, folder.name))
        print(summarize(trainer, record))
        print(
            f"Saved to {folder}. Next: run_eval.py --model_name_or_path {folder} --output_dir "
            f'{folder}/evaluation, or audiolm ask CLIP "QUESTION" --model {folder}'
        )
    if push is not None:
        push.finish()


def summarize(trainer: AudioLMTrainer, record: RunRecord) -> str:
    """Returns the table that is printed after training."""
    log = trainer.state.log_history
    rows = {
        "encoder": record.card.encoder_type,
        "trained parameters": f"{record.card.trained_parameters:,}",
        "steps": trainer.state.global_step,
    }
    curves = {f"{name} loss": f"eval_{name}_token_loss" for name in QUESTION_TYPES}
    for name, key in {"training loss": "loss", **curves}.items():
        losses = [f"{entry[key]:.3f}" for entry in log if key in entry]
        if losses:
            rows[name] = " → ".join(dict.fromkeys([losses[0], losses[-1]]))
    return "\n".join(f"{name:<20} {value}" for name, value in rows.items())
