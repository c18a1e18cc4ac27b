"""Orders the examples of an epoch so that each batch holds examples of similar length."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch.utils.data import Sampler

# Lengths are estimated alike for all encoders, so that every encoder sees the same batches.
TOKENS_PER_SECOND = 10
TOKENS_PER_CHARACTER = 0.25
MAX_BATCHES_PER_WINDOW = 64
MIN_WINDOWS_PER_EPOCH = 8


def estimate_lengths(
    examples: Iterable[tuple[Sequence[str], str, str]],
    seconds: Mapping[str, float],
    max_seconds: float,
) -> list[float]:
    """Estimates the tokens of each example from the audio that is used and the text.

    Args:
        examples: Clips, question and answer of each.
        seconds: Duration of each clip.
        max_seconds: Seconds that the model uses of a clip.
    """
    lengths = []
    for clips, question, answer in examples:
        used_seconds = sum(min(seconds[clip], max_seconds) for clip in clips)
        characters = len(question) + len(answer)
        lengths.append(TOKENS_PER_SECOND * used_seconds + TOKENS_PER_CHARACTER * characters)
    return lengths


class LengthGroupedSampler(Sampler[int]):
    """Yields example indices so that each batch holds examples of similar length.

    The order depends on the seed and the epoch alone. A resumed run, another encoder, more
    processes or a smaller per-device batch size see the same examples in each optimizer step.
    Within a batch the shortest example comes first.

    Args:
        lengths: Estimated tokens per example, from `estimate_lengths`.
        batch_size: Examples per optimizer step, over all processes.
        seed: Seed of the order.
    """

    def __init__(self, lengths: list[float], batch_size: int, seed: int):
        self.lengths = torch.tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(self.epoch_order(self.epoch).tolist())

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch to iterate over, counted from 0. The Trainer calls it."""
        self.epoch = epoch

    def epoch_order(self, epoch: int) -> torch.Tensor:
        """Returns the example indices of an epoch, shape `(examples,)`.

        An incomplete batch comes last.
        """
        # A hash gives each pair of seed and epoch a generator of its own. The seed has 7 bytes
        # because `manual_seed` takes 64-bit signed numbers.
        digest = hashlib.sha256(f"{self.seed} {epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        shuffled = torch.randperm(len(self), generator=generator)
        num_batches = len(self) // self.batch_size
        complete, incomplete = shuffled.tensor_split([num_batches * self.batch_size])

        # Sorting the whole epoch at once would put the same examples into one batch every time.
        batches_per_window = max(
            1, min(MAX_BATCHES_PER_WINDOW, num_batches // MIN_WINDOWS_PER_EPOCH)
        )
        windows = complete.split(batches_per_window * self.batch_size)
        batches = torch.cat([self._sort_by_length(window) for window in windows])

        batch_order = torch.randperm(num_batches, generator=generator)
        batches = batches.view(num_batches, self.batch_size)[batch_order]
        return torch.cat([batches.flatten(), self._sort_by_length(incomplete)])

    def batch_indices(self, step: int) -> list[int]:
        """Returns the example indices of an optimizer step, counted from 1 over all epochs."""
        batches_per_epoch = -(-len(self) // self.batch_size)
        epoch, batch = divmod(step - 1, batches_per_epoch)
        start = batch * self.batch_size
        return self.epoch_order(epoch)[start : start + self.batch_size].tolist()

    def digest(self) -> str:
        """Returns the SHA-256 of the first epoch's order. Samplers with equal digests are equal."""
        order = self.epoch_order(0).numpy().astype("<i8")
        return hashlib.sha256(order.tobytes()).hexdigest()

    def _sort_by_length(self, indices: torch.Tensor) -> torch.Tensor:
        return indices[self.lengths[indices].argsort(stable=True)]
