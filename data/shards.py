"""A corpus as Parquet shards instead of tens of thousands of files: what lies where, and reading it.

The folder is a data set that `load_dataset` reads, here or from the Hub: `rows/SPLIT-*.parquet` with ReasonAQA's fields, and
each clip once in `clips/*.parquet` ("referenced"), or in every row that is about it ("embedded", for streaming).
"""

import json
import os
from pathlib import Path

import pyarrow as pa
from datasets import DatasetDict, Features, List, Value, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from .reasonaqa import FIELDS

VERSION = 1  # of the layout
MANIFEST, PLAN = "audiolm.json", ".conversion.json"
PUSHED = ("rows/*.parquet", "clips/*.parquet", MANIFEST, "README.md")
TEXT = {
    **{name: Value("string") for name in (*FIELDS, "question_type")},
    "clips": List(Value("string")),
}  # of rows


def split_files(folder: Path) -> dict[str, list[str]]:
    """Shards of each split of a converted data set, in order.

    Raises:
        ValueError: if `folder` is none, or its conversion did not end.
    """
    if not (folder / MANIFEST).is_file():
        ended = (
            "" if not (folder / PLAN).is_file() else ", its conversion did not end: run it again"
        )
        raise ValueError(f"{folder}: no converted data set ({MANIFEST} is not there{ended})")
    manifest = json.loads((folder / MANIFEST).read_text())
    if manifest.get("version") != VERSION:
        raise ValueError(
            f"{folder} has version {manifest.get('version')} of the layout, not {VERSION}; convert it again"
        )
    return {
        split: sorted(map(str, folder.glob(f"rows/{split}-*.parquet")))
        for split in manifest["splits"]
    }


def _with_audio(batch: dict, folder: str) -> dict:
    return {"audio": [[os.path.join(folder, clip) for clip in clips] for clips in batch["clips"]]}


def load_shards(folder: str | Path, splits: list[str] | None = None) -> DatasetDict:
    """Rows of a converted data set as [`load_reasonaqa`] gives them; `audio` names each clip inside its shard.

    Raises:
        ValueError: if it is none, or has no such split.
    """
    files = split_files(Path(folder))
    if missing := [split for split in splits or () if split not in files]:
        raise ValueError(f"{folder} has no split {missing[0]!r}, only {', '.join(files)}")
    files = {split: files[split] for split in splits or files}
    try:
        rows = load_dataset("parquet", data_files=files, columns=list(TEXT))
    except (DatasetsError, FileNotFoundError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"{folder}: its shards cannot be read ({error}); convert or download it again"
        ) from error
    for split, wanted in json.loads(Path(folder, MANIFEST).read_text())["splits"].items():
        if split in rows and len(rows[split]) != wanted["rows"]:
            raise ValueError(
                f"{folder}: the shards of {split} hold {len(rows[split])} rows, {MANIFEST} says {wanted['rows']}; "
                "convert or download it again"
            )
    return rows.map(
        _with_audio,
        batched=True,
        fn_kwargs={"folder": os.path.abspath(folder)},
        remove_columns="clips",
        features=Features(
            {**{k: v for k, v in TEXT.items() if k != "clips"}, "audio": List(Value("string"))}
        ),
        desc="naming clips",
    )


def dataset_folder(name: str, streaming: bool = False) -> str:
    """Where a converted data set is: its folder, here or from the Hub; or, streaming from the Hub, its address there.

    Raises:
        ValueError: if the Hub has none of that name.
    """
    if Path(name).exists():
        return name
    if streaming:
        return f"hf://datasets/{name}"
    try:
        return snapshot_download(name, repo_type="dataset", allow_patterns=list(PUSHED))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--dataset_name {name}: neither a folder nor a data set on the Hub ({reason})"
        ) from error
