"""Prepares the encoder's features: the cache, and the mapper's feature statistics."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..data.features import FeatureCache, encode_clips, feature_statistics
from ..modeling_audiolm import AudioLMForConditionalGeneration
from ..processing_audiolm import AudioLMFeatureExtractor
from ..runtime import use_all_of_the_cpu
from .dataset import TrainingData

Features = FeatureCache | dict[str, torch.Tensor]
OnBad = Callable[[str], None] | None
logger = logging.getLogger("audiolm.train")


def encode_audio(
    model: AudioLMForConditionalGeneration,
    extractor: AudioLMFeatureExtractor,
    dataset: TrainingData,
    cache_folder: str | None,
    on_bad: OnBad,
) -> Features:
    """Opens the feature cache, and encodes a sample of clips for the mapper's statistics.

    Without a cache, the clips of evaluation are encoded, by the name in their rows. A clip that
    cannot be decoded is reported to `on_bad`, or is an error without it.
    """
    seconds = extractor.max_audio_seconds
    frames = extractor.num_frames(int(seconds * extractor.sampling_rate))
    tokens = model.config.audio_tokens or frames
    logger.info("%s: %d audio tokens for %g s", model.config.encoder_type, tokens, seconds)
    # Also for a process that finds all clips in the cache: it may encode later.
    model.encoder.move_conv_sizes_to_cpu()
    sample = dataset.sampled_clips
    if cache_folder:
        features: Any = FeatureCache(cache_folder, model.encoder, extractor)
        paths = list({*dataset.clips, *dataset.eval_clips})
        logger.info(features.describe(paths))
        if not all(path in features for path in paths):
            use_all_of_the_cpu(encodes=True)
        encoded = features.encode_together(sample or [], "feature statistics", on_bad)
    else:
        encode = partial(encode_clips, model.encoder, extractor, on_bad=on_bad)
        by_clip = dict(encode(list(dataset.eval_clips.values()), desc="evaluation clips"))
        features = {
            name: by_clip[clip] for name, clip in dataset.eval_clips.items() if clip in by_clip
        }
        encoded = (value for _, value in encode(sample or [], desc="feature statistics"))
    if sample is not None:
        mean, deviation = feature_statistics(model.encoder, encoded)
        model.mapper.feature_mean.copy_(mean)
        model.mapper.feature_std.copy_(deviation)
    return features
