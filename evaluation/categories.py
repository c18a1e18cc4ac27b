"""Categories of questions, by their wording.

Of the rules in categories.json the first that matches counts.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

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


@cache
def _stem_category(stem: str) -> str:
    return next((name for name, pattern in _rules() if pattern.search(stem)), "other")


def category(row: Mapping[str, str]) -> str:
    """Returns one of `CATEGORIES` for a row. The options in its `input` do not count."""
    if row.get("filepath2"):
        return "comparison"
    stem = re.split(_OPTIONS, row["input"].strip(), maxsplit=1)[0]
    return _stem_category(stem.lower())
