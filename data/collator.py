"""Rows to batches, in the data loader's workers: audio is decoded here, on the fly, or taken from what was encoded before."""

from collections.abc import Mapping

import torch
from torch.utils.data import get_worker_info

from .decoder import BadClip, ClipDecoder, replaced
from .features import pad_features

SMALL = 2**18  # bytes


class ReasonAQACollator:
    """Makes model inputs with labels of rows and their clips; `generate=True` leaves the answers out.

    Args:
        processor: the model's [`AudioLMProcessor`].
        features: clips that are encoded already, by path ([`FeatureCache`], or a dict of [`encode_clips`]); a batch of
            which every clip is there decodes no audio.
        pad_to_multiple_of: tokens of the longest row, filled up to a multiple of this; of no matter for what comes out.
        decoder: of clips that are not encoded. If it skips bad ones, a batch tells of them in `bad_audio`, and the rows that
            take their place are of the same batch.
    """

    def __init__(
        self,
        processor,
        generate: bool = False,
        features: Mapping[str, torch.Tensor] | None = None,
        pad_to_multiple_of: int = 1,
        decoder: ClipDecoder | None = None,
    ):
        self.processor, self.generate, self.features = processor, generate, features
        self.pad_to_multiple_of, self.decoder = (
            pad_to_multiple_of,
            decoder or ClipDecoder(processor.feature_extractor),
        )

    def __call__(self, rows: list[dict]) -> dict:
        extractor = self.processor.feature_extractor
        paths = [path for row in rows for path in row["audio"]]
        batch = {}
        if self.features is not None and all(path in self.features for path in paths):
            batch["input_features"], frames = pad_features([self.features[path] for path in paths])
            if self.generate:
                batch["input_features_mask"] = (
                    torch.arange(max(frames))[None] < torch.tensor(frames)[:, None]
                )
            else:
                batch["num_frames"] = frames
        else:
            rows, samples, bad = self.decoded(rows)
            if bad:
                batch["bad_audio"] = bad
            batch.update(extractor(samples))
            lengths = batch["input_values_mask"].sum(1).tolist()
            frames = [extractor.num_frames(length) for length in lengths]
            if not self.generate:  # known to the host: the model need not ask the GPU
                del batch["input_values_mask"]
                batch["num_samples"] = lengths
        counts = iter(frames)
        text = self.processor.text_inputs(
            [row["input"] for row in rows],
            [[next(counts) for _ in row["audio"]] for row in rows],
            None if self.generate else [row["answer"] for row in rows],
            padding_side="left" if self.generate else "right",
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        if not self.generate:
            text["label_index"] = (text["labels"].flatten() != -100).nonzero()[:, 0]
            text["audio_index"] = (
                text["input_ids"].flatten() == self.processor.audio_token_id
            ).nonzero()[:, 0]
            del text["attention_mask"]  # padding is on the right, where no earlier token looks
        made = {**text, **batch}  # the Trainer counts rows on the first entry
        return (
            made
            if get_worker_info() is None
            else {name: _through_pipe(value) for name, value in made.items()}
        )

    def decoded(self, rows: list[dict]) -> tuple[list[dict], list[torch.Tensor], list[str]]:
        """The rows, of which some may be replaced, the samples of all their clips, and what was wrong with bad ones.

        Raises:
            BadClip: if one is, and none is skipped, or no row is left.
        """
        samples, bad = [], {}
        for i, row in enumerate(rows):
            names = row.get("names") or [None] * len(
                row["audio"]
            )  # of clips that are given as bytes
            try:
                samples.append(
                    [self.decoder(clip, name) for clip, name in zip(row["audio"], names)]
                )
            except BadClip as error:
                if not self.decoder.skip:
                    raise
                bad[i] = str(error)
                samples.append([])
        if bad:
            paired = replaced([{**row, "samples": of} for row, of in zip(rows, samples)], bad)
            rows, samples = paired, [row["samples"] for row in paired]
        return rows, [clip for row in samples for clip in row], list(bad.values())


def _through_pipe(value):
    """A small tensor of a loader's process, to be sent through its pipe: shared memory takes a connection for each."""
    small = (
        torch.is_tensor(value) and value.nbytes <= SMALL and value.dtype != torch.bfloat16
    )  # which numpy does not know
    return _Sent(value) if small else value


class _Sent:
    """What arrives as a tensor in the process that reads it."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def __reduce__(self):
        return torch.from_numpy, (self.tensor.numpy(),)
