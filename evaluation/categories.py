"""Categories of questions, by their wording.

Of the rules in categories.json the first that matches counts.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

pc: Any = pyarrow.compute  # its functions are made at import, so a type checker sees none

CATEGORIES = (
    "sound event",
    "acoustic property",
    "environment",
    "recording quality",
    "time order",
    "count",
    "comparison",
    "mood",
    "other",
)
_OPTIONS = r"\s\(?[aA]\)\s"


@cache
def _rules() -> list[tuple[str, re.Pattern]]:
    table = json.loads(Path(__file__).with_name("categories.json").read_text(encoding="utf-8"))
    rules = []
    for rule in table["rules"]:
        pattern = "|".join(rule["patterns"])
        for name, alternatives in table["words"].items():
            pattern = pattern.replace(name, f"({alternatives})")
        rules.append((rule["category"], re.compile(pattern)))
    return rules


def _stem_category(stem: str) -> str:
    return next((name for name, pattern in _rules() if pattern.search(stem)), "other")


def category(row: Mapping[str, str]) -> str:
    """Returns one of `CATEGORIES` for a row. The options in its `input` do not count."""
    if row.get("filepath2"):
        return "comparison"
    stem = re.split(_OPTIONS, row["input"].strip(), maxsplit=1)[0]
    return _stem_category(stem.lower())


def categories(inputs: pa.ChunkedArray, second_clips: pa.ChunkedArray) -> np.ndarray:
    """Returns the [`category`] of many rows. Each distinct wording is matched once.

    Args:
        inputs: The column `input`.
        second_clips: The column `filepath2`.
    """
    stems = pc.utf8_trim_whitespace(inputs)
    stems = pc.utf8_lower(pc.replace_substring_regex(stems, f"(?s){_OPTIONS}.*", ""))
    stems = stems.combine_chunks().dictionary_encode()
    names = np.array([_stem_category(stem) for stem in stems.dictionary.to_pylist()], dtype=object)
    by_row = names[stems.indices.to_numpy()]
    by_row[pc.not_equal(second_clips, "").to_numpy()] = "comparison"
    return by_row
