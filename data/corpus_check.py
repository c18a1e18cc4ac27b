"""What is the matter with a corpus before anything is trained on it: its audio, its splits, its answers, its labels."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from datasets import Dataset, DatasetDict

from .answer_parsing import options, parse_answer
from .audio_check import ClipFacts
from .label_fixes import is_cle, right_label

CLIP_KINDS = ("missing", "unreadable", "not finite", "too loud", "silent", "too short")
CLOSED = ("mcq", "yes_no", "entailment")
EXAMPLES = 5  # of each finding in the report
# What a finding is called, whether training on it would be wrong, and what can be done about it.
FINDINGS = {
    **{kind: (True, "--on_bad_audio skip leaves the rows out") for kind in CLIP_KINDS[:4]},
    "silent": (True, "nothing is heard; take the rows out, or --allow silent"),
    "too short": (True, "less than half a second; take the rows out, or --allow 'too short'"),
    "same clip in two splits": (
        True,
        "a split was seen in training: take its rows out of one of them",
    ),
    "same audio in two splits": (True, "as above, under another name"),
    "unparsable": (
        True,
        "no options in the question, or an answer that names none: it can never count as right",
    ),
    "wrong entailment label": (True, "--fix_cle_labels with the csv files mends it"),
    "contradiction": (
        False,
        "one clip and question, several answers: at most one of them is learnt",
    ),
    "long answer": (
        False,
        "longer than --max_answer_words: padded batches, and never generated whole",
    ),
    "leaning letter": (
        False,
        "always answering it does better than chance; --shuffle_options mends mcq in training",
    ),
}


def _rows(rows: Dataset) -> Iterator[dict]:
    for batch in rows.iter(10_000):
        yield from (dict(zip(batch, values)) for values in zip(*batch.values()))


class CorpusCheck:
    """Counts over all rows of all splits; `report()` is what `run_prepare.py check` writes.

    Args:
        data: of [`load_reasonaqa`]. facts: of [`examine`], for all its clips. max_seconds: what is used of each clip.
        labels: of [`entailment_labels`], if AudioEntailment's csv is given.
    """

    def __init__(
        self,
        data: DatasetDict,
        facts: Mapping[str, ClipFacts],
        max_seconds: float = 10.0,
        max_answer_words: int = 300,
        labels: Mapping | None = None,
    ):
        self.facts, self.max_seconds, self.max_words, self.labels = (
            facts,
            max_seconds,
            max_answer_words,
            labels,
        )
        self.found: dict[str, list] = {name: [] for name in FINDINGS}
        self.count: Counter[str] = Counter()
        self.parts: dict[str, dict[str, dict]] = {}
        self.letters: dict[str, dict[str, Counter]] = {}
        self.chance: dict[str, dict[str, float]] = {}
        self.checked_labels: Counter[str] = Counter()
        clips: dict[str, dict[str, str]] = {}  # of each split: path and name in its rows
        for split, rows in data.items():
            clips[split] = self._split(split, rows)
        for path, facts_of in sorted(facts.items()):
            if facts_of.kind != "sound":
                self._note(facts_of.kind, f"{path}: {facts_of.fault or _measured(facts_of)}")
        self._across(clips)
        for split, subtypes in self.letters.items():
            for subtype, letters in subtypes.items():
                total, (letter, most) = sum(letters.values()), letters.most_common(1)[0]
                chance = self.chance[split][subtype] / total
                if (
                    most / total - chance > 3 * (chance * (1 - chance) / total) ** 0.5
                ):  # 3 standard errors above chance
                    text = f"{split} {subtype}: {letter!r} is right in {most} of {total}, by chance {chance:.3f}"
                    self._note("leaning letter", text)

    def _note(self, name: str, example: str) -> None:
        self.count[name] += 1
        if len(self.found[name]) < EXAMPLES:
            self.found[name].append(example)

    def _split(self, split: str, rows: Dataset) -> dict[str, str]:
        named: dict[str, str] = {}
        clips: dict[str, set[str]] = defaultdict(set)
        counts: Counter[str] = Counter()
        answers: dict[bytes, str] = {}
        contradicted: set[bytes] = set()
        letters: dict[str, Counter] = defaultdict(Counter)
        chance: dict[str, float] = defaultdict(float)
        for number, row in enumerate(_rows(rows)):
            kind, subtype, where = (
                row["question_type"],
                row["subtype"].removesuffix(".json"),
                f"{split} row {number}",
            )
            counts[subtype] += 1
            clips[subtype].update(row["audio"])
            named.update(zip(row["audio"], (row["filepath1"], row["filepath2"])))
            if len(row["answer"].split()) > self.max_words:
                self._note("long answer", f"{where}: {len(row['answer'].split())} words")
            if kind not in CLOSED:
                continue
            right = parse_answer(kind, row["input"], row["answer"])
            given = options(row["input"]) if kind != "yes_no" else {"yes": "", "no": ""}
            if right is None or len(given) < 2:
                self._note(
                    "unparsable", f"{where}: {row['input'][-80:]!r} → {row['answer'][:40]!r}"
                )
            elif kind != "yes_no":
                letters[subtype][right] += 1
                chance[subtype] += 1 / len(given)
            said = " ".join((given.get(right) or right or row["answer"]).lower().split())
            text = " ".join(row["input"].lower().split())
            asked = hashlib.blake2b(
                "\0".join([*row["audio"], text]).encode(), digest_size=12
            ).digest()
            if answers.setdefault(asked, said) != said and asked not in contradicted:
                contradicted.add(asked)
                self._note(
                    "contradiction",
                    f"{where}: {row['filepath1']}: {row['input'][:80]!r} → {answers[asked]!r} and {said!r}",
                )
            if self.labels is not None and is_cle(row):
                self._label(where, row, given.get(right, "").rstrip(".").lower())
        self.letters[split], self.chance[split] = dict(letters), dict(chance)
        self.parts[split] = {
            subtype: self._part(counts[subtype], clips[subtype]) for subtype in sorted(counts)
        }
        self.parts[split]["all"] = self._part(sum(counts.values()), set().union(*clips.values()))
        return named

    def _label(self, where: str, row: Mapping, answered: str) -> None:
        wanted = right_label(row, self.labels)
        self.checked_labels[
            "unknown" if wanted is None else "right" if wanted == answered else "wrong"
        ] += 1
        if wanted not in (None, answered):
            self._note(
                "wrong entailment label",
                f"{where}: {row['answer'][:40]!r} instead of {wanted!r}: {row['input'][:90]!r}",
            )

    def _part(self, rows: int, clips: set[str]) -> dict:
        kinds = Counter(self.facts[clip].kind for clip in clips)
        seconds = sum(
            min(self.facts[clip].seconds, self.max_seconds)
            for clip in clips
            if not self.facts[clip].fault
        )
        return {
            "rows": rows,
            "clips": len(clips),
            "found": len(clips) - kinds["missing"],
            **{kind: kinds[kind] for kind in CLIP_KINDS},
            "seconds": round(seconds, 1),
        }

    def _across(self, clips: dict[str, dict[str, str]]) -> None:
        """Clips that are in more than one split, by path or by what is heard."""
        splits = list(clips)
        for i, one in enumerate(splits):
            heard = {
                self.facts[path].digest: path
                for path in sorted(clips[one])
                if self.facts[path].kind == "sound"
            }
            for other in splits[i + 1 :]:
                for path in sorted(clips[other]):
                    if path in clips[one]:
                        self._note(
                            "same clip in two splits", f"{one} and {other}: {clips[other][path]}"
                        )
                    elif self.facts[path].kind == "sound" and (
                        same := heard.get(self.facts[path].digest)
                    ):
                        text = f"{one} and {other}: {clips[one][same]} is {clips[other][path]}"
                        self._note("same audio in two splits", text)

    def report(self, allowed: tuple[str, ...] = ()) -> dict:
        """All counts; `wrong` are the findings that make training on the corpus wrong and are not `allowed`."""
        findings = {
            name: {
                "count": self.count[name],
                "wrong": wrong and name not in allowed,
                "what_to_do": remedy,
                "examples": self.found[name],
            }
            for name, (wrong, remedy) in FINDINGS.items()
            if self.count[name]
        }
        letters = {
            split: {
                subtype: {
                    "letters": dict(sorted(found.items())),
                    "commonest": found.most_common(1)[0][0],
                    "accuracy_of_commonest": found.most_common(1)[0][1] / sum(found.values()),
                    "chance": self.chance[split][subtype] / sum(found.values()),
                }
                for subtype, found in sorted(subtypes.items())
            }
            for split, subtypes in self.letters.items()
        }
        return {
            "splits": self.parts,
            "options": letters,
            "entailment_labels": dict(self.checked_labels) or None,
            "findings": findings,
            "wrong": [name for name, finding in findings.items() if finding["wrong"]],
        }


def _measured(facts: ClipFacts) -> str:
    return f"{facts.seconds:.2f} s, peak {facts.peak:.5f}"


def table(report: Mapping) -> str:
    """A report as text."""
    columns = ("rows", "clips", "found", *CLIP_KINDS)
    lines = [
        f"{'split':<7}{'subtype':<18}"
        + "".join(f"{name:>{max(9, len(name) + 2)}}" for name in columns)
        + f"{'hours':>9}"
    ]
    for split, subtypes in report["splits"].items():
        for subtype, part in subtypes.items():
            numbers = "".join(f"{part[name]:>{max(9, len(name) + 2)},}" for name in columns)
            lines.append(f"{split:<7}{subtype:<18}{numbers}{part['seconds'] / 3600:>9.2f}")
    lines += [
        "",
        f"{'split':<7}{'options of':<18}{'commonest':>11}{'always it':>11}{'chance':>9}   letters",
    ]
    for split, subtypes in report["options"].items():
        for subtype, found in subtypes.items():
            counted = "  ".join(
                f"{letter} {number:,}" for letter, number in found["letters"].items()
            )
            lines.append(
                f"{split:<7}{subtype:<18}{found['commonest']:>11}{found['accuracy_of_commonest']:>11.3f}"
                f"{found['chance']:>9.3f}   {counted}"
            )
    if labels := report["entailment_labels"]:
        lines += [
            "",
            "CLE against AudioEntailment's labels: "
            + ", ".join(f"{n:,} {name}" for name, n in sorted(labels.items())),
        ]
    lines.append("")
    for name, finding in report["findings"].items():
        lines.append(
            f"{'WRONG' if finding['wrong'] else 'note ':<6} {finding['count']:>9,}  {name}: {finding['what_to_do']}"
        )
        lines += [f"{'':>18}{example}" for example in finding["examples"]]
    lines.append(
        f"training on it would be wrong: {', '.join(report['wrong'])}"
        if report["wrong"]
        else "nothing in it makes training on it wrong"
    )
    return "\n".join(lines)
