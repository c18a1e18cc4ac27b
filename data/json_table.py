"""Reads a large JSON list of objects as a memory-mapped table."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pyarrow as pa
from datasets import Dataset
from tqdm import tqdm

from ..runtime import UserError, json_digest, write_json
from .cache import cache_folder

logger = logging.getLogger(__name__)
MIN_CACHED_BYTES = 16_000_000
CHUNK_CHARACTERS = 1 << 22
# An element is parsed again with each chunk that it continues in.
MAX_ELEMENT_CHARACTERS = 1 << 24
ROWS_PER_BATCH = 10_000
_FIRST = re.compile(r"[ \t\r\n]*\[[ \t\r\n]*(?={)")
_NEXT = re.compile(r"[ \t\r\n]*,[ \t\r\n]*(?={)")
_EMPTY = re.compile(r"[ \t\r\n]*\[[ \t\r\n]*\][ \t\r\n]*")
_END = re.compile(r"[ \t\r\n]*\][ \t\r\n]*")


def stream_array(path: str | Path) -> Iterator[dict]:
    """Yields the objects of the JSON list in a file. Memory does not grow with their number.

    Raises:
        OSError: The file is not readable.
        UserError: The file holds no JSON list of objects. The message names the row.
    """
    with open(path, encoding="utf-8-sig") as file:
        # Progress is shown on terminals, for large files.
        is_small = os.fstat(file.fileno()).st_size < MIN_CACHED_BYTES
        rows = _parse_objects(iter(lambda: file.read(CHUNK_CHARACTERS), ""), path)
        title = f"reading {Path(path).name}"
        yield from tqdm(rows, title, unit=" rows", disable=True if is_small else None)


def _parse_objects(chunks: Iterable[str], path: str | Path) -> Iterator[dict]:
    decoder = json.JSONDecoder()
    text, number, problem = "", 0, ""
    try:
        for chunk in chunks:
            text += chunk
            position = 0
            while start := (_NEXT if number else _FIRST).match(text, position):
                try:
                    element, position = decoder.raw_decode(text, start.end())
                except json.JSONDecodeError as error:
                    # The element may continue in the next chunk.
                    problem = f"not readable as JSON ({error.msg})"
                    break
                yield element
                number += 1
                problem = ""
            text = text[position:]
            if len(text) > MAX_ELEMENT_CHARACTERS:
                problem = f"more than {MAX_ELEMENT_CHARACTERS:,} characters, or {problem}"
                break
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, row {number}: not readable as JSON ({error})") from error
    if not (_END if number else _EMPTY).fullmatch(text):
        expected = "',' and an object, or ']'" if number else "a JSON list of objects"
        problem = problem or f"expected {expected}, found {text[:20]!r}"
        raise UserError(f"{path}, row {number}: {problem}")


def load_json_table(
    path: str | Path,
    parse: Callable[[dict, int], dict],
    schema: pa.Schema,
    cache_key: object,
    lookups: dict[str, str],
    look_up: Callable[[str], str],
) -> Dataset:
    """Loads a JSON list of objects as a dataset. The table of a large file is cached on disk.

    Args:
        path: The JSON file.
        parse: Returns the row of an element with this number.
        schema: Schema of the rows.
        cache_key: JSON value of what `parse` depends on besides the element and `lookups`.
        lookups: Filled by `parse`: results that depend on the file system, by name.
        look_up: Returns the result for a name. The cached table is used while results are equal.

    Raises:
        OSError: The file is not readable.
        UserError: As for `stream_array`, or raised by `parse`.
    """
    status = os.stat(path)
    if status.st_size < MIN_CACHED_BYTES:
        return _read_into_memory(path, parse, schema)
    identity = [os.path.abspath(path), status.st_size, status.st_mtime_ns, cache_key]
    folder = cache_folder() / "rows"
    table_file = folder / f"{json_digest([*identity, schema.to_string()])[:24]}.arrow"
    # Written last: a table without it is incomplete.
    lookups_file = table_file.with_suffix(".json")
    with suppress(OSError, ValueError):
        cached_lookups = json.loads(lookups_file.read_text())
        if all(look_up(name) == result for name, result in cached_lookups.items()):
            return Dataset.from_file(str(table_file))
    partial_file = table_file.with_suffix(f".{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(partial_file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in _read_batches(path, parse, schema):
                writer.write_batch(batch)
        lookups_file.unlink(missing_ok=True)
        partial_file.replace(table_file)
        write_json(lookups_file, lookups)
    except OSError as error:
        logger.warning("%s: cannot cache the table of %s (%s)", folder, path, error)
        return _read_into_memory(path, parse, schema)
    finally:
        with suppress(OSError):
            partial_file.unlink()
    return Dataset.from_file(str(table_file))


def _read_into_memory(path: str | Path, parse: Callable, schema: pa.Schema) -> Dataset:
    return Dataset(pa.Table.from_batches(_read_batches(path, parse, schema), schema))


def _read_batches(path: str | Path, parse: Callable, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    rows = (parse(element, number) for number, element in enumerate(stream_array(path)))
    while batch := list(islice(rows, ROWS_PER_BATCH)):
        yield pa.RecordBatch.from_pylist(batch, schema)
