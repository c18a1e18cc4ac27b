"""The order of rows in training: batches of rows of about one length, the same for every arm."""

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

# what a row's length is measured by, whatever an arm makes of a second of audio
TOKENS_PER_SECOND, TOKENS_PER_CHARACTER = 10, 0.25
STEPS_PER_DRAW = 64  # rows are drawn for so many steps at once, and sorted among these
DRAWS = 8  # at least, in an epoch: sorted all at once, the same rows would always meet


def row_lengths(rows, seconds: dict[str, float], max_seconds: float) -> list[float]:
    """About how many tokens each row has: by the seconds that are used of its clips, and its text's characters.

    Args:
        rows: a `Dataset`, or another mapping of columns. seconds: of each clip.
    """
    return [
        TOKENS_PER_SECOND * sum(min(seconds[clip], max_seconds) for clip in clips)
        + TOKENS_PER_CHARACTER * (len(question) + len(answer))
        for clips, question, answer in zip(rows["audio"], rows["input"], rows["answer"])
    ]


class LengthBucketSampler(Sampler[int]):
    """Numbers of all rows in an order in which each `rows_per_step` that follow one another are of about one length.

    Drawn anew for each epoch, by `seed` and its number alone: a run that is resumed, another arm, more processes or smaller
    batches find the same rows in each step. Within a step they come by length, shortest first.
    """

    def __init__(self, lengths: list[float], rows_per_step: int, seed: int):
        self.lengths, self.rows_per_step, self.seed, self.epoch = (
            torch.tensor(lengths),
            rows_per_step,
            seed,
            0,
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """As the Trainer calls it before each epoch, counted from 0."""
        self.epoch = epoch

    def order(self, epoch: int) -> torch.Tensor:
        """Numbers of the rows in an epoch, (rows,); of steps that are not full, the last one."""
        name = hashlib.sha256(f"{self.seed} {epoch}".encode()).digest()
        draw = torch.Generator().manual_seed(int.from_bytes(name[:7], "big"))
        drawn, full = torch.randperm(len(self), generator=draw), len(self) // self.rows_per_step
        steps, rest = drawn[: full * self.rows_per_step], drawn[full * self.rows_per_step :]
        at_once = self.rows_per_step * max(1, min(STEPS_PER_DRAW, full // DRAWS))
        by_length = [
            part[self.lengths[part].argsort(stable=True)] for part in (*steps.split(at_once), rest)
        ]
        steps = torch.cat(by_length[:-1]).view(full, self.rows_per_step)
        return torch.cat([steps[torch.randperm(full, generator=draw)].flatten(), by_length[-1]])

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self.epoch).tolist())

    def rows_of(self, step: int) -> list[int]:
        """Numbers of the rows of a training step, counted from 1 over all epochs."""
        epoch, step = divmod(step - 1, -(-len(self) // self.rows_per_step))
        return self.order(epoch)[step * self.rows_per_step :][: self.rows_per_step].tolist()

    def digest(self) -> str:
        """SHA-256 of the first epoch's order: equal where all batches are."""
        return hashlib.sha256(self.order(0).numpy().astype("<i8").tobytes()).hexdigest()
