"""Trains one arm with the stock Trainer: `accelerate launch run_train.py --encoder_type mimi_full`.

Flags override `--config FILE.yaml`; the defaults are the experiment's: 16 rows a step, lr 1e-4, 20,000 steps, 10 s.
"""

import logging
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from .build import MODEL_CONFIG_FIELDS, build_model
from .dataset import read_rows

os.environ.setdefault(
    "THP_MEM_ALLOC_ENABLE", "1"
)  # torch reads it with its first tensor: pages of 2 MB for large ones

from safetensors import SafetensorError
from transformers import PrinterCallback, ProgressCallback, set_seed
from transformers.trainer_utils import IntervalStrategy

from ..checkpoints.load import merge_adapters
from ..data import QUESTION_TYPES, ReasonAQACollator
from ..data.decoder import BadClip, ClipDecoder
from ..data.second_clips import first_clips, second_clips
from ..hub.model_card import model_card
from ..hub.push import PushToHub
from ..runtime import run_info, use_all_of_the_cpu, write_run_info
from .adapters import add_lora_adapters, build_optimizer
from .arguments import parse, taken_compilation
from .callbacks import (
    BadAudio,
    EvaluationStopped,
    LineLogger,
    LossSpikes,
    Progress,
    SkipNonFinite,
    StopOnSignal,
)
from .compile import PAD_TO, cache_bf16_weights, compile_layers
from .dataset import (
    bucket_sampler,
    data_changes,
    data_facts,
    describe_rows,
    encoded,
    encodings,
    stream_settings,
)
from .disk import check_disk_space, describe_disk_error
from .distributed import precision, refusal, sharding_backend
from .loss import token_loss, token_losses
from .resume import (
    check_adapters,
    check_encoder,
    check_features,
    check_settings,
    check_stream,
    delete_incomplete_checkpoint,
    save_run_record,
)
from .run_record import training_facts
from .trainer import BucketTrainer

logger = logging.getLogger("audiolm.train")


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
            rows[f"{kind} loss"] = (
                f"{found[0]:.3f} → {found[-1]:.3f}" if len(found) > 1 else f"{found[0]:.3f}"
            )
    return "\n".join(f"{name:<20} {value}" for name, value in rows.items())


def main(argv=None):
    model_args, data_args, args = parse(argv, __doc__)
    logging.basicConfig(
        format="%(message)s"
    )  # of others, such as each request to the Hub, warnings alone
    logging.getLogger("audiolm").setLevel(
        logging.INFO if args.process_index == 0 else logging.ERROR
    )
    use_all_of_the_cpu(encodes=not data_args.feature_cache)
    set_seed(args.seed)
    try:
        if wrong := refusal(args, model_args.lora_r, model_args.lm_learning_rate):
            raise ValueError(wrong)
        data = read_rows(data_args, args)
        if model_args.prompt_format == "mellow":
            known = {
                name: clip
                for of in (data.evaluation or {}).values()
                for name, clip in first_clips(of).items()
            }
            data = data._replace(
                rows=second_clips(data.rows, args.seed),
                evaluation=data.evaluation
                and {
                    kind: second_clips(rows, args.seed, known)
                    for kind, rows in data.evaluation.items()
                },
            )
        if data.evaluation is None:
            args.eval_strategy = IntervalStrategy.NO
        model, processor = build_model(model_args, data_args)
        model.config.data_changes = data_changes(data_args, args.seed)
        if args.resume_from_checkpoint and model_args.lora_r:
            check_adapters(args.resume_from_checkpoint, model_args.lora_r, model_args.lora_alpha)
        elif args.resume_from_checkpoint:
            check_encoder(model, args.resume_from_checkpoint)
        for option, folder in (
            ("output_dir", args.output_dir),
            ("feature_cache", data_args.feature_cache),
        ):
            try:
                Path(folder or ".").mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"--{option} {folder}: {error.strerror}") from error
        if not args.resume_from_checkpoint and list(Path(args.output_dir).glob("checkpoint-*")):
            logger.warning(
                "%s: checkpoints of an earlier run are there, and give way to this one's; to go on from them, give "
                "--resume_from_checkpoint true",
                args.output_dir,
            )
        check_disk_space(model, args, adapters=bool(model_args.lora_r))
        about_data = data_facts(data_args, data)
        streamed = stream_settings(data_args, args, about_data)
        if args.resume_from_checkpoint and streamed:
            check_stream(args.resume_from_checkpoint, streamed)
        sampler = bucket_sampler(data, data_args.max_audio_seconds, args)
        facts = training_facts(model, model_args, data_args, args, about_data)
        facts["settings"]["precision"] = precision(args)
        facts["settings"]["batches"] = (
            f"of one length, order {sampler.digest()[:16]}" if sampler else "of any length"
        )
        arm = {
            name: getattr(model_args, name)
            for name in ("band_limit", "window_seconds", *MODEL_CONFIG_FIELDS)
        }
        arm = {
            name: value
            for name, value in arm.items()
            if value not in (None, False, "mlp", "audiolm")
        }
        settings = {
            "encoder_type": model_args.encoder_type,
            "no_audio": model_args.no_audio,
            "audio_tokens": None,
            **arm,
            **facts["settings"],
            **about_data,
        }
        if args.resume_from_checkpoint and not data_args.resume_with_changes:
            check_settings(args.resume_from_checkpoint, settings)
        model.config.training = {
            **facts["settings"],
            "data": about_data,
        }  # two models are comparable where these are equal
        adapter_of = model_args.model_name_or_path if model_args.lora_push == "adapter" else None
        push = (
            PushToHub(args, partial(model_card, facts, adapter_of=adapter_of), adapter_of)
            if args.push_to_hub
            else None
        )
    except (ValueError, OSError, ImportError, SafetensorError) as error:
        sys.exit(f"run_train.py: {error}")
    compiled, extractor = taken_compilation(args), processor.feature_extractor
    samples = int(data_args.max_audio_seconds * extractor.sampling_rate)
    tokens = model.config.audio_tokens or extractor.num_frames(samples)
    logger.info(
        "%s: %d tokens for %g s", model_args.encoder_type, tokens, data_args.max_audio_seconds
    )
    model.to(args.device)
    if (
        not (data_args.feature_cache or data_args.streaming)
        and (times := encodings(data, args)) > 2
    ):
        logger.info(
            "each clip is decoded and encoded %.0f times; --feature_cache DIR does it once", times
        )
    skips = data_args.on_bad_audio == "skip"
    bad = BadAudio(int(data_args.max_bad_audio * data.num_clips), args.output_dir)
    decoder = ClipDecoder(extractor, data_args.audio_timeout, skips)
    standardise = model_args.model_name_or_path is None  # an earlier mapper learnt with its own
    try:
        features = encoded(
            model, extractor, data, data_args, args, standardise, bad.found if skips else None
        )
    except (
        ValueError,
        OSError,
        SafetensorError,
    ) as error:  # no room, a full disk, a clip that is gone
        sys.exit(f"run_train.py: {error}")
    except KeyboardInterrupt:
        kept = (
            f"; what is encoded is kept in {data_args.feature_cache}"
            if data_args.feature_cache
            else ""
        )
        print(f"\nrun_train.py: interrupted before the first step{kept}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    if model_args.lora_r:
        try:
            if args.resume_from_checkpoint:
                check_features(model, args.resume_from_checkpoint)
        except ValueError as error:
            sys.exit(f"run_train.py: {error}")
        model = add_lora_adapters(model, model_args.lora_r, model_args.lora_alpha)
        facts["trained_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    elif (
        args.bf16 and model_args.freeze_lm and not sharding_backend(args)
    ):  # whose weights come and go
        cache_bf16_weights(model.language_model)
    if compiled:
        try:
            compile_layers(model.language_model, *compiled)
        except ValueError as error:
            sys.exit(f"run_train.py: {error}")
    record = {
        "data": about_data,
        "changes": data_changes(data_args, args.seed),
        "stream": streamed,
        "settings": settings,
        "processes": args.world_size,
    }
    info = run_info("run_train.py", argv, data=about_data, settings=settings)
    skip = SkipNonFinite(
        data_args.max_skipped_steps, partial(describe_rows, data.rows, sampler) if sampler else None
    )
    stop = StopOnSignal()
    trainer = BucketTrainer(
        sampler=sampler,
        model=model,
        args=args,
        train_dataset=data.rows,
        eval_dataset=data.evaluation,
        data_collator=ReasonAQACollator(
            processor, False, features, PAD_TO if compiled else 1, decoder
        ),
        on_bad=bad,
        keep_record=partial(save_run_record, record, info),
        processing_class=processor,
        compute_metrics=token_loss,
        preprocess_logits_for_metrics=token_losses,
        callbacks=[skip, bad, LossSpikes(), stop, *([push] if push else [])],
        optimizers=(
            build_optimizer(model, args, model_args.lm_learning_rate)
            if model_args.lm_learning_rate
            else None,
            None,
        ),
    )
    stock, ours = (
        (PrinterCallback, LineLogger) if args.disable_tqdm else (ProgressCallback, Progress)
    )
    trainer.remove_callback(stock)
    trainer.add_callback(ours)
    try:
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    except BadClip as error:  # which a loader's process wraps into lines of its own
        sys.exit(f"run_train.py: {str(error).strip().splitlines()[-1]}")
    except (OSError, SafetensorError, RuntimeError) as error:
        if "DataLoader worker" in str(error):
            sys.exit(
                f"run_train.py: {str(error).splitlines()[0]}; it decoded {decoder.at_death(str(error)) or 'nothing'}"
            )
        if not (reason := describe_disk_error(error)):
            raise
        step = trainer.state.global_step
        if trainer.is_world_process_zero():
            print(
                f"\nrun_train.py: {reason}: {delete_incomplete_checkpoint(args.output_dir, step)}",
                file=sys.stderr,
            )
        sys.exit(1)
    finally:
        stop.restore()
    done = trainer.state.global_step
    if bad.faults:
        print(f"run_train.py: {bad}", file=sys.stderr)
    if bad.failed:
        sys.exit(
            f"run_train.py: {bad.clips} clips turned bad, more than --max_bad_audio {data_args.max_bad_audio:g} of "
            f"{data.num_clips}; step {done} is saved"
        )
    if skip.failed:
        sys.exit(
            f"run_train.py: loss or gradients of the steps {', '.join(map(str, skip.skipped))} were not finite, more than "
            f"--max_skipped_steps {skip.most}; step {done} is saved, with none of their updates"
        )
    if stop.received:
        if trainer.is_world_process_zero():
            print(
                f"run_train.py: stopped by {signal.Signals(stop.received).name}; step {done} is saved: the same command with "
                "--resume_from_checkpoint true goes on",
                file=sys.stderr,
            )
        sys.exit(128 + stop.received)
    if data.evaluation and not any(
        "eval" in key for e in trainer.state.log_history if e["step"] == done for key in e
    ):
        with suppress(EvaluationStopped):  # by a signal: the model is saved below
            trainer.evaluate()
    trainer.save_state()
    if not model_args.lora_r:
        trainer.save_model()
    if trainer.is_world_process_zero():
        if (
            model_args.lora_r
        ):  # beside each other, from_pretrained would add the adapters a second time
            model.save_pretrained(Path(args.output_dir, "adapter"))
            merge_adapters(model).save_pretrained(args.output_dir)
            processor.save_pretrained(args.output_dir)
        write_run_info(args.output_dir, info)
        Path(args.output_dir, "README.md").write_text(
            model_card(facts, Path(args.output_dir).name), encoding="utf-8"
        )
        print(summary(model, trainer, model_args))
    if push:
        try:
            push.finish()
        except ConnectionError as error:
            sys.exit(f"run_train.py: {error}")


if __name__ == "__main__":
    main()
