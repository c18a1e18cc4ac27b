"""Prose statistics of a Markdown page. CONTRIBUTING.md states the limits.

Code blocks, tables, headings and inline code are left out.
"""

import re
import statistics
from pathlib import Path

# Words per sentence (mean, 90th percentile), % of sentences over 35 words, commas per sentence.
LIMITS = {"mean": 16.0, "p90": 26, "over35": 3.0, "commas": 1.0}
MIN_SENTENCES = 8


def markdown_prose(text: str) -> str:
    """Returns a page's prose, without code, tables, headings and link targets."""
    text = re.sub(r"^ *```.*?^ *```", "\n\n", text, flags=re.S | re.M)
    is_other = re.compile(r"\s*>?\s*([|#<]|!\[|:::)")
    lines = ["" if is_other.match(line) else line.lstrip("> ") for line in text.splitlines()]
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", "\n".join(lines))
    return re.sub(r"<[^>]+>", "", text)


def split_sentences(prose: str) -> list[str]:
    """Returns sentences of three words and more."""
    sentences = []
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+[.)])\s)", prose):
        text = re.sub(r"`[^`]*`", "CODE", " ".join(paragraph.split()))
        text = re.sub(r"\b(e\.g|i\.e|vs|etc|al|cf)\.", r"\1", text)
        parts = re.split(r'(?<=[.!?:])\s+(?=[A-Z"*`(])', text)
        sentences += [part for part in parts if len(part.split()) > 2]
    return sentences


def measure_prose(page: Path) -> dict[str, float] | None:
    """Returns the figures that `LIMITS` bounds, or None for a page of few sentences."""
    sentences = split_sentences(markdown_prose(page.read_text(encoding="utf-8")))
    if len(sentences) < MIN_SENTENCES:
        return None
    lengths = sorted(len(sentence.split()) for sentence in sentences)
    return {
        "mean": statistics.mean(lengths),
        "p90": lengths[min(len(lengths) - 1, int(0.9 * len(lengths)))],
        "over35": 100 * sum(length > 35 for length in lengths) / len(lengths),
        "commas": sum(s.count(",") + s.count(";") for s in sentences) / len(sentences),
    }
