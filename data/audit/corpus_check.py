"""Audits a corpus before training: audio, leakage between splits, answers and labels."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from itertools import chain, combinations
from typing import Any

import pandas as pd
import pyarrow as pa
from datasets import Dataset, DatasetDict

from ..answer_parsing import option_texts, parse_answer
from ..audio_check import ClipFacts
from ..reasonaqa import CLOSED_QUESTION_TYPES
from .fingerprints import FingerprintIndex, fingerprint_clips

MAX_ANSWER_WORDS = 300
EXAMPLES_PER_FINDING = 5
DROP = "--on_bad_audio skip drops the rows"
# Findings, and what to do about them. Every problem of a clip is an error.
CLIP_PROBLEMS = {
    "missing": DROP,
    "unreadable": DROP,
    "not finite": DROP,
    "too loud": DROP,
    "silent": "remove the rows, or pass --allow silent",
    "too short": "less than half a second: remove the rows, or pass --allow 'too short'",
}
# A corpus with an error should not be used for training.
ERRORS = {
    **CLIP_PROBLEMS,
    "same clip in two splits": "leakage: remove the rows from one split",
    "same audio in two splits": "leakage under another name: remove the rows from one split",
    "copied audio in two splits": "leakage: the same recording, re-encoded, shifted, softer or "
    "resampled; remove the rows from one split, or pass --allow if you listened and it is another",
    "unparsable": "no options, or an answer that names no option: nothing can count as correct",
}
WARNINGS = {
    "contradiction": "one clip and question with several answers: at most one can be learned",
    "long answer": f"more than {MAX_ANSWER_WORDS} words: pads batches, never generated in full",
    "answer-position bias": "one letter alone beats chance; --shuffle_options balances mcq in "
    "training",
}
REMEDIES = ERRORS | WARNINGS


class CorpusCheck:
    """Collects what is wrong with a corpus: how often each finding occurs, and first examples."""

    def __init__(self, facts: Mapping[str, ClipFacts], max_seconds: float):
        self.facts = facts
        self.max_seconds = max_seconds
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)
        # First answers by digest of the question, which saves memory.
        self.answers: dict[bytes, str | None] = {}
        self.clip_names: dict[str, dict[str, str]] = defaultdict(dict)  # by split and path
        # By split and subtype.
        self.letters: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self.expected: dict[tuple[str, str], float] = defaultdict(float)

    def add(self, finding: str, example: str) -> None:
        """Counts an occurrence of a finding."""
        self.counts[finding] += 1
        if self.counts[finding] <= EXAMPLES_PER_FINDING:
            self.examples[finding].append(example)

    def check_row(self, split: str, number: int, row: dict) -> None:
        """Checks a row, and collects what later checks need."""
        place = f"{split} row {number}"
        self.clip_names[split].update(zip(row["audio"], (row["filepath1"], row["filepath2"])))
        num_words = len(row["answer"].split())
        if num_words > MAX_ANSWER_WORDS:
            self.add("long answer", f"{place}: {num_words} words")
        question_type = row["question_type"]
        if question_type not in CLOSED_QUESTION_TYPES:
            return
        options = option_texts(row["input"])
        if question_type == "yes_no":
            options = {"yes": "", "no": ""}
        letter = parse_answer(question_type, row["input"], row["answer"]) or ""
        if not letter or len(options) < 2:
            self.add("unparsable", f"{place}: {row['input'][-80:]!r} → {row['answer'][:40]!r}")
        elif question_type != "yes_no":
            key = (split, row["subtype"].removesuffix(".json"))
            self.letters[key][letter] += 1
            self.expected[key] += 1 / len(options)
        answer = _normalize(options.get(letter) or letter or row["answer"])
        self._check_contradiction(split, place, row, answer)

    def _check_contradiction(self, split: str, place: str, row: dict, answer: str) -> None:
        key = "\0".join([split, *row["audio"], _normalize(row["input"])])
        digest = hashlib.blake2b(key.encode(), digest_size=12).digest()
        first = self.answers.setdefault(digest, answer)
        if first not in (None, answer):
            self.answers[digest] = None  # counted
            question = f"{row['filepath1']}: {row['input'][:80]!r}"
            self.add("contradiction", f"{place}: {question} → {first!r} and {answer!r}")

    def check_clips(self) -> None:
        """Finds bad clips, and recordings that are in two splits, also as copies."""
        for path, clip in sorted(self.facts.items()):
            if clip.kind in CLIP_PROBLEMS:
                fault = clip.fault or f"{clip.seconds:.2f} s, peak {clip.peak:.5f}"
                self.add(clip.kind, f"{path}: {fault}")
        fingerprints = {}
        if len(self.clip_names) > 1:
            sounds = [path for path, clip in self.facts.items() if clip.kind == "sound"]
            fingerprints = fingerprint_clips(sounds, self.max_seconds)
        for first, second in combinations(self.clip_names, 2):
            self._check_leakage(first, second, fingerprints)

    def _check_leakage(self, first: str, second: str, fingerprints: dict) -> None:
        names, other_names = self.clip_names[first], self.clip_names[second]
        sounds = [path for path in sorted(names) if self.facts[path].kind == "sound"]
        path_by_digest = {self.facts[path].digest: path for path in sounds}
        index = FingerprintIndex(
            {path: fingerprints[path] for path in sounds if path in fingerprints}
        )
        for path in sorted(other_names):
            clip = self.facts[path]
            finding, source = "same clip in two splits", path if path in names else None
            if source is None and clip.kind == "sound":
                finding, source = "same audio in two splits", path_by_digest.get(clip.digest)
                if source is None and path in fingerprints:
                    finding = "copied audio in two splits"
                    source = index.find_copy(fingerprints[path])
            if source is not None:
                pair = f"{names[source]} is {other_names[path]}"
                self.add(finding, f"{first} and {second}: {pair}")

    def check_answer_positions(self) -> None:
        """Finds subtypes of a split in which one letter is correct too often."""
        for (split, subtype), letters in sorted(self.letters.items()):
            letter, count = letters.most_common(1)[0]
            total = letters.total()
            chance = self.expected[split, subtype] / total
            if count / total - chance > 3 * (chance * (1 - chance) / total) ** 0.5:
                text = f"{letter!r} is correct in {count} of {total}, by chance {chance:.3f}"
                self.add("answer-position bias", f"{split} {subtype}: {text}")


def check_corpus(
    data: DatasetDict,
    facts: Mapping[str, ClipFacts],
    max_seconds: float = 10.0,
    allowed: Collection[str] = (),
) -> dict:
    """Checks all rows of all splits and returns counts and findings as JSON.

    Args:
        data: Splits of `load_rows`.
        facts: Facts of all their clips, from `inspect_clips`.
        max_seconds: Seconds that the model uses of a clip.
        allowed: Names of errors that do not count. The other ones are listed under `wrong`.
    """
    check = CorpusCheck(facts, max_seconds)
    splits = []
    for split, rows in data.items():
        batches = rows.with_format("arrow").iter(10_000)
        for number, row in enumerate(chain.from_iterable(map(pa.Table.to_pylist, batches))):
            check.check_row(split, number, row)
        splits += _count_clips(split, rows, facts, max_seconds)
    check.check_clips()
    check.check_answer_positions()
    names = [name for name in REMEDIES if check.counts[name]]
    errors = [name for name in names if name in ERRORS and name not in allowed]
    return {
        "splits": splits,
        "findings": {
            name: {
                "count": check.counts[name],
                "wrong": name in errors,
                "what_to_do": REMEDIES[name],
                "examples": check.examples[name],
            }
            for name in names
        },
        "wrong": errors,
    }


def _normalize(text: str) -> str:
    return " ".join(text.lower().split())


def _count_clips(
    split: str, rows: Dataset, facts: Mapping[str, ClipFacts], max_seconds: float
) -> list[dict]:
    """Returns the numbers of rows and clips of each subtype of a split, and of "all"."""
    table: Any = rows.select_columns(["subtype", "audio"]).to_pandas()
    counts = []
    for name, part in (*table.groupby(table.subtype.str.removesuffix(".json")), ("all", table)):
        clips = [facts[clip] for clip in part.audio.explode().unique()]
        kinds = Counter(clip.kind for clip in clips)
        used_seconds = [min(clip.seconds, max_seconds) for clip in clips if not clip.fault]
        counts.append(
            {
                "split": split,
                "subtype": name,
                "rows": len(part),
                "clips": len(clips),
                **{kind: kinds[kind] for kind in CLIP_PROBLEMS},
                "hours": round(sum(used_seconds) / 3600, 2),
            }
        )
    return counts


def format_report(report: Mapping) -> str:
    """Formats a report of `check_corpus` as text."""
    lines = [f"{pd.DataFrame(report['splits']).to_string(index=False)}\n"]
    for name, finding in report["findings"].items():
        label = "ERROR" if finding["wrong"] else "note"
        lines.append(f"{label:<6} {finding['count']:>9,}  {name}: {finding['what_to_do']}")
        lines += [f"{'':>18}{example}" for example in finding["examples"]]
    errors = ", ".join(report["wrong"])
    lines.append(f"do not train on this corpus: {errors}" if errors else "no errors")
    return "\n".join(lines)
