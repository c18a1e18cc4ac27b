"""A JSON array of any length as an Arrow table: read as a stream and, if it is large, kept in a file that is mapped."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
from datasets import Dataset
from tqdm import tqdm

from .cache import cache_folder

logger = logging.getLogger(__name__)
LARGE = 16_000_000  # bytes of a JSON file from which on its table is kept
CHUNK = 1 << 22  # characters read at once; an object is parsed again if it ends in the next chunk
LONGEST = (
    1 << 24
)  # characters of an element; each chunk that it goes on costs another parsing of all of it
BATCH = 10_000  # rows
_SPACE = re.compile(r"[ \t\r\n]*")


def stream_array(path: str | Path) -> Iterator:
    """The elements of the array in a JSON file, one after the other; memory does not grow with their number.

    Raises:
        ValueError: naming the file, if it is not JSON or not an array, or has an element that no row is as long as.
    """
    decoder, size = json.JSONDecoder(), Path(path).stat().st_size
    with (
        open(path, encoding="utf-8") as file,
        tqdm(
            total=size,
            desc=f"reading {Path(path).name}",
            unit="B",
            unit_scale=True,
            disable=None if size > LARGE else True,
        ) as bar,
    ):
        text, at, more = "", 0, True

        def read() -> None:
            nonlocal text, at, more
            chunk = file.read(CHUNK)
            bar.update(file.buffer.tell() - bar.n)
            text, at, more = text[at:] + chunk, 0, bool(chunk)

        def token() -> str:
            """The next character that is no space, "" at the end."""
            nonlocal at
            while True:
                at = _SPACE.match(text, at).end()
                if at < len(text) or not more:
                    return text[at : at + 1]
                read()

        def value():
            nonlocal at
            while True:
                try:
                    found, end = decoder.raw_decode(text, at)
                    goes_on = end == len(text) or (
                        text[end] in ".eE" and not isinstance(found, (dict, list, str))
                    )
                    if not goes_on or not more:  # a number may go on in the next chunk
                        at = end
                        return found
                except (
                    ValueError,
                    RecursionError,
                ) as error:  # a number of too many digits; an element that is too deep
                    if not more or not isinstance(error, json.JSONDecodeError):
                        raise ValueError(f"{path}: not a readable JSON file ({error})") from error
                if len(text) - at > LONGEST:
                    raise ValueError(
                        f"{path}: not a readable JSON file (an element of more than {LONGEST:,} characters)"
                    )
                read()

        def expect(wanted: str) -> str:
            nonlocal at
            if (found := token()) not in wanted or not found:
                raise ValueError(
                    f"{path}: not a readable JSON file ({' or '.join(wanted)} is wanted, not {found or 'its end'!r})"
                )
            at += 1
            return found

        try:
            if (first := token()) != "[":
                found = "dict" if first == "{" else type(value()).__name__
                raise ValueError(f"{path}: a list of rows is wanted, not {found}")
            expect("[")
            if token() != "]":
                yield value()
                while expect(",]") == ",":
                    token()
                    yield value()
            else:
                expect("]")
            if token():
                raise ValueError(f"{path}: not a readable JSON file (more follows its array)")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not a readable JSON file ({error})") from error


def _batches(rows: Iterator[dict], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    batch: list[dict] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield pa.RecordBatch.from_pylist(batch, schema)
            batch = []
    if batch:
        yield pa.RecordBatch.from_pylist(batch, schema)


def arrow_rows(
    path: str | Path,
    key: str,
    row: Callable[[object, int], dict],
    schema: pa.Schema,
    resolved: dict[str, str],
    resolve: Callable,
) -> Dataset:
    """`row(element, number)` of each element of a JSON array, as a data set of columns `schema`.

    Args:
        key: what else than the file's bytes the rows depend on. resolved: what `row` has found with `resolve(name)`, by name; a
            kept table is used only while that finds the same.

    Raises:
        ValueError: of [`stream_array`] and of `row`.
    """
    status = os.stat(path)
    made = (row(element, number) for number, element in enumerate(stream_array(path)))
    if status.st_size < LARGE:
        return Dataset(pa.Table.from_batches(_batches(made, schema), schema))
    cache = cache_folder() / "rows"
    identity = repr(
        (os.path.abspath(path), status.st_size, status.st_mtime_ns, key, schema.to_string())
    )
    file = cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.arrow"
    about = file.with_suffix(".json")
    try:
        if all(resolve(name) == found for name, found in json.loads(about.read_text()).items()):
            return Dataset.from_file(str(file))
    except (OSError, ValueError, AttributeError, pa.ArrowInvalid):  # not made yet, or torn
        pass
    try:
        cache.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        try:
            with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
                for batch in _batches(made, schema):
                    writer.write_batch(batch)
            about.unlink(missing_ok=True)  # while it is there, the table is whole
            part.replace(file)
            part.write_text(json.dumps(resolved))
            part.replace(about)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s); %s is read again in the next run", cache, error, path
        )
        made = (row(element, number) for number, element in enumerate(stream_array(path)))
        return Dataset(pa.Table.from_batches(_batches(made, schema), schema))
    return Dataset.from_file(str(file))
