"""Trains one AudioLM: the steps of a run in their order, and how a run ends."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, set_seed

from ..checkpoints.load import merge_adapters
from ..data import QUESTION_TYPES, FeatureCache, ReasonAQACollator
from ..data.decoder import BadClip, ClipDecoder
from ..hub.model_card import model_card
from ..hub.push import PushToHub
from ..modeling_audiolm import AudioLMForConditionalGeneration
from ..processing_audiolm import AudioLMProcessor
from ..runtime import UserError, use_all_of_the_cpu, write_run_info, write_text
from .adapters import build_optimizer
from .arguments import (
    AudioLMTrainingArguments,
    DataArguments,
    ModelArguments,
    parse_arguments,
    pop_compile_options,
)
from .build import build_model, prepare_model
from .callbacks import (
    BadAudio,
    EvaluationStopped,
    LineLogger,
    LossSpikes,
    Progress,
    SkipNonFinite,
    StopOnSignal,
)
from .compile import PAD_TO
from .dataset import (
    TrainingData,
    describe_examples,
    encodings_per_clip,
    load_training_dataset,
    precompute_features,
    sample_clips,
    standardise_features,
)
from .disk import check_disk_space, create_folder, describe_disk_error
from .distributed import refusal
from .loss import token_loss, token_losses
from .resume import check_features, delete_incomplete_checkpoint
from .run_record import RunRecord, count_trained_parameters
from .trainer import BucketTrainer as AudioLMTrainer

PROGRAM = "run_train.py"
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
    check_sharding(model_args, args)
    dataset = load_training_dataset(model_args, data_args, args)
    model, processor = build_model(model_args, data_args)
    record = RunRecord.create(model, dataset, model_args, data_args, args)
    if args.resume_from_checkpoint:
        record.check_resumable(args.resume_from_checkpoint, model, model_args, data_args)
    prepare_output(model, model_args, data_args, args)
    push = build_push(record, model_args, args)
    safeguards = Safeguards.create(processor, dataset, data_args, args)
    features = encode_audio(model, dataset, safeguards, model_args, data_args, args)
    compile_options = pop_compile_options(args)
    model = prepare_model(model, model_args, args, compile_options)
    record.card.trained_parameters = count_trained_parameters(model)
    pad_to = PAD_TO if compile_options else 1
    stop = StopOnSignal()
    trainer = AudioLMTrainer(
        model=model,
        args=args,
        train_dataset=dataset.rows,
        eval_dataset=dataset.eval_rows,
        data_collator=ReasonAQACollator(processor, False, features, pad_to, safeguards.decoder),
        processing_class=processor,
        compute_metrics=token_loss,
        preprocess_logits_for_metrics=token_losses,
        optimizers=(custom_optimizer(model, model_args, args), None),
        callbacks=[*callbacks, *safeguards.callbacks, LossSpikes(), stop, *push],
        sampler=dataset.sampler,
        on_bad=safeguards.bad_audio,
        keep_record=record.save,
    )
    show_progress(trainer)
    run_training(trainer, safeguards, stop)
    finish(trainer, record, model_args, push)
    return trainer


# ------------------------------------------------------------------------------------------------
# Before training


def configure_process(args: AudioLMTrainingArguments, encodes_audio: bool) -> None:
    """Sets up logging, the CPU's threads and memory, and the seeds."""
    # torch reads this with its first large tensor, and then uses pages of 2 MB for large ones.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Other packages log only warnings. The client of the Hub would log each request.
    logging.basicConfig(format="%(message)s")
    level = logging.INFO if args.process_index == 0 else logging.ERROR
    logging.getLogger("audiolm").setLevel(level)
    use_all_of_the_cpu(encodes=encodes_audio)
    set_seed(args.seed)


def check_sharding(model_args: ModelArguments, args: AudioLMTrainingArguments) -> None:
    """Checks that FSDP or DeepSpeed, if used, support the options.

    Raises:
        UserError: They do not.
    """
    message = refusal(args, model_args.lora_r, model_args.lm_learning_rate)
    if message:
        raise UserError(message)


def prepare_output(
    model: AudioLMForConditionalGeneration,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: AudioLMTrainingArguments,
) -> None:
    """Creates the folders of a run, and checks that its checkpoints fit on the disk.

    Raises:
        UserError: A folder cannot be created, or the disk has not enough space.
    """
    create_folder("output_dir", args.output_dir)
    if data_args.feature_cache:
        create_folder("feature_cache", data_args.feature_cache)
    has_checkpoints = any(Path(args.output_dir).glob("checkpoint-*"))
    if has_checkpoints and not args.resume_from_checkpoint:
        logger.warning(
            "%s already holds checkpoints; they will be overwritten. "
            "Use --resume_from_checkpoint true to resume.",
            args.output_dir,
        )
    check_disk_space(model, args, saves_adapters=bool(model_args.lora_r))


def build_push(
    record: RunRecord, model_args: ModelArguments, args: AudioLMTrainingArguments
) -> list[PushToHub]:
    """Returns the callback that pushes to the Hub, or no callback without `--push_to_hub`.

    It contacts the Hub, so that a wrong name or token is found before training.
    """
    if not args.push_to_hub:
        return []
    adapter_of = model_args.model_name_or_path if model_args.lora_push == "adapter" else None
    return [PushToHub(args, partial(model_card, record.card, adapter_of=adapter_of), adapter_of)]


@dataclass
class Safeguards:
    """Decoder and callbacks that survive bad audio and bad steps, and count them."""

    decoder: ClipDecoder
    bad_audio: BadAudio
    non_finite: SkipNonFinite

    @classmethod
    def create(
        cls,
        processor: AudioLMProcessor,
        dataset: TrainingData,
        data_args: DataArguments,
        args: AudioLMTrainingArguments,
    ) -> "Safeguards":
        """Creates them with the limits of the options."""
        skips = data_args.on_bad_audio == "skip"
        max_bad_clips = int(data_args.max_bad_audio * dataset.num_clips)
        describe = None
        if dataset.sampler:
            describe = partial(describe_examples, dataset.rows, dataset.sampler)
        return cls(
            decoder=ClipDecoder(processor.feature_extractor, data_args.audio_timeout, skips),
            bad_audio=BadAudio(max_bad_clips, args.output_dir),
            non_finite=SkipNonFinite(data_args.max_skipped_steps, describe),
        )

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """Callbacks for the Trainer."""
        return [self.non_finite, self.bad_audio]


def encode_audio(
    model: AudioLMForConditionalGeneration,
    dataset: TrainingData,
    safeguards: Safeguards,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: AudioLMTrainingArguments,
) -> FeatureCache | dict[str, torch.Tensor]:
    """Encodes what is encoded before the first step, and sets the mapper's feature statistics.

    A mapper that was trained before keeps its statistics.

    Raises:
        UserError: A clip cannot be decoded, the disk is full, or a resumed run had other features.
        SystemExit: Ctrl-C was pressed.
    """
    extractor = safeguards.decoder.extractor
    on_bad = safeguards.bad_audio.found if safeguards.decoder.skip else None
    cache = data_args.feature_cache
    needs_statistics = not (model_args.model_name_or_path or model_args.learn_code_embeddings)
    model.to(args.device)
    _log_audio_cost(model, dataset, extractor, data_args, args)
    try:
        features = precompute_features(model, extractor, dataset, cache, on_bad)
        if needs_statistics:
            clips = sample_clips(dataset, data_args.num_stats_clips, args.seed)
            standardise_features(model, extractor, clips, features, on_bad)
    except (ValueError, OSError, SafetensorError) as error:
        raise UserError(str(error)) from error
    except KeyboardInterrupt:
        saved = f"; the clips encoded so far are saved in {cache}" if cache else ""
        print(f"\n{PROGRAM}: interrupted before the first step{saved}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    if args.resume_from_checkpoint and model_args.lora_r:
        check_features(model, args.resume_from_checkpoint)
    return features


def _log_audio_cost(
    model: AudioLMForConditionalGeneration,
    dataset: TrainingData,
    extractor,
    data_args: DataArguments,
    args: AudioLMTrainingArguments,
) -> None:
    samples = int(data_args.max_audio_seconds * extractor.sampling_rate)
    tokens = model.config.audio_tokens or extractor.num_frames(samples)
    encoder_type = model.config.encoder_type
    seconds = data_args.max_audio_seconds
    logger.info("%s: %d audio tokens for %g s", encoder_type, tokens, seconds)
    if data_args.feature_cache or data_args.streaming:
        return
    times = encodings_per_clip(dataset, args)
    if times > 2:
        logger.info(
            "each clip is encoded %.0f times; with --feature_cache DIR it is encoded once", times
        )


def custom_optimizer(
    model: torch.nn.Module, model_args: ModelArguments, args: AudioLMTrainingArguments
) -> torch.optim.Optimizer | None:
    """Returns an optimizer with `--lm_learning_rate`, or None for the Trainer's own."""
    if model_args.lm_learning_rate is None:
        return None
    return build_optimizer(model, args, model_args.lm_learning_rate)


def show_progress(trainer: AudioLMTrainer) -> None:
    """Replaces the Trainer's progress output by one with the step in each line."""
    stock, ours = ProgressCallback, Progress
    if trainer.args.disable_tqdm:
        stock, ours = PrinterCallback, LineLogger
    trainer.remove_callback(stock)
    trainer.add_callback(ours)


# ------------------------------------------------------------------------------------------------
# Training, and the ways in which it ends early


def run_training(trainer: AudioLMTrainer, safeguards: Safeguards, stop: StopOnSignal) -> None:
    """Trains, and reports why training ended if it ended early.

    Raises:
        UserError: Audio, the disk, a data loader or the loss ended it.
        SystemExit: A signal ended it, or another process reports the reason.
    """
    try:
        trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    except BadClip as error:
        # A worker of the data loader puts its traceback before the message.
        raise UserError(str(error).strip().splitlines()[-1]) from error
    except (OSError, SafetensorError, RuntimeError) as error:
        report_dead_worker(error, safeguards.decoder)
        report_disk_error(error, trainer)
        raise
    finally:
        stop.restore()
    report_bad_audio(trainer, safeguards.bad_audio)
    report_skipped_steps(trainer, safeguards.non_finite)
    report_signal(trainer, stop)


def report_dead_worker(error: Exception, decoder: ClipDecoder) -> None:
    """Raises a `UserError` with the clip at which a worker of the data loader died, if one did."""
    message = str(error)
    if "DataLoader worker" in message:
        clip = decoder.at_death(message) or "no clip"
        raise UserError(f"{message.splitlines()[0]}; it was decoding {clip}") from error


def report_disk_error(error: Exception, trainer: AudioLMTrainer) -> None:
    """Ends the run if the disk caused the error. An incomplete checkpoint is deleted."""
    reason = describe_disk_error(error)
    if reason is None:
        return
    if not trainer.is_world_process_zero():
        sys.exit(1)
    advice = delete_incomplete_checkpoint(trainer.args.output_dir, trainer.state.global_step)
    print(file=sys.stderr)  # ends the line of the progress bar
    raise UserError(f"{reason}: {advice}") from error


def report_bad_audio(trainer: AudioLMTrainer, bad_audio: BadAudio) -> None:
    """Prints how many examples were replaced, and raises a `UserError` if they were too many."""
    if bad_audio.faults:
        print(f"{PROGRAM}: {bad_audio}", file=sys.stderr)
    if bad_audio.failed:
        raise UserError(
            f"{bad_audio.clips} clips could not be decoded, more than the {bad_audio.most} that "
            f"--max_bad_audio allows; step {trainer.state.global_step} is saved"
        )


def report_skipped_steps(trainer: AudioLMTrainer, non_finite: SkipNonFinite) -> None:
    """Raises a `UserError` if too many steps were skipped."""
    if non_finite.failed:
        steps = ", ".join(map(str, non_finite.skipped))
        raise UserError(
            f"loss or gradients of the steps {steps} were not finite, more than "
            f"--max_skipped_steps {non_finite.most}; step {trainer.state.global_step} is saved, "
            "without their updates"
        )


def report_signal(trainer: AudioLMTrainer, stop: StopOnSignal) -> None:
    """Exits with status 128 + signal if a signal stopped the run."""
    if not stop.received:
        return
    if trainer.is_world_process_zero():
        name = signal.Signals(stop.received).name
        print(
            f"{PROGRAM}: stopped by {name}; step {trainer.state.global_step} is saved. "
            "To resume, add --resume_from_checkpoint true to the same command.",
            file=sys.stderr,
        )
    sys.exit(128 + stop.received)


# ------------------------------------------------------------------------------------------------
# After training


def finish(
    trainer: AudioLMTrainer,
    record: RunRecord,
    model_args: ModelArguments,
    push: Sequence[PushToHub],
) -> None:
    """Evaluates the last step, saves the model with its card, prints a summary and pushes.

    Raises:
        UserError: The Hub did not accept the model. The message says how to push it.
    """
    evaluate_last_step(trainer)
    trainer.save_state()
    if not model_args.lora_r:
        trainer.save_model()
    if trainer.is_world_process_zero():
        folder = Path(trainer.args.output_dir)
        if model_args.lora_r:
            save_adapters(trainer, folder)
        write_run_info(folder, record.info)
        write_text(folder / "README.md", model_card(record.card, folder.name))
        print(summarize(trainer, record))
    for callback in push:
        try:
            callback.finish()
        except ConnectionError as error:
            raise UserError(str(error)) from error


def evaluate_last_step(trainer: AudioLMTrainer) -> None:
    """Evaluates, unless the last step has been evaluated. A signal skips the evaluation."""
    if not trainer.eval_dataset:
        return
    last_entries = [
        entry for entry in trainer.state.log_history if entry["step"] == trainer.state.global_step
    ]
    if not any("eval" in key for key in set().union(*last_entries)):
        with suppress(EvaluationStopped):
            trainer.evaluate()


def save_adapters(trainer: AudioLMTrainer, folder: Path) -> None:
    """Saves the model with its adapters merged, and the adapters alone in `adapter/`.

    In one folder, `from_pretrained` would add the adapters to the merged weights once more.
    """
    trainer.model.save_pretrained(folder / "adapter")
    merge_adapters(trainer.model).save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)


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


def main(argv=None):  # MOVED to audiolm.run_train
    import_module("audiolm.run_train").main(argv)


parse = parse_arguments  # MOVED to training.arguments
BucketTrainer = AudioLMTrainer  # RENAMED
