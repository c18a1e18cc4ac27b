"""Encodes clips with a frozen encoder: features, their statistics and their batches."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch
from tqdm import tqdm
from transformers import BatchFeature

from ...encoders_audiolm import AudioEncoder
from ...processing_audiolm import AudioLMFeatureExtractor
from ..audio_files import Clip
from ..decoder import BadClip, ClipDecoder

CPU_BATCH_SIZE = 8
GPU_BATCH_SIZE = 32


@torch.no_grad()
def encode_clips(
    encoder: AudioEncoder,
    extractor: AudioLMFeatureExtractor,
    clips: list[Clip],
    desc: str = "",
    alter: Callable[[Clip, torch.Tensor], torch.Tensor] | None = None,
    on_bad: Callable[[str], None] | None = None,
) -> Iterator[tuple[Clip, torch.Tensor]]:
    """Yields each clip with its codes or features, on the CPU and without padding.

    Codes are int16 of shape `(codebooks, frames)`, features float32 of shape `(frames, dim)`.

    Args:
        encoder: The encoder.
        extractor: Decodes clips at the encoder's rate.
        clips: Paths, rows of shards, or contents of files.
        desc: Name of the progress bar. Default: no bar.
        alter: Replaces the samples of a clip, both of shape `(samples,)`, before encoding.
        on_bad: Gets what is wrong with a clip that cannot be decoded. The clip is left out.

    Raises:
        BadClip: If a clip cannot be decoded, without `on_bad`.
    """
    decoder = ClipDecoder(extractor)

    def decode(batch: list[Clip]) -> tuple[list[Clip], BatchFeature | None]:
        decoded, samples = [], []
        for clip in batch:
            try:
                audio = decoder(clip)
            except BadClip as error:
                if on_bad is None:
                    raise
                on_bad(str(error))
                continue
            decoded.append(clip)
            samples.append(audio if alter is None else alter(clip, audio))
        return decoded, extractor(samples) if samples else None

    size = batch_size(encoder.device)
    batches = [clips[start : start + size] for start in range(0, len(clips), size)]
    # A GPU encodes faster than one thread decodes.
    threads = 1 if encoder.device.type == "cpu" else min(8, os.cpu_count() or 1)
    with tqdm(total=len(clips), desc=desc, unit="clip", disable=None if desc else True) as bar:
        for batch, (decoded, inputs) in zip(batches, _map_ahead(decode, batches, threads)):
            if inputs is not None:
                values, lengths = (
                    inputs["input_values"],
                    inputs["input_values_mask"].sum(1).tolist(),
                )
                yield from zip(decoded, encode_batch(encoder, values, lengths))
            bar.update(len(batch))


def _map_ahead(function: Callable, items: list, threads: int) -> Iterator:
    """Yields the results in order. One call per thread is under way while a result is used."""
    upcoming = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        futures = deque(pool.submit(function, item) for item in islice(upcoming, threads))
        while futures:
            result = futures.popleft().result()
            futures.extend(pool.submit(function, item) for item in islice(upcoming, 1))
            yield result


def batch_size(device: torch.device) -> int:
    """Returns how many clips are encoded together."""
    return CPU_BATCH_SIZE if device.type == "cpu" else GPU_BATCH_SIZE


def encode_batch(
    encoder: AudioEncoder, values: torch.Tensor, lengths: list[int]
) -> Iterator[torch.Tensor]:
    """Yields codes or features of decoded clips as [`encode_clips`] does.

    Args:
        encoder: The encoder.
        values: Samples of the clips at the encoder's rate, padded, shape `(clips, samples)`.
        lengths: Samples of each clip.
    """
    encode = getattr(encoder, "codes", encoder.encode)
    encoded = encode(values.to(encoder.device), lengths).cpu()
    is_codes = not encoded.is_floating_point()
    if is_codes:
        encoded = encoded.to(torch.int16)
    for features, length in zip(encoded, lengths):
        num_frames = encoder.num_frames(length)
        # A clone, because a view would keep the whole batch in memory.
        yield (features[:, :num_frames] if is_codes else features[:num_frames]).clone()


@torch.no_grad()
def feature_statistics(
    encoder: AudioEncoder, clips: Iterable[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and deviation per channel of [`encode_clips`], each `(dim,)` in float64."""
    total: Any = 0.0
    square: Any = 0.0
    num_frames: int | torch.Tensor = 0
    for clip in clips:
        features = clip.to(encoder.device)
        if not features.is_floating_point():
            features = encoder.decode_codes(features[None])[0]  # ty: ignore[not-callable]
        features = features.double()
        total = total + features.sum(0)
        square = square + features.square().sum(0)
        num_frames = num_frames + _frames_per_channel(encoder, features)
    mean = total / num_frames
    return mean, (square / num_frames - mean.square()).clamp(min=0).sqrt()


def _frames_per_channel(encoder: AudioEncoder, features: torch.Tensor) -> int | torch.Tensor:
    """Counts frames. A frame of one encoder of a pair has zeros in the other's channels."""
    if len(encoder.dims) == 1:
        return len(features)
    first = int(features[:, : encoder.dims[0]].any(1).sum())
    counts = torch.tensor([first, len(features) - first])
    return torch.repeat_interleave(counts, torch.tensor(encoder.dims)).to(features.device)


def count_frames(clip: torch.Tensor) -> int:
    """Returns the number of frames of a clip of [`encode_clips`]."""
    return len(clip) if clip.is_floating_point() else clip.shape[-1]


def pad_features(clips: list[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """Returns clips of [`encode_clips`] as one zero-padded batch, and the frames of each clip."""
    is_codes = not clips[0].is_floating_point()
    # The frames come first, as in features.
    by_frame = [clip.T if is_codes else clip for clip in clips]
    padded = torch.nn.utils.rnn.pad_sequence(by_frame, batch_first=True)
    return (padded.transpose(1, 2) if is_codes else padded), [len(clip) for clip in by_frame]
