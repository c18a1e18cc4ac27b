"""Metrics of free answers (captions, differences, details): BLEU, ROUGE-L, CIDEr-D, METEOR, SPICE and SPIDEr.

All of them see the words of [`tokenise`]. Captioning's usual tokeniser, the Penn Treebank's, needs Java: figures would depend
on the machine. Scales are 0 to 1, but CIDEr-D's is 0 to 10, and SPIDEr is the mean of SPICE and CIDEr-D. Every answer of a
subtype may begin alike ("The audio 1 is ..."): that raises BLEU, ROUGE-L and METEOR.
"""

import importlib
import json
import math
import re
import shutil
import subprocess
import tempfile
import threading
import types
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
import evaluate
from sacrebleu.metrics.bleu import BLEU

TEXT_TYPES = ("difference", "caption", "detail")
LENGTHS = {
    "1-3": 3,
    "4-10": 10,
    "11-25": 25,
    "26+": math.inf,
}  # words of an answer, and the most of each group
GROUPS = {
    "subtype": lambda item: item["subtype"],
    "category": lambda item: item["category"],
    "clips": lambda item: str(item["clips"]),
    "answer_words": lambda item: next(
        n for n, most in LENGTHS.items() if len(item["references"][0].split()) <= most
    ),
}
SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
START_SECONDS, SECONDS_A_TEXT = (
    300,
    {"meteor": 0.1, "spice": 2},
)  # Java is ended then; METEOR takes some 10 and 0.001
_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+|(?<=\d)[.,]\d[^\W_]*)*")


def tokenise(text: str) -> str:
    """The words of a text in lower case, one space between them.

    Punctuation is left out, but for apostrophes and hyphens inside a word, points and commas inside a number. Markup is not
    understood: its letters count as words.
    """
    return " ".join(
        _WORD.findall(unicodedata.normalize("NFC", text).replace("\u2019", "'").lower())
    )


class NotRun(Exception):
    """Why a metric has no figure, and what to do about it."""


class _Scored(NamedTuple):
    """One item: its texts, tokenised, and what BLEU and ROUGE-L need of it, whatever set it is in."""

    prediction: str
    references: tuple[str, ...]
    bleu: tuple[
        int, ...
    ]  # length, the closest reference's, then matches and number of n-grams of 1 to 4 words
    rouge_l: float


class TextMetric(evaluate.Metric):
    """BLEU-1 and -4, ROUGE-L, CIDEr-D, METEOR, SPICE and SPIDEr of `predictions` with one or more `references` each.

    - `bleu_1`, `bleu_4`: sacrebleu's of the whole set, without smoothing; against the reference of the closest length.
    - `rouge_l`: rouge_score's F against each item's best reference; mean over items.
    - `cider_d`: pycocoevalcap's. An n-gram weighs the less the more items have it in their references: the figure depends
      on all references of the set, and those of subsets do not average to the set's. An answer of three words, without
      4-grams, has 7.5 at most.
    - `meteor`: METEOR 1.5's of the whole set, from pycocoevalcap's jar. Wants Java.
    - `spice`, `spider`: SPICE 1.0's mean over items to three decimals, as it prints it. Wants Java and CoreNLP's models.

    `java=False` leaves the last two out. What has no figure is None, and `not_run` says why. The order of items and of
    references does not matter.

    Raises:
        ValueError: if an item has no reference.
    """

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description="",
            features=datasets.Features({"predictions": text, "references": datasets.List(text)}),
        )

    def _compute(self, predictions, references, java=True):
        return _figures(_scored(predictions, references), java)


def text_items(rows: Iterable[Mapping]) -> list[dict]:
    """The items of answered rows: rows that ask the same of the same clips are one. Other question types are left out.

    A caption item's references are all answers of its clips and subtype, whatever their prompts; those of another item are the
    answers of its own rows. An item's first row is the one whose answer is first in the alphabet, so that the order of
    rows only decides that of items.

    Args:
        rows: of predictions.jsonl: ReasonAQA's fields, `question_type`, `category` and `answers.generate.text`.

    Returns:
        `prediction`, `question_type`, `subtype`, `category` and `clips` (their number) of the item's first row, and its
        `references`, sorted.

    Raises:
        ValueError: naming the row, if one has no generated text.
    """
    answers, asked = defaultdict(list), defaultdict(list)
    for number, row in enumerate(rows):
        kind, clips = row["question_type"], (row["filepath1"], row["filepath2"])
        if kind not in TEXT_TYPES:
            continue
        text = ((row.get("answers") or {}).get("generate") or {}).get("text")
        if not isinstance(text, str):
            raise ValueError(
                f"row {number}: a {kind} row with text in answers.generate is wanted: let the model generate"
            )
        alike = (kind, clips, row["subtype"] if kind == "caption" else row["input"])
        answers[alike].append(row["answer"])
        asked[alike, row["input"]].append((row["answer"], text, row["subtype"], row["category"]))
    answers = {alike: sorted(of) for alike, of in answers.items()}
    items = []
    for (alike, _), of in asked.items():
        kind, clips, _ = alike
        _, text, subtype, category = min(of)
        items.append(
            {
                "prediction": text,
                "references": answers[alike],
                "question_type": kind,
                "subtype": subtype,
                "category": category,
                "clips": 2 if clips[1] else 1,
            }
        )
    return items


def text_metrics(rows: Iterable[Mapping], java: bool = True) -> dict:
    """Metrics of the free answers among `rows` (see [`text_items`]) by question type.

    Args:
        java: METEOR, SPICE and SPIDEr too, which take half a minute and more for each question type.

    Returns:
        [`TextMetric`]'s figures of each question type that occurs, and in `by` those of its `subtype`, `category`, number of
        `clips` and `answer_words` (of the item's first reference), but for METEOR, SPICE and SPIDEr. CIDEr-D's weights are
        each group's own.
    """
    items, metrics = text_items(rows), {}
    for kind in TEXT_TYPES:
        of_kind = [item for item in items if item["question_type"] == kind]
        if not of_kind:
            continue
        scored = _scored(
            [item["prediction"] for item in of_kind], [item["references"] for item in of_kind]
        )
        metrics[kind], by = _figures(scored, java), {}
        for grouping, group_of in GROUPS.items():
            groups = defaultdict(list)
            for item, figures in zip(of_kind, scored):
                groups[group_of(item)].append(figures)
            names = (
                [name for name in LENGTHS if name in groups]
                if grouping == "answer_words"
                else sorted(groups)
            )
            alone = (
                len(names) == 1
            )  # a group of all items needs no second count: CIDEr-D takes minutes
            by[grouping] = {
                name: _without_java(metrics[kind]) if alone else _figures(groups[name], java=False)
                for name in names
            }
        metrics[kind]["by"] = by
    return metrics


def _scored(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[_Scored]:
    from rouge_score.rouge_scorer import (
        RougeScorer,
    )  # brings all of nltk: seconds, which only those who score shall wait

    rouge = RougeScorer(["rougeL"], tokenizer=types.SimpleNamespace(tokenize=str.split))
    # The effective order stops a warning about single sentences; of their score only the counts are used.
    bleu = BLEU(tokenize="none", effective_order=True)
    items = []
    for number, (prediction, of) in enumerate(zip(predictions, references)):
        if not of:
            raise ValueError(f"item {number} ({prediction[:80]!r}) has no reference")
        prediction, of = tokenise(prediction), sorted(tokenise(reference) for reference in of)
        counts = bleu.sentence_score(prediction, of)
        counts = (counts.sys_len, counts.ref_len, *counts.counts, *counts.totals)
        items.append(
            _Scored(
                prediction, tuple(of), counts, rouge.score_multi(of, prediction)["rougeL"].fmeasure
            )
        )
    return items


def _figures(items: list[_Scored], java: bool) -> dict:
    """Figures of a set of items; of METEOR, SPICE and SPIDEr with `java` only."""
    items = sorted(items)  # sums of floats depend on their order
    measures = PLAIN | (WITH_JAVA if java else {})
    figures, not_run = {"n": len(items)}, {}
    for name, measure in measures.items():
        try:
            if not items:
                raise NotRun("there are no items")
            figures[name] = measure(items)
        except NotRun as reason:
            figures[name], not_run[name] = None, str(reason)
    if java:
        missing = [name for name in ("spice", "cider_d") if name in not_run]
        figures["spider"] = None if missing else (figures["spice"] + figures["cider_d"]) / 2
        if missing:
            not_run["spider"] = (
                f"is the mean of SPICE and CIDEr-D; there is no {' and no '.join(missing)}"
            )
    return {**figures, "not_run": not_run}


def _without_java(figures: dict) -> dict:
    not_run = {name: reason for name, reason in figures["not_run"].items() if name in PLAIN}
    return {"n": figures["n"], **{name: figures[name] for name in PLAIN}, "not_run": not_run}


def _bleu(items: list[_Scored]):
    length, of_reference, *counts = (sum(column) for column in zip(*(item.bleu for item in items)))
    return BLEU.compute_bleu(counts[:4], counts[4:], length, of_reference, smooth_method="none")


def _bleu_1(items: list[_Scored]) -> float:
    score = _bleu(items)
    return score.bp * score.precisions[0] / 100


def _bleu_4(items: list[_Scored]) -> float:
    # With shorter references even the right answers have BLEU-4 0.
    if not any(reference.count(" ") >= 3 for item in items for reference in item.references):
        raise NotRun("no reference has four words")
    return min(1.0, _bleu(items).score / 100)


def _rouge_l(items: list[_Scored]) -> float:
    return math.fsum(item.rouge_l for item in items) / len(items)


def _cider_d(items: list[_Scored]) -> float:
    # With one set of references every weight is log(1) = 0, and so is the score of the right answers.
    if len({frozenset(item.references) for item in items}) < 2:
        raise NotRun(
            "weighs n-grams by how many items have them: at least two items with different references are wanted"
        )
    scorer = _pycocoevalcap("cider.cider_scorer").CiderScorer(n=4, sigma=6.0)
    for item in items:
        scorer += (item.prediction, list(item.references))
    return float(scorer.compute_score()[0])


def _meteor(items: list[_Scored]) -> float:
    folder, seconds = (
        _folder("meteor.meteor"),
        START_SECONDS + SECONDS_A_TEXT["meteor"] * _texts(items),
    )
    options = ["-stdio", "-l", "en", "-norm"]
    command = [
        _java(),
        "-Dfile.encoding=UTF-8",
        "-Xmx2G",
        "-jar",
        "meteor-1.5.jar",
        "-",
        "-",
        *options,
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
    # pycocoevalcap's own class waits for ever where Java hangs, and where it dies the class's lock is never released.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        try:
            with subprocess.Popen(command, cwd=folder, stderr=log, **pipes) as process:
                timer = threading.Timer(seconds, process.kill)
                timer.start()
                try:
                    statistics = [
                        _ask(process, "SCORE", *item.references, item.prediction) for item in items
                    ]
                    score = _ask(process, "EVAL", *statistics)
                    for _ in items:  # the score of each, and at last the set's
                        score = process.stdout.readline()
                    return float(score)
                finally:
                    timer.cancel()
                    process.kill()
        except (OSError, ValueError) as error:
            log.seek(0)
            raise NotRun(_failure(log.read(), seconds)) from error


def _ask(process: subprocess.Popen, *parts: str) -> str:
    process.stdin.write(" ||| ".join(parts) + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def _spice(items: list[_Scored]) -> float:
    folder, java = _folder("spice.spice"), _java()
    if missing := [name for name in SPICE_MODELS if not (folder / "lib" / name).exists()]:
        raise NotRun(
            f"{' and '.join(missing)} not in pycocoevalcap/spice/lib: "
            "`python -m pycocoevalcap.spice.get_stanford_models` downloads them"
        )
    texts = [
        {"image_id": i, "test": item.prediction, "refs": item.references}
        for i, item in enumerate(items)
    ]
    seconds = START_SECONDS + SECONDS_A_TEXT["spice"] * _texts(items)
    with tempfile.TemporaryDirectory() as made:
        Path(made, "texts.json").write_text(json.dumps(texts), encoding="ascii")
        # Without pycocoevalcap's options -cache and -out, which fail from Java 16 and 15 on.
        command = [java, "-Xmx8G", "-jar", "spice-1.0.jar", str(Path(made, "texts.json"))]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=seconds,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotRun(_failure("", seconds)) from error
    found = re.search(r"f-score:\s*(\d)[.,](\d+) \(SPICE metric\)", done.stdout)
    if done.returncode or not found:
        raise NotRun(_failure(done.stderr, seconds))
    return float(f"{found[1]}.{found[2]}")


def _texts(items: list[_Scored]) -> int:
    return sum(1 + len(item.references) for item in items)


def _failure(errors: str, seconds: float) -> str:
    said = [line for line in errors.splitlines() if "Exception" in line or "Error" in line]
    return (
        f"Java failed: {said[0][:200]}"
        if said
        else f"Java ended without a figure, or took longer than {seconds:.0f} s"
    )


def _java() -> str:
    if java := shutil.which("java"):
        return java
    raise NotRun(
        "wants Java, and `java` is not on PATH: install a Java runtime (Debian's default-jre-headless)"
    )


def _pycocoevalcap(module: str) -> types.ModuleType:
    try:
        return importlib.import_module(f"pycocoevalcap.{module}")
    except ImportError as error:
        raise NotRun(f"wants pycocoevalcap: `pip install audiolm[captions]` ({error})") from error


def _folder(module: str) -> Path:
    return Path(_pycocoevalcap(module).__file__).parent


PLAIN = {"bleu_1": _bleu_1, "bleu_4": _bleu_4, "rouge_l": _rouge_l, "cider_d": _cider_d}
WITH_JAVA = {"meteor": _meteor, "spice": _spice}
