"""Guards a run against bad audio, bad steps, full disks and signals, and reports what ended it."""

import signal
import sys
from dataclasses import dataclass
from functools import partial

from safetensors import SafetensorError

from ..data.decoder import BadClip, ClipDecoder
from ..data.features import FeatureCache
from ..processing_audiolm import AudioLMProcessor
from ..runtime import UserError
from .arguments import AudioLMTrainingArguments, DataArguments
from .callbacks import BadAudio, SkipNonFinite, StopOnSignal
from .dataset import TrainingData, describe_examples
from .disk import describe_disk_error
from .resume import delete_incomplete_checkpoint
from .trainer import AudioLMTrainer

PROGRAM = "run_train.py"


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


def run_training(trainer: AudioLMTrainer, safeguards: Safeguards, stop: StopOnSignal) -> None:
    """Trains, and reports why training ended if it ended early.

    Raises:
        UserError: Audio, the disk, a data loader or the loss ended it.
        SystemExit: A signal ended it (status 128 + signal), or another process reports the reason.
    """
    try:
        trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    except BadClip as error:
        # A worker of the data loader puts its traceback before the message.
        raise UserError(str(error).strip().splitlines()[-1]) from error
    except (OSError, SafetensorError, RuntimeError) as error:
        _report_error(error, trainer)
        raise
    finally:
        stop.restore()
        if isinstance(trainer.features, FeatureCache):
            trainer.features.save()
    _report_limits(trainer, safeguards)
    if stop.received:
        if trainer.is_world_process_zero():
            print(
                f"{PROGRAM}: stopped by {signal.Signals(stop.received).name}; "
                f"step {trainer.state.global_step} is saved. "
                "To resume, add --resume_from_checkpoint true to the same command.",
                file=sys.stderr,
            )
        sys.exit(128 + stop.received)


def _report_error(error: Exception, trainer: AudioLMTrainer) -> None:
    """Ends the run if a worker died or the disk caused the error."""
    message = str(error)
    if "DataLoader worker" in message:
        raise UserError(
            f"{message.splitlines()[0]}. A killed worker often ran out of memory. "
            "Lower --dataloader_num_workers."
        ) from error
    reason = describe_disk_error(error)
    if reason is None:
        return
    if not trainer.is_world_process_zero():
        sys.exit(1)
    advice = delete_incomplete_checkpoint(trainer.args.output_dir, trainer.state.global_step)
    print(file=sys.stderr)  # ends the line of the progress bar
    raise UserError(f"{reason}: {advice}") from error


def _report_limits(trainer: AudioLMTrainer, safeguards: Safeguards) -> None:
    """Prints how many examples were replaced. Raises if these or skipped steps were too many."""
    bad_audio, non_finite = safeguards.bad_audio, safeguards.non_finite
    saved = f"step {trainer.state.global_step} is saved"
    if bad_audio.faults:
        print(f"{PROGRAM}: {bad_audio}", file=sys.stderr)
    if bad_audio.failed:
        raise UserError(
            f"{bad_audio.clips} clips could not be decoded, more than the {bad_audio.most} that "
            f"--max_bad_audio allows; {saved}"
        )
    if non_finite.failed:
        steps = ", ".join(map(str, non_finite.skipped))
        raise UserError(
            f"loss or gradients of the steps {steps} were not finite, more than "
            f"--max_skipped_steps {non_finite.most}; {saved}, without their updates"
        )
