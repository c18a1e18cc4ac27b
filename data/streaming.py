"""Reads training rows from shards during training, here or from the Hub, without a local copy.

The order is computed from row numbers before anything is read. So processes and workers share
the rows without duplicates or gaps, and a resumed run reads nothing that it has used before.
"""

import json
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, pairwise, product
from operator import attrgetter
from typing import NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset

from ..runtime import UserError
from .shards import MANIFEST, TEXT_COLUMNS, check_row_count

# Columns by which parts of a corpus are selected.
SELECTION_COLUMNS = ["subtype", "question_type", "filepath1", "filepath2"]


class RowGroup(NamedTuple):
    """A row group of a shard. `first_row` is the number of its first row in the split."""

    shard: str
    index: int
    first_row: int
    num_rows: int


class Shards:
    """Rows of one split of an "embedded" data set, by number.

    Args:
        where: Folder, or `hf://datasets/NAME`.
        split: Name of the split.

    Raises:
        UserError: If there is no such data set, or its rows do not hold their audio.
    """

    def __init__(self, where: str, split: str):
        self.where = where
        self.root = fsspec.core.url_to_fs(where)[1]
        self.groups: list[RowGroup] = []
        self.num_rows = 0
        if not self.files.exists(f"{self.root}/{MANIFEST}") or not self.has_split(split):
            raise UserError(f"{where}: no converted data set with a split {split!r}")
        for path in self._paths(split):
            self._add_groups(path)
        with self.files.open(f"{self.root}/{MANIFEST}") as file:
            check_row_count(where, split, self.num_rows, json.load(file))

    def _paths(self, split: str) -> list[str]:
        return sorted(self.files.glob(f"{self.root}/rows/{split}-*.parquet"))

    def _add_groups(self, path: str) -> None:
        try:
            with self.files.open(path) as raw:
                metadata = pq.read_metadata(raw)
        except pa.ArrowInvalid as error:
            raise UserError(
                f"{path}: not a readable shard ({error}). Convert or download it again."
            ) from error
        if "audio" not in metadata.schema.to_arrow_schema().names:
            raise UserError(
                f"{self.where}: its rows do not hold their audio. "
                "Convert with --audio embedded to stream it."
            )
        for index in range(metadata.num_row_groups):
            num_rows = metadata.row_group(index).num_rows
            self.groups.append(RowGroup(path, index, self.num_rows, num_rows))
            self.num_rows += num_rows

    @property
    def files(self) -> fsspec.AbstractFileSystem:
        """Returns the file system of this process. A fork must not use its parent's connections."""
        return fsspec.core.url_to_fs(self.where)[0]

    def has_split(self, split: str) -> bool:
        """Returns whether the data set has a split."""
        return bool(self._paths(split))

    def selection_columns(self) -> Dataset:
        """Returns the columns by which rows are selected, and each row's number in `row`."""
        paths = list(dict.fromkeys(group.shard for group in self.groups))
        table = pq.read_table(paths, columns=SELECTION_COLUMNS, filesystem=self.files)
        table = table.replace_schema_metadata(None)
        return Dataset(table.append_column("row", pa.array(range(len(table)))))

    def group_of(self, number: int) -> RowGroup:
        """Returns the row group of a row."""
        return self.groups[bisect_right(self.groups, number, key=attrgetter("first_row")) - 1]

    def read(self, group: RowGroup) -> list[dict]:
        """Returns the rows of a row group. Rows about the same clip share its bytes in `audio`."""
        with self.files.open(group.shard) as raw:
            # Arrow's own threads do not exist in a forked worker.
            table = pq.ParquetFile(raw).read_row_group(
                group.index, columns=[*TEXT_COLUMNS, "audio"], use_threads=False
            )
        contents: dict[str, bytes] = {}
        rows = []
        # Small batches, because each row of a batch holds a copy of its clips.
        for batch in table.to_batches(max_chunksize=8):
            for row in batch.to_pylist():
                clips = row["audio"]
                row["names"] = [clip["path"] for clip in clips]
                row["audio"] = [contents.setdefault(clip["path"], clip["bytes"]) for clip in clips]
                row["row"] = group.first_row + len(rows)
                rows.append(row)
        return rows


def read_rows_in_order(shards: Shards, numbers: Iterable[int]) -> Iterator[dict]:
    """Yields the rows with these numbers, in the order of the data set."""
    selected = set(numbers)
    for group in shards.groups:
        if not selected.isdisjoint(range(group.first_row, group.first_row + group.num_rows)):
            yield from (row for row in shards.read(group) if row["row"] in selected)


def shuffle_numbers(groups: list[list[int]], buffer: int, seed: str) -> Iterator[int]:
    """Yields row numbers, the groups shuffled and each number drawn among the next `buffer`."""
    rng = random.Random(seed)
    buffered: list[int] = []
    for group in rng.sample(groups, len(groups)):
        for number in group:
            buffered.append(number)
            if len(buffered) == buffer:
                i = rng.randrange(buffer)
                buffered[i], buffered[-1] = buffered[-1], buffered[i]
                yield buffered.pop()
    rng.shuffle(buffered)
    yield from buffered


def repeat_shuffled(
    shards: Shards, groups: list[list[int]], buffer: int, seed: str, num_done: int = 0
) -> Iterator[dict]:
    """Yields selected rows without end, in a new order for each pass.

    `groups` has the numbers of the selected rows by row group. An interrupted run has used
    `num_done` rows. The rest is as in [`shuffle_numbers`].
    """
    first_pass, num_skipped = divmod(num_done, sum(map(len, groups)))
    for pass_number in count(first_pass):
        order = list(shuffle_numbers(groups, buffer, f"{seed}|{pass_number}"))[num_skipped:]
        num_skipped = 0
        selected = set(order)
        rows: dict[int, dict] = {}
        for number in order:
            if number not in rows:
                group = shards.read(shards.group_of(number))
                rows.update((row["row"], row) for row in group if row["row"] in selected)
            yield rows.pop(number)


@dataclass(frozen=True)
class StreamReaders:
    """The data loaders that read a stream."""

    processes: int = 1
    workers: int = 0  # of each process, which reads itself if it has none
    batch_size: int = 1  # of a process
    batches_done: int = 0  # by each process, before an interruption


def stream_examples(
    shards: Shards,
    numbers: Iterable[int],
    buffer: int,
    seed: int,
    readers: StreamReaders | None = None,
    transform: Callable[[dict], dict] | None = None,
) -> IterableDataset:
    """Returns an endless data set of selected rows, shared by the readers of all processes.

    Row groups are assigned to readers once. Each reader repeats its own, in a new order for each
    pass, and draws the next row among the next `buffer`. accelerate and the data loader give
    each reader its share of the data set. `transform` is applied to each row.

    Raises:
        UserError: If there are fewer row groups than readers.
    """
    readers = readers or StreamReaders()
    selected = sorted(numbers)
    starts = [bisect_left(selected, group.first_row) for group in shards.groups]
    ranges = pairwise([*starts, len(selected)])
    groups = [selected[start:end] for start, end in ranges if start < end]
    per_process = max(1, readers.workers)
    num_readers = readers.processes * per_process
    if len(groups) < num_readers:
        raise UserError(
            f"{shards.where}: {num_readers} readers cannot share {len(groups)} row groups. "
            "Lower --dataloader_num_workers."
        )
    assigned = _assign_groups(groups, num_readers)
    shares = []
    for process, worker in product(range(readers.processes), range(per_process)):
        # A new data loader starts with its first worker, whose turn it may not be.
        turn = (worker + readers.batches_done) % per_process
        num_batches = len(range(turn, readers.batches_done, per_process))
        reader = process * per_process + turn
        num_done = num_batches * readers.batch_size
        shares.append((assigned[reader], buffer, f"{seed}|{reader}", num_done))
    options = {"shares": shares, "shards": shards, "transform": transform}
    return IterableDataset.from_generator(_read_shares, gen_kwargs=options)


def _assign_groups(groups: list[list[int]], num_readers: int) -> list[list[list[int]]]:
    """Returns the groups of each reader. The largest group goes first, to whoever has least."""
    assigned: list[list[list[int]]] = [[] for _ in range(num_readers)]
    sizes = [0] * num_readers
    for group in sorted(groups, key=len, reverse=True):
        reader = sizes.index(min(sizes))
        assigned[reader].append(group)
        sizes[reader] += len(group)
    return assigned


def _read_shares(
    shares: list[tuple], shards: Shards, transform: Callable[[dict], dict] | None
) -> Iterator[dict]:
    # `datasets` splits the list, so that a reader gets one share.
    for share in shares:
        for row in repeat_shuffled(shards, *share):
            yield transform(row) if transform else row
