"""Training rows read from shards while training goes on, here or from the Hub, without the data set on the disk.

The order is drawn over numbers of rows, not over rows that were read: it is known beforehand, so that processes and workers
share the rows with none twice or missing, and a resumed run goes on at the right row without reading what came before.
"""

import json
import random
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from itertools import count, pairwise

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset

from .shards import MANIFEST, TEXT

LIGHT = [
    "subtype",
    "question_type",
    "filepath1",
    "filepath2",
]  # what parts of the corpus are chosen by


class Shards:
    """Rows of one split of an "embedded" conversion, by number, in a folder or `hf://datasets/NAME`.

    Raises:
        ValueError: if there is none, or its rows do not hold their audio.
    """

    def __init__(self, where: str, split: str):
        self.where, self.split, self.root = where, split, fsspec.core.url_to_fs(where)[1]
        shards = sorted(self.files.glob(f"{self.root}/rows/{split}-*.parquet"))
        if not self.files.exists(f"{self.root}/{MANIFEST}") or not shards:
            raise ValueError(f"{where}: no converted data set with a split {split!r} is there")
        self.groups: list[
            tuple[str, int, int, int]
        ] = []  # shard, row group, number of its first row, its rows
        total = 0
        for shard in shards:
            with self.files.open(shard) as raw:
                try:
                    file = pq.ParquetFile(raw)
                except pa.ArrowInvalid as error:
                    raise ValueError(
                        f"{shard}: not a readable shard ({error}); convert or download it again"
                    ) from error
                if "audio" not in file.schema_arrow.names:
                    raise ValueError(
                        f"{where}: its rows do not hold their audio; convert with --audio embedded to stream it"
                    )
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    self.groups.append((shard, group, total, rows))
                    total += rows
        self.num_rows = total
        with self.files.open(f"{self.root}/{MANIFEST}") as file:
            wanted = json.load(file)["splits"][split]["rows"]
        if total != wanted:
            raise ValueError(
                f"{where}: the shards of {split} hold {total} rows, {MANIFEST} says {wanted}; convert it again"
            )

    @property
    def files(self) -> fsspec.AbstractFileSystem:
        """Of this process: a forked worker must not use its parent's connections."""
        return fsspec.core.url_to_fs(self.where)[0]

    def has(self, split: str) -> bool:
        """Whether another split is there."""
        return bool(self.files.glob(f"{self.root}/rows/{split}-*.parquet"))

    def light(self) -> Dataset:
        """What parts of the corpus are chosen by, of all rows, and each one's number in `row`; nothing else is read."""
        shards = dict.fromkeys(shard for shard, *_ in self.groups)
        parts = []
        for shard in shards:
            with self.files.open(shard) as raw:
                parts.append(pq.read_table(raw, columns=LIGHT))
        table = pa.concat_tables(parts).replace_schema_metadata(None)
        return Dataset(table.append_column("row", pa.array(range(len(table)))))

    def read(self, group: tuple[str, int, int, int]) -> list[dict]:
        """Rows of a row group; `audio` holds each clip's bytes, the same object in each row that is about it."""
        shard, number, first, _ = group
        with self.files.open(shard) as raw:
            table = pq.ParquetFile(raw).read_row_group(
                number, columns=[*(set(TEXT) - {"clips"}), "audio"], use_threads=False
            )
        sounds: dict[str, bytes] = {}
        rows = []
        for batch in table.to_batches(max_chunksize=8):  # few copies of a clip at once
            for row in batch.to_pylist():
                row["names"] = [clip["path"] for clip in row["audio"]]
                row["audio"] = [
                    sounds.setdefault(clip["path"], clip["bytes"]) for clip in row["audio"]
                ]
                rows.append({**row, "row": first + len(rows)})
        return rows


def in_order(shards: Shards, numbers: list[int]) -> Iterator[dict]:
    """Rows by number, from the first to the last."""
    wanted = set(numbers)
    for group in shards.groups:
        if not wanted.isdisjoint(range(group[2], group[2] + group[3])):
            yield from (row for row in shards.read(group) if row["row"] in wanted)


def shuffled(groups: list[list[int]], buffer: int, seed: str) -> Iterator[int]:
    """Numbers in a random order: groups in one, and within the next `buffer` numbers at a time."""
    draw = random.Random(seed)
    groups = draw.sample(groups, len(groups))
    held: list[int] = []
    for number in (number for group in groups for number in group):
        held.append(number)
        if len(held) == buffer:
            at = draw.randrange(buffer)
            held[at], held[-1] = held[-1], held[at]
            yield held.pop()
    draw.shuffle(held)
    yield from held


def endless(
    shards: Shards, groups: list[list[int]], buffer: int, seed: str, done: int = 0
) -> Iterator[dict]:
    """Rows of some row groups again and again, each time all of them in another order, from the row numbered `done` on.

    Args:
        groups: the numbers of the rows that are wanted of each group. seed: of the order.
    """
    wanted = {number for group in groups for number in group}
    group_of = {
        number: group for group in shards.groups for number in range(group[2], group[2] + group[3])
    }
    size = sum(map(len, groups))
    for epoch in count(done // size):
        order = list(shuffled(groups, buffer, f"{seed}|{epoch}"))[
            done % size if epoch == done // size else 0 :
        ]
        left = {}
        for number in order:
            left[group_of[number]] = left.get(group_of[number], 0) + 1
        held: dict[int, dict] = {}
        for number in order:
            group = group_of[number]
            if number not in held:
                held.update((row["row"], row) for row in shards.read(group) if row["row"] in wanted)
            yield held.pop(number)
            left[group] -= 1
            if not left[group]:  # what was taken of it before
                for other in range(group[2], group[2] + group[3]):
                    held.pop(other, None)


def _consume(
    shares: list, shards: Shards, buffer: int, seed: int, row: Callable | None
) -> Iterator[dict]:
    for number, groups, done in shares:  # one, where there are as many as readers
        for made in endless(shards, groups, buffer, f"{seed}|{number}", done):
            yield row(made) if row else made


def stream_rows(
    shards: Shards,
    chosen: Iterable[int],
    buffer: int,
    seed: int,
    processes: int = 1,
    workers: int = 0,
    batch_size: int = 1,
    batches_done: int = 0,
    row: Callable[[dict], dict] | None = None,
) -> IterableDataset:
    """An endless data set of the rows numbered `chosen`, split among the workers of the data loaders of all processes.

    Row groups are dealt once; each worker gives its own again and again, in another order each time. accelerate and the data
    loader take one of the `shares` for each process and worker.

    Args:
        buffer: rows among which a worker draws the next one. processes, workers: how many readers there are; workers is the
            data loader's `num_workers`. batch_size, batches_done: of each process; a resumed run says how many batches it has
            taken. row: what is done to each row.

    Raises:
        ValueError: if there are fewer row groups than readers.
    """
    chosen = sorted(chosen)
    starts = [bisect_left(chosen, first) for _, _, first, _ in shards.groups] + [len(chosen)]
    groups = [chosen[a:b] for a, b in pairwise(starts) if a < b]
    each = max(1, workers)
    if len(groups) < processes * each:
        raise ValueError(
            f"{shards.where}: {processes * each} readers cannot share {len(groups)} row groups; lower "
            "--dataloader_num_workers"
        )
    dealt: list[list] = [[] for _ in range(processes * each)]
    smallest = [(0, i) for i in range(len(dealt))]
    for group in sorted(groups, key=len, reverse=True):
        size, i = heappop(smallest)
        dealt[i].append(group)
        heappush(smallest, (size + len(group), i))
    shares = []
    for process in range(processes):
        for worker in range(
            each
        ):  # a new data loader begins with its first worker, whichever one was next before
            role = (worker + batches_done) % each
            done = len(range(role, batches_done, each)) * batch_size
            shares.append((process * each + role, dealt[process * each + role], done))
    options = {"shards": shards, "buffer": buffer, "seed": seed, "row": row}
    return IterableDataset.from_generator(_consume, gen_kwargs={"shares": shares, **options})
