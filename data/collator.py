"""Turns examples into batches, in the data loader's workers.

Audio is decoded here, unless the features of all clips of a batch were computed before.
"""

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch.utils.data import get_worker_info

from ..processing_audiolm import AudioLMProcessor
from .decoder import BadClip, ClipDecoder, replace_bad_examples
from .features import pad_features

MAX_PIPED_BYTES = 2**18


class ReasonAQACollator:
    """Makes model inputs from examples.

    Args:
        processor: Processor of the model.
        generate: Whether the inputs are for generation: without answers, padded on the left.
        features: Encoded clips by path: a [`FeatureCache`], or a dict of [`encode_clips`]. A
            batch whose clips are all there decodes no audio.
        pad_to_multiple_of: Pads the longest sequence to a multiple of this. Outputs stay the same.
        decoder: Decodes clips that are not encoded. If it skips bad clips, other examples of the
            batch replace theirs, and the batch lists the faults in `bad_audio`.
    """

    def __init__(
        self,
        processor: AudioLMProcessor,
        generate: bool = False,
        features: Mapping[str, torch.Tensor] | None = None,
        pad_to_multiple_of: int = 1,
        decoder: ClipDecoder | None = None,
    ):
        self.processor = processor
        self.generate = generate
        self.features = features
        self.pad_to_multiple_of = pad_to_multiple_of
        self.decoder = decoder or ClipDecoder(processor.feature_extractor)

    def __call__(self, examples: list[dict]) -> dict:
        """Returns a batch.

        Raises:
            BadClip: If a clip cannot be decoded and the decoder does not skip bad clips.
        """
        clips = list(chain.from_iterable(example["audio"] for example in examples))
        if self.features is not None and all(clip in self.features for clip in clips):
            audio, num_frames = self._encoded_inputs(clips)
        else:
            examples, samples, faults = self._decode(examples)
            audio, num_frames = self._sample_inputs(samples)
            if faults:
                audio["bad_audio"] = faults
        # The text comes first because the Trainer takes the batch size from the first entry.
        batch = {**self._text_inputs(examples, num_frames), **audio}
        if get_worker_info() is None:
            return batch
        return {name: _send_small_tensors_by_pipe(value) for name, value in batch.items()}

    def _decode(self, examples: list[dict]) -> tuple[list[dict], list[torch.Tensor], list[str]]:
        """Returns the examples, bad ones replaced, the samples of all clips, and the faults."""
        decoded: list[dict] = []
        faults: dict[int, str] = {}
        for i, example in enumerate(examples):
            # Only clips that are given as bytes have names beside them.
            names = example.get("names") or [None] * len(example["audio"])
            samples = []
            try:
                for clip, name in zip(example["audio"], names):
                    samples.append(self.decoder(clip, name))
            except BadClip as error:
                if not self.decoder.skip_bad_clips:
                    raise
                faults[i] = str(error)
            decoded.append({**example, "samples": samples})
        if faults:
            decoded = replace_bad_examples(decoded, faults)
        samples = chain.from_iterable(example["samples"] for example in decoded)
        return decoded, list(samples), list(faults.values())

    def _encoded_inputs(self, clips: list[str]) -> tuple[dict, list[int]]:
        cached: Any = self.features
        features, num_frames = pad_features([cached[clip] for clip in clips])
        inputs: dict = {"input_features": features}
        if self.generate:
            positions = torch.arange(max(num_frames))
            inputs["input_features_mask"] = positions[None] < torch.tensor(num_frames)[:, None]
        else:
            inputs["num_frames"] = num_frames
        return inputs, num_frames

    def _sample_inputs(self, samples: list[torch.Tensor]) -> tuple[dict, list[int]]:
        extractor = self.processor.feature_extractor
        inputs = dict(extractor(samples))
        lengths = inputs["input_values_mask"].sum(1).tolist()
        if not self.generate:
            # Lengths on the CPU spare the model a GPU sync.
            del inputs["input_values_mask"]
            inputs["num_samples"] = lengths
        return inputs, [extractor.num_frames(length) for length in lengths]

    def _text_inputs(self, examples: list[dict], num_frames: list[int]) -> dict:
        remaining = iter(num_frames)
        inputs = self.processor.encode_texts(
            [example["input"] for example in examples],
            [[next(remaining) for _ in example["audio"]] for example in examples],
            None if self.generate else [example["answer"] for example in examples],
            padding_side="left" if self.generate else "right",
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        if not self.generate:
            is_audio = inputs["input_ids"].flatten() == self.processor.audio_token_id
            inputs["label_index"] = (inputs["labels"].flatten() != -100).nonzero()[:, 0]
            inputs["audio_index"] = is_audio.nonzero()[:, 0]
            # With padding on the right, a causal model needs no mask.
            del inputs["attention_mask"]
        return inputs


def _send_small_tensors_by_pipe(value: object) -> object:
    """Wraps a small tensor, so that a worker sends its content through the pipe.

    torch sends tensors through shared memory and opens a connection for each. With two workers
    the pipe made 5,129 instead of 4,150 examples per second (docs/performance.md).
    """
    # numpy has no bfloat16.
    is_small = torch.is_tensor(value) and value.nbytes <= MAX_PIPED_BYTES
    return _PipedTensor(value) if is_small and value.dtype != torch.bfloat16 else value


class _PipedTensor:
    """Arrives as a plain tensor in the process that unpickles it."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def __reduce__(self) -> tuple[Callable, tuple]:
        return torch.from_numpy, (self.tensor.numpy(),)
