"""Encodes audio before the first step, and sets the mapper's feature statistics."""

import logging
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from safetensors import SafetensorError

from ..data import FeatureCache, encode_clips, feature_statistics
from ..data.audio_files import Clip
from ..modeling_audiolm import AudioLMForConditionalGeneration
from ..processing_audiolm import AudioLMFeatureExtractor
from ..runtime import UserError
from .arguments import AudioLMTrainingArguments, DataArguments, ModelArguments
from .dataset import TrainingData, batch_size
from .resume import check_features
from .safeguards import PROGRAM, Safeguards

Features = FeatureCache | dict[str, torch.Tensor]
logger = logging.getLogger("audiolm.train")


def encode_audio(
    model: AudioLMForConditionalGeneration,
    dataset: TrainingData,
    safeguards: Safeguards,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: AudioLMTrainingArguments,
) -> Features:
    """Encodes clips before the first step: with a cache all clips, else those of evaluation.

    It also sets the mapper's feature statistics. A mapper that was trained before keeps its own.
    """
    extractor = safeguards.decoder.extractor
    on_bad = safeguards.bad_audio.report if safeguards.decoder.skip_bad_clips else None
    cache = data_args.feature_cache
    model.to(args.device)
    _log_audio_cost(model, extractor, dataset, data_args, args)
    try:
        features = precompute_features(model, extractor, dataset, cache, on_bad)
        if not (model_args.model_name_or_path or model_args.learn_code_embeddings):
            # A random sample of clips that is the same for every encoder.
            generator = torch.Generator().manual_seed(args.seed)
            order = torch.randperm(len(dataset.clips), generator=generator)
            sample = order[: data_args.num_stats_clips].tolist()
            clips = [dataset.clips[index] for index in sample]
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
    extractor: AudioLMFeatureExtractor,
    dataset: TrainingData,
    data_args: DataArguments,
    args: AudioLMTrainingArguments,
) -> None:
    seconds = data_args.max_audio_seconds
    frames = extractor.num_frames(int(seconds * extractor.sampling_rate))
    tokens = model.config.audio_tokens or frames
    logger.info("%s: %d audio tokens for %g s", model.config.encoder_type, tokens, seconds)
    if data_args.feature_cache or data_args.streaming:
        return
    examples = args.num_train_epochs * dataset.num_rows
    if args.max_steps > 0:
        examples = args.max_steps * batch_size(args)
    clips_per_example = sum(map(len, dataset.rows["audio"])) / dataset.num_rows
    times = examples * clips_per_example / dataset.num_clips
    if times > 2:
        logger.info(
            "each clip is encoded %.0f times; with --feature_cache DIR it is encoded once", times
        )


def precompute_features(
    model: AudioLMForConditionalGeneration,
    extractor: AudioLMFeatureExtractor,
    dataset: TrainingData,
    cache_folder: str | None,
    on_bad: Callable[[str], None] | None,
) -> Features:
    """Returns features by clip, or by the name that the rows have for it.

    A clip that cannot be decoded is reported to `on_bad`, or is an error without it.
    """
    # Also for a process that finds all clips in the cache: it may encode later.
    model.encoder.move_conv_sizes_to_cpu()
    if cache_folder:
        cache = FeatureCache(cache_folder, model.encoder, extractor)
        cache.fill_together(dataset.clips + list(dataset.eval_clips), on_bad)
        return cache
    clips = list(dataset.eval_clips.values())
    encoded = encode_clips(model.encoder, extractor, clips, desc="evaluation clips", on_bad=on_bad)
    features = dict(encoded)
    return {name: features[clip] for name, clip in dataset.eval_clips.items() if clip in features}


def standardise_features(
    model: AudioLMForConditionalGeneration,
    extractor: AudioLMFeatureExtractor,
    clips: list[Clip],
    features: Features,
    on_bad: Callable[[str], None] | None,
) -> None:
    """Sets the mapper's mean and deviation per channel from the features of `clips`."""
    if isinstance(features, FeatureCache):
        cache: Any = features
        pairs: Iterable = ((clip, cache[clip]) for clip in clips if clip in cache)
    else:
        pairs = encode_clips(
            model.encoder, extractor, clips, desc="feature statistics", on_bad=on_bad
        )
    encoded = (clip_features for _, clip_features in pairs)
    mean, deviation = feature_statistics(model.encoder, encoded)
    model.mapper.feature_mean.copy_(mean)
    model.mapper.feature_std.copy_(deviation)
