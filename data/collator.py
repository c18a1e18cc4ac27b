"""Turns examples into batches, in the data loader's workers.

Audio is decoded here, unless a clip's features were computed before.
"""

from collections.abc import Mapping
from itertools import chain

import torch

from ..processing_audiolm import AudioLMProcessor
from .decoder import BadClip, ClipDecoder, replace_bad_examples
from .features import FeatureCache, count_frames, pad_features


class ReasonAQACollator:
    """Makes model inputs from examples.

    Args:
        processor: Processor of the model.
        features: Encoded clips by path: a [`FeatureCache`], or a dict of [`encode_clips`]. A
            batch whose clips are all there decodes no audio. Clips that a cache lacks come decoded
            in `new_clips`, for [`encode_new_clips`].
        pad_to_multiple_of: Pads the longest sequence to a multiple of this. Outputs stay the same.
        decoder: Decodes clips that are not encoded. If it skips bad clips, other examples of the
            batch replace theirs, and the batch lists the faults in `bad_audio`.
    """

    def __init__(
        self,
        processor: AudioLMProcessor,
        features: Mapping[str, torch.Tensor] | None = None,
        pad_to_multiple_of: int = 1,
        decoder: ClipDecoder | None = None,
    ):
        self.processor = processor
        self.features = features
        self.pad_to_multiple_of = pad_to_multiple_of
        self.decoder = decoder or ClipDecoder(processor.feature_extractor)

    def __call__(self, examples: list[dict]) -> dict:
        """Returns a batch.

        Raises:
            BadClip: If a clip cannot be decoded and the decoder does not skip bad clips.
        """
        examples, faults = self._read_audio([_with_sources(example) for example in examples])
        audio, num_frames = self._audio_inputs(
            list(chain.from_iterable(example["audio"] for example in examples)),
            list(chain.from_iterable(example["clips"] for example in examples)),
        )
        if faults:
            audio["bad_audio"] = faults
        # The text comes first because the Trainer takes the batch size from the first entry.
        return {**self._text_inputs(examples, num_frames), **audio}

    def _read_audio(self, examples: list[dict]) -> tuple[list[dict], list[str]]:
        """Returns the examples with their `clips`, bad ones replaced, and the faults.

        A clip is its features, of two dimensions, or its samples, of one.
        """
        features = self._usable_features(examples)
        read: list[dict] = []
        faults: dict[int, str] = {}
        for i, example in enumerate(examples):
            # Only clips that are given as bytes have names beside them.
            names = example.get("names") or [None] * len(example["audio"])
            clips = []
            try:
                for clip, name in zip(example["audio"], names):
                    is_encoded = bool(features) and clip in features
                    clips.append(features[clip] if is_encoded else self.decoder(clip, name))
            except BadClip as error:
                if not self.decoder.skip_bad_clips:
                    raise
                faults[i] = str(error)
            read.append({**example, "clips": clips})
        if faults:
            read = replace_bad_examples(read, faults)
        return read, list(faults.values())

    def _usable_features(self, examples: list[dict]) -> Mapping[str, torch.Tensor]:
        features = self.features
        if features is None or isinstance(features, FeatureCache):
            return features or {}
        clips = chain.from_iterable(example["audio"] for example in examples)
        return features if all(clip in features for clip in clips) else {}

    def _audio_inputs(self, paths: list[str], clips: list[torch.Tensor]) -> tuple[dict, list[int]]:
        """Returns the audio inputs of a batch, and the frames of each clip."""
        if all(clip.ndim == 2 for clip in clips):
            padded, num_frames = pad_features(clips)
            return {"input_features": padded, "num_frames": num_frames}, num_frames
        if not isinstance(self.features, FeatureCache):
            return self._sample_inputs(clips)
        encoded = {path: clip for path, clip in zip(paths, clips) if clip.ndim == 2}
        samples = {path: clip for path, clip in zip(paths, clips) if clip.ndim == 1}
        inputs, num_new_frames = self._sample_inputs(list(samples.values()))
        num_frames = dict(zip(samples, num_new_frames))
        num_frames |= {path: count_frames(clip) for path, clip in encoded.items()}
        inputs = {
            "clips": paths,
            "encoded": encoded,
            "new_clips": {"paths": list(samples), **inputs},
        }
        return inputs, [num_frames[path] for path in paths]

    def _sample_inputs(self, samples: list[torch.Tensor]) -> tuple[dict, list[int]]:
        extractor = self.processor.feature_extractor
        inputs = dict(extractor(samples))
        lengths = inputs["input_values_mask"].sum(1).tolist()
        # Lengths on the CPU spare the model a GPU sync.
        del inputs["input_values_mask"]
        inputs["num_samples"] = lengths
        return inputs, [extractor.num_frames(length) for length in lengths]

    def _text_inputs(self, examples: list[dict], num_frames: list[int]) -> dict:
        remaining = iter(num_frames)
        inputs = self.processor.encode_texts(
            [example["input"] for example in examples],
            [[next(remaining) for _ in example["audio"]] for example in examples],
            [example["answer"] for example in examples],
            padding_side="right",
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        is_audio = inputs["input_ids"].flatten() == self.processor.audio_token_id
        inputs["label_index"] = (inputs["labels"].flatten() != -100).nonzero()[:, 0]
        inputs["audio_index"] = is_audio.nonzero()[:, 0]
        # With padding on the right, a causal model needs no mask.
        del inputs["attention_mask"]
        return inputs


def _with_sources(example: dict) -> dict:
    """Returns an example with paths or bytes for clips of the type `Audio(decode=False)`."""
    clips = example["audio"]
    sources = [
        clip["bytes"] or clip["path"] if isinstance(clip, dict) and "array" not in clip else clip
        for clip in clips
    ]
    return {**example, "audio": sources}


def encode_new_clips(batch: dict, cache: FeatureCache) -> dict:
    """Returns a batch with the features of all clips, and keeps new ones in the cache."""
    new = batch.pop("new_clips")
    values = new["input_values"]
    features = {**batch.pop("encoded")}
    features |= cache.encode_samples(new["paths"], values, new["num_samples"])
    clips = [features[path].to(values.device) for path in batch.pop("clips")]
    padded, num_frames = pad_features(clips)
    return {**batch, "input_features": padded, "num_frames": num_frames}
