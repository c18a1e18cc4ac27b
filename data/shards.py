"""Reads a converted data set: Parquet shards in place of tens of thousands of files.

`load_dataset` reads the folder too, here or from the Hub. `rows/SPLIT-*.parquet` has ReasonAQA's
fields. Each clip is once in `clips/*.parquet` ("referenced"), or in every row about it
("embedded", for streaming).
"""

import json
import os
from pathlib import Path

import pyarrow as pa
from datasets import DatasetDict, Features, List, Value, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ..runtime import UserError
from .reasonaqa import FIELDS

MANIFEST = "audiolm.json"
PLAN = ".conversion.json"
PUSHED = ("rows/*.parquet", "clips/*.parquet", MANIFEST, "README.md")
TEXT_COLUMNS = {name: Value("string") for name in (*FIELDS, "question_type")}
ROW_COLUMNS = {**TEXT_COLUMNS, "clips": List(Value("string"))}


def read_manifest(folder: Path) -> dict:
    """Returns the manifest of a converted data set.

    Raises:
        UserError: If `folder` is no converted data set, or its conversion is incomplete.
    """
    if not (folder / MANIFEST).is_file():
        if (folder / PLAN).is_file():
            raise UserError(f"{folder}: its conversion is incomplete. Run it again to resume.")
        raise UserError(f"{folder}: no converted data set ({MANIFEST} not found)")
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def check_row_count(where: str | Path, split: str, num_rows: int, manifest: dict) -> None:
    """Checks that the shards of a split hold as many rows as the manifest says.

    Raises:
        UserError: If they do not.
    """
    expected = manifest["splits"][split]["rows"]
    if num_rows != expected:
        raise UserError(
            f"{where}: the shards of {split} hold {num_rows} rows, {MANIFEST} says {expected}. "
            "Convert or download it again."
        )


def _add_audio(batch: dict, folder: str) -> dict:
    return {"audio": [[os.path.join(folder, clip) for clip in clips] for clips in batch["clips"]]}


def load_shards(folder: str | Path, splits: list[str] | None = None) -> DatasetDict:
    """Loads splits of a converted data set, by default all, as [`load_rows`] does.

    `audio` names each clip as `SHARD.parquet#ROW`.

    Raises:
        UserError: If there is no data set, it has no such split, or a shard cannot be read.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    available = manifest["splits"]
    for split in splits or ():
        if split not in available:
            raise UserError(f"{folder}: no split {split!r}, only {', '.join(available)}")
    files = {
        split: sorted(map(str, folder.glob(f"rows/{split}-*.parquet")))
        for split in splits or available
    }
    try:
        rows = load_dataset("parquet", data_files=files, columns=list(ROW_COLUMNS))
    except (DatasetsError, FileNotFoundError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{folder}: its shards cannot be read ({error}). Convert or download it again."
        ) from error
    for split in rows:
        check_row_count(folder, split, len(rows[split]), manifest)
    return rows.map(
        _add_audio,
        batched=True,
        fn_kwargs={"folder": os.path.abspath(folder)},
        remove_columns="clips",
        features=Features({**TEXT_COLUMNS, "audio": List(Value("string"))}),
        desc="naming clips",
    )


def dataset_folder(name: str, streaming: bool = False) -> str:
    """Returns a local folder, or that of a data set downloaded from the Hub.

    For `streaming`, returns the Hub's address in place of a download.

    Raises:
        UserError: If the Hub has no data set of this name.
    """
    if Path(name).exists():
        return name
    if streaming:
        return f"hf://datasets/{name}"
    try:
        return snapshot_download(name, repo_type="dataset", allow_patterns=list(PUSHED))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--dataset_name {name}: neither a folder nor a data set on the Hub ({reason})"
        ) from error
