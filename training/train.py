"""Trains one AudioLM: the steps of a run, in their order."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from transformers import TrainerCallback, set_seed

from ..checkpoints.load import merge_adapters
from ..data import QUESTION_TYPES, ReasonAQACollator
from ..hub.model_card import model_card
from ..hub.push import PushToHub
from ..modeling_audiolm import AudioLMForConditionalGeneration
from ..runtime import format_duration, use_all_of_the_cpu, write_run_info, write_text
from .adapters import build_optimizer
from .arguments import BATCH_SIZE, AudioLMTrainingArguments, DataArguments, ModelArguments
from .build import build_model, choose_compilation, pop_compile_options, prepare_model
from .callbacks import EvaluationStopped, StopOnSignal
from .compile import PAD_TO
from .dataset import load_training_dataset
from .disk import check_disk_space, create_folder
from .distributed import check_distributed_options
from .encode import encode_audio
from .loss import token_loss, token_losses
from .run_record import RunRecord, count_trained_parameters
from .safeguards import Safeguards, run_training
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
    check_distributed_options(args, model_args.lora_r, model_args.lm_learning_rate)
    dataset = load_training_dataset(model_args, data_args, args)
    model, processor = build_model(model_args, data_args)
    choose_compilation(model, model_args, args)
    record = RunRecord.create(model, dataset, model_args, data_args, args)
    if args.resume_from_checkpoint:
        record.check_resumable(args.resume_from_checkpoint, model, model_args, data_args)
    prepare_output(model, model_args, args)
    push = build_push(record, model_args, args)
    safeguards = Safeguards.create(processor, dataset, data_args, args)
    features = encode_audio(model, dataset, safeguards, model_args, data_args, args)
    compile_options = pop_compile_options(args)
    model = prepare_model(model, model_args, args, compile_options)
    log_settings(record.card.settings)
    record.card.trained_parameters = count_trained_parameters(model)
    pad_to = PAD_TO if compile_options else 1
    lm_rate = model_args.lm_learning_rate
    optimizer = build_optimizer(model, args, lm_rate) if lm_rate else None
    stop = StopOnSignal()
    guards = [safeguards.non_finite, safeguards.bad_audio, stop]
    if push is not None:
        guards.append(push)
    trainer = AudioLMTrainer(
        model=model,
        args=args,
        train_dataset=dataset.rows,
        eval_dataset=dataset.eval_rows,
        data_collator=ReasonAQACollator(processor, features, pad_to, safeguards.decoder),
        processing_class=processor,
        compute_metrics=token_loss,
        preprocess_logits_for_metrics=token_losses,
        optimizers=(optimizer, None),
        callbacks=[*callbacks, *guards],
        sampler=dataset.sampler,
        on_bad=safeguards.bad_audio,
        keep_record=record.save,
    )
    run_training(trainer, safeguards, stop)
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


def prepare_output(
    model: AudioLMForConditionalGeneration,
    model_args: ModelArguments,
    args: AudioLMTrainingArguments,
) -> None:
    """Creates the folder of a run, and checks that its checkpoints fit on the disk."""
    create_folder("output_dir", args.output_dir)
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
) -> PushToHub | None:
    """Contacts the Hub, so that a wrong name or token is found before training."""
    if not args.push_to_hub:
        return None
    adapter_of = model_args.model_name_or_path if model_args.lora_push == "adapter" else None
    return PushToHub(args, partial(model_card, record.card, adapter_of=adapter_of), adapter_of)


def finish(
    trainer: AudioLMTrainer, record: RunRecord, model_args: ModelArguments, push: PushToHub | None
) -> None:
    """Saves the model with its card, evaluates the last step, prints a summary and pushes."""
    if not model_args.lora_r:
        # Before the evaluation, which rounds the weights with --bf16_full_eval.
        trainer.save_model()
    evaluate_last_step(trainer)
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
        write_run_info(folder, record.info)
        write_text(folder / "README.md", model_card(record.card, folder.name))
        print(summarize(trainer, record))
        print(
            f"Saved to {folder}. Next: run_eval.py --model_name_or_path {folder} --output_dir "
            f'{folder}/evaluation, or audiolm ask CLIP "QUESTION" --model {folder}'
        )
    if push is not None:
        push.finish()


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
