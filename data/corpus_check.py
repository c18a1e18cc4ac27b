"""Audits a corpus before training: audio, leakage between splits, answers and labels.

The module is long because each finding is a class of its own.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from itertools import combinations
from typing import NamedTuple

from datasets import Dataset, DatasetDict

from .answer_parsing import option_texts, parse_answer
from .audio_check import ClipFacts
from .label_fixes import EntailmentLabels, correct_label, is_cle
from .reasonaqa import CLOSED_QUESTION_TYPES

EXAMPLES_PER_FINDING = 5
# Every problem of a clip is an error. What to do about it:
CLIP_PROBLEMS = {
    "missing": "--on_bad_audio skip drops the rows",
    "unreadable": "--on_bad_audio skip drops the rows",
    "not finite": "--on_bad_audio skip drops the rows",
    "too loud": "--on_bad_audio skip drops the rows",
    "silent": "remove the rows, or pass --allow silent",
    "too short": "less than half a second: remove the rows, or pass --allow 'too short'",
}


class CheckedRow(NamedTuple):
    """A row with what several findings need."""

    split: str
    place: str  # Split and number.
    row: dict
    subtype: str  # Without ".json".
    is_closed: bool  # Whether the answer names an option.
    options: dict[str, str]  # By letter, or by "yes" and "no". Empty for open questions.
    answer: str  # What the answer names: a letter, "yes", "no" or "" for nothing.


class Finding:
    """A problem of a corpus: how often it occurs, and the first examples."""

    name = ""
    is_error = True  # Whether a corpus with it should not be used for training.
    remedy = ""

    def __init__(self):
        self.count = 0
        self.examples: list[str] = []

    def add(self, example: str) -> None:
        """Counts an occurrence."""
        self.count += 1
        if len(self.examples) < EXAMPLES_PER_FINDING:
            self.examples.append(example)

    def update(self, checked: CheckedRow) -> None:
        """Checks a row."""

    def finish(self) -> None:
        """Checks what needs all rows."""


class _BadClips(Finding):
    def __init__(self, name: str, facts: Mapping[str, ClipFacts]):
        super().__init__()
        self.name = name
        self.remedy = CLIP_PROBLEMS[name]
        for path, clip in sorted(facts.items()):
            if clip.kind == name:
                self.add(f"{path}: {clip.fault or f'{clip.seconds:.2f} s, peak {clip.peak:.5f}'}")


class _SameClip(Finding):
    name = "same clip in two splits"
    remedy = "leakage: remove the rows from one split"

    def __init__(self, facts: Mapping[str, ClipFacts]):
        super().__init__()
        self.facts = facts
        self.names: dict[str, dict[str, str]] = defaultdict(dict)

    def update(self, checked: CheckedRow) -> None:
        names = (checked.row["filepath1"], checked.row["filepath2"])
        self.names[checked.split].update(zip(checked.row["audio"], names))

    def finish(self) -> None:
        for first, second in combinations(self.names, 2):
            for example in self._find_pairs(self.names[first], self.names[second]):
                self.add(f"{first} and {second}: {example}")

    def _find_pairs(self, names: dict[str, str], other_names: dict[str, str]) -> Iterator[str]:
        return (other_names[path] for path in sorted(other_names) if path in names)


class _SameAudio(_SameClip):
    name = "same audio in two splits"
    remedy = "leakage under another name: remove the rows from one split"

    def _find_pairs(self, names: dict[str, str], other_names: dict[str, str]) -> Iterator[str]:
        valid = [path for path in sorted(names) if self.facts[path].kind == "sound"]
        path_by_digest = {self.facts[path].digest: path for path in valid}
        for path in sorted(other_names.keys() - names.keys()):
            clip = self.facts[path]
            if clip.kind == "sound" and clip.digest in path_by_digest:
                yield f"{names[path_by_digest[clip.digest]]} is {other_names[path]}"


class _Unparsable(Finding):
    name = "unparsable"
    remedy = "no options, or an answer that names no option: nothing can count as correct"

    def update(self, checked: CheckedRow) -> None:
        if checked.is_closed and (not checked.answer or len(checked.options) < 2):
            question, answer = checked.row["input"][-80:], checked.row["answer"][:40]
            self.add(f"{checked.place}: {question!r} → {answer!r}")


class _WrongLabel(Finding):
    name = "wrong entailment label"
    remedy = "--fix_cle_labels with the CSV files corrects it"

    def __init__(self, labels: EntailmentLabels | None):
        super().__init__()
        self.labels = labels
        self.counts: Counter[str] = Counter()

    def update(self, checked: CheckedRow) -> None:
        row = checked.row
        if self.labels is None or not checked.is_closed or not is_cle(row):
            return
        answer = checked.options.get(checked.answer, "").rstrip(".").lower()
        label = correct_label(row, self.labels)
        if label is None:
            self.counts["unknown"] += 1
        elif label == answer:
            self.counts["right"] += 1
        else:
            self.counts["wrong"] += 1
            question = row["input"][:90]
            self.add(f"{checked.place}: {row['answer'][:40]!r} instead of {label!r}: {question!r}")


class _Contradiction(Finding):
    name = "contradiction"
    is_error = False
    remedy = "one clip and question with several answers: at most one can be learned"

    def __init__(self):
        super().__init__()
        # Digests of questions save memory.
        self.answers: dict[bytes, str] = {}
        self.contradicted: set[bytes] = set()

    def update(self, checked: CheckedRow) -> None:
        row = checked.row
        if not checked.is_closed:
            return
        option = checked.options.get(checked.answer)
        answer = _normalize(option or checked.answer or row["answer"])
        key = "\0".join([checked.split, *row["audio"], _normalize(row["input"])])
        digest = hashlib.blake2b(key.encode(), digest_size=12).digest()
        first = self.answers.setdefault(digest, answer)
        if answer != first and digest not in self.contradicted:
            self.contradicted.add(digest)
            question = f"{row['filepath1']}: {row['input'][:80]!r}"
            self.add(f"{checked.place}: {question} → {first!r} and {answer!r}")


class _LongAnswer(Finding):
    name = "long answer"
    is_error = False
    remedy = "longer than --max_answer_words: pads batches and is never generated in full"

    def __init__(self, max_words: int):
        super().__init__()
        self.max_words = max_words

    def update(self, checked: CheckedRow) -> None:
        num_words = len(checked.row["answer"].split())
        if num_words > self.max_words:
            self.add(f"{checked.place}: {num_words} words")


class _AnswerPositionBias(Finding):
    name = "answer-position bias"
    is_error = False
    remedy = "one letter alone beats chance; --shuffle_options balances mcq in training"

    def __init__(self):
        super().__init__()
        self.letters: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self.expected: dict[tuple[str, str], float] = defaultdict(float)
        # Letters by split and subtype, and the accuracy of the most common one.
        self.statistics: dict[str, dict[str, dict]] = {}

    def update(self, checked: CheckedRow) -> None:
        self.statistics.setdefault(checked.split, {})
        has_letters = checked.is_closed and checked.row["question_type"] != "yes_no"
        if has_letters and checked.answer and len(checked.options) >= 2:
            self.letters[checked.split, checked.subtype][checked.answer] += 1
            self.expected[checked.split, checked.subtype] += 1 / len(checked.options)

    def finish(self) -> None:
        for (split, subtype), letters in self.letters.items():
            letter, count = letters.most_common(1)[0]
            total = letters.total()
            accuracy = count / total
            chance = self.expected[split, subtype] / total
            self.statistics[split][subtype] = {
                "letters": dict(sorted(letters.items())),
                "commonest": letter,
                "accuracy_of_commonest": accuracy,
                "chance": chance,
            }
            standard_error = (chance * (1 - chance) / total) ** 0.5
            if accuracy - chance > 3 * standard_error:
                text = f"{letter!r} is correct in {count} of {total}, by chance {chance:.3f}"
                self.add(f"{split} {subtype}: {text}")


ERRORS = (*CLIP_PROBLEMS, _SameClip.name, _SameAudio.name, _Unparsable.name, _WrongLabel.name)


def check_corpus(
    data: DatasetDict,
    facts: Mapping[str, ClipFacts],
    max_seconds: float = 10.0,
    max_answer_words: int = 300,
    labels: EntailmentLabels | None = None,
    allowed: Collection[str] = (),
) -> dict:
    """Checks all rows of all splits and returns counts and findings as JSON.

    Args:
        data: Splits of `load_reasonaqa`.
        facts: Facts of all their clips, from `inspect_clips`.
        max_seconds: Seconds that the model uses of a clip.
        max_answer_words: Longer answers are a finding.
        labels: Labels of `entailment_labels` to compare with.
        allowed: Names of errors that do not count. The other ones are listed under `wrong`.
    """
    wrong_labels, positions = _WrongLabel(labels), _AnswerPositionBias()
    findings: list[Finding] = [
        *(_BadClips(name, facts) for name in CLIP_PROBLEMS),
        _SameClip(facts),
        _SameAudio(facts),
        _Unparsable(),
        wrong_labels,
        _Contradiction(),
        _LongAnswer(max_answer_words),
        positions,
    ]
    for split, rows in data.items():
        for checked in _parse_rows(split, rows):
            for finding in findings:
                finding.update(checked)
    for finding in findings:
        finding.finish()
    findings = [finding for finding in findings if finding.count]
    errors = [f.name for f in findings if f.is_error and f.name not in allowed]
    options = {split: dict(sorted(part.items())) for split, part in positions.statistics.items()}
    return {
        "splits": {split: _count_clips(rows, facts, max_seconds) for split, rows in data.items()},
        "options": options,
        "entailment_labels": dict(wrong_labels.counts) or None,
        "findings": {
            finding.name: {
                "count": finding.count,
                "wrong": finding.name in errors,
                "what_to_do": finding.remedy,
                "examples": finding.examples,
            }
            for finding in findings
        },
        "wrong": errors,
    }


def _parse_rows(split: str, rows: Dataset) -> Iterator[CheckedRow]:
    number = 0
    for batch in rows.iter(10_000):
        for values in zip(*batch.values()):
            row = dict(zip(batch, values))
            question_type = row["question_type"]
            is_closed = question_type in CLOSED_QUESTION_TYPES
            options = option_texts(row["input"]) if is_closed else {}
            yield CheckedRow(
                split=split,
                place=f"{split} row {number}",
                row=row,
                subtype=row["subtype"].removesuffix(".json"),
                is_closed=is_closed,
                options={"yes": "", "no": ""} if question_type == "yes_no" else options,
                answer=parse_answer(question_type, row["input"], row["answer"]) or "",
            )
            number += 1


def _count_clips(rows: Dataset, facts: Mapping[str, ClipFacts], max_seconds: float) -> dict:
    """Returns the numbers of rows and clips of each subtype of a split, and of "all"."""
    num_rows: Counter[str] = Counter()
    clips_by_subtype: dict[str, set[str]] = defaultdict(set)
    for batch in rows.select_columns(["subtype", "audio"]).iter(10_000):
        for subtype, clips in zip(batch["subtype"], batch["audio"]):
            for name in {subtype.removesuffix(".json"), "all"}:
                num_rows[name] += 1
                clips_by_subtype[name].update(clips)
    counts = {}
    for name in sorted(num_rows, key=lambda name: (name == "all", name)):
        clips = [facts[clip] for clip in clips_by_subtype[name]]
        kinds = Counter(clip.kind for clip in clips)
        used_seconds = [min(clip.seconds, max_seconds) for clip in clips if not clip.fault]
        counts[name] = {
            "rows": num_rows[name],
            "clips": len(clips),
            "found": len(clips) - kinds["missing"],
            **{kind: kinds[kind] for kind in CLIP_PROBLEMS},
            "seconds": round(sum(used_seconds), 1),
        }
    return counts


def _normalize(text: str) -> str:
    return " ".join(text.lower().split())


def format_report(report: Mapping) -> str:
    """Formats a report of `check_corpus` as text."""
    lines = [*_format_splits(report["splits"]), "", *_format_options(report["options"])]
    if report["entailment_labels"]:
        counts = sorted(report["entailment_labels"].items())
        text = ", ".join(f"{count:,} {name}" for name, count in counts)
        lines += ["", f"CLE against AudioEntailment's labels: {text}"]
    lines.append("")
    for name, finding in report["findings"].items():
        label = "ERROR" if finding["wrong"] else "note"
        lines.append(f"{label:<6} {finding['count']:>9,}  {name}: {finding['what_to_do']}")
        lines += [f"{'':>18}{example}" for example in finding["examples"]]
    errors = ", ".join(report["wrong"])
    lines.append(f"do not train on this corpus: {errors}" if errors else "no errors")
    return "\n".join(lines)


def _format_splits(splits: Mapping) -> Iterator[str]:
    columns = ("rows", "clips", "found", *CLIP_PROBLEMS)
    widths = {name: max(9, len(name) + 2) for name in columns}
    titles = "".join(f"{name:>{widths[name]}}" for name in columns)
    yield f"{'split':<7}{'subtype':<18}{titles}{'hours':>9}"
    for split, subtypes in splits.items():
        for subtype, part in subtypes.items():
            numbers = "".join(f"{part[name]:>{widths[name]},}" for name in columns)
            yield f"{split:<7}{subtype:<18}{numbers}{part['seconds'] / 3600:>9.2f}"


def _format_options(options: Mapping) -> Iterator[str]:
    titles = f"{'commonest':>11}{'always it':>11}{'chance':>9}   letters"
    yield f"{'split':<7}{'options of':<18}{titles}"
    for split, subtypes in options.items():
        for subtype, part in subtypes.items():
            letters = "  ".join(f"{letter} {count:,}" for letter, count in part["letters"].items())
            yield (
                f"{split:<7}{subtype:<18}{part['commonest']:>11}"
                f"{part['accuracy_of_commonest']:>11.3f}{part['chance']:>9.3f}   {letters}"
            )
