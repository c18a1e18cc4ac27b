"""Prepares the encoder's features: the cache, and the mapper's feature statistics."""

import logging
import signal
import sys
from collections.abc import Callable, Iterable

import torch
from safetensors import SafetensorError

from ..data import FeatureCache, encode_clips, feature_statistics
from ..data.audio_files import Clip
from ..modeling_audiolm import AudioLMForConditionalGeneration
from ..processing_audiolm import AudioLMFeatureExtractor
from ..runtime import UserError, use_all_of_the_cpu
from .arguments import AudioLMTrainingArguments, DataArguments, ModelArguments
from .dataset import TrainingData
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
    """Opens the feature cache, and encodes a sample of clips for the mapper's statistics.

    A mapper that was trained before keeps its own. Without a cache, the clips of evaluation are
    encoded here.
    """
    extractor = safeguards.decoder.extractor
    on_bad = safeguards.bad_audio.report if safeguards.decoder.skip_bad_clips else None
    model.to(args.device)
    _log_audio_tokens(model, extractor, data_args.max_audio_seconds)
    try:
        features = open_features(model, extractor, dataset, data_args.feature_cache, on_bad)
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
        print(f"\n{PROGRAM}: interrupted before the first step", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    if args.resume_from_checkpoint and model_args.lora_r:
        check_features(model, args.resume_from_checkpoint)
    return features


def _log_audio_tokens(
    model: AudioLMForConditionalGeneration, extractor: AudioLMFeatureExtractor, seconds: float
) -> None:
    frames = extractor.num_frames(int(seconds * extractor.sampling_rate))
    tokens = model.config.audio_tokens or frames
    logger.info("%s: %d audio tokens for %g s", model.config.encoder_type, tokens, seconds)


def open_features(
    model: AudioLMForConditionalGeneration,
    extractor: AudioLMFeatureExtractor,
    dataset: TrainingData,
    cache_folder: str | None,
    on_bad: Callable[[str], None] | None,
) -> Features:
    """Opens the cache. Without one, encodes the clips of evaluation by the name in their rows.

    A clip that cannot be decoded is reported to `on_bad`, or is an error without it.
    """
    # Also for a process that finds all clips in the cache: it may encode later.
    model.encoder.move_conv_sizes_to_cpu()
    if cache_folder:
        cache = FeatureCache(cache_folder, model.encoder, extractor)
        paths = list({*dataset.clips, *dataset.eval_clips})
        logger.info(cache.describe(paths))
        if not all(path in cache for path in paths):
            use_all_of_the_cpu(encodes=True)
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
    desc = "feature statistics"
    if isinstance(features, FeatureCache):
        encoded: Iterable = features.encode_together(clips, desc, on_bad)
    else:
        pairs = encode_clips(model.encoder, extractor, clips, desc=desc, on_bad=on_bad)
        encoded = (clip_features for _, clip_features in pairs)
    mean, deviation = feature_statistics(model.encoder, encoded)
    model.mapper.feature_mean.copy_(mean)
    model.mapper.feature_std.copy_(deviation)
