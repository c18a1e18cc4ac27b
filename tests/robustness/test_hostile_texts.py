"""Hostile answers and reports, fuzzed: refused in one line, without a hang.

Each run draws the same examples. Inputs that once broke something are examples of their own.
"""

import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.hostile import EVERY, fuzz

from audiolm.comparison import compare as comparison
from audiolm.comparison.compare import compare
from audiolm.comparison.report.build import write_report
from audiolm.comparison.runs import Run
from audiolm.data.answer_parsing import find_options, option_texts, parse_answer
from audiolm.evaluation.scores import score

pytestmark = pytest.mark.usefixtures("same_examples")

# --- answers ---
WORDS = [
    "A)",
    "B) ",
    "(c)",
    " d) ",
    "a",
    "x ",
    "x x ",
    "low ",
    "the ",
    "first ",
    "second one ",
    "option ",
    "answer ",
    "is ",
    "not ",
    "no",
    "yes",
    "n't ",
    "isn't ",
    ", ",
    ". ",
    "\n",
    "\t",
    " ",
    " - ",
    "--",
    "(",
    "'",
    "\u2019",
    '"',
    "#",
    "İ",
    "ß",
    "ª",
    "\u2003",
    "\0",
    "\u202e",
    "\ud800",
    "\u0301",
    "\U0001f415",
]
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(EVERY, max_size=5), max_size=25).map("".join)
LONG = st.builds(lambda text, count: (text * count)[: 10**4], TEXTS, st.integers(1, 10**5))


def parse_in_time(question_type: str, question: str, text: str) -> str | None:
    """Returns the answer. Asserts that it is an option and takes less than 5 seconds."""
    start = time.process_time()
    answer = parse_answer(question_type, question, text)
    assert time.process_time() - start < 5, f"{time.process_time() - start:.1f} s"
    allowed = set()
    if question_type == "yes_no":
        allowed = {"yes", "no"}
    elif question_type in ("mcq", "entailment"):
        allowed = set(option_texts(question))
    assert answer is None or answer in allowed
    return answer


@fuzz(250)
@given(st.sampled_from(["mcq", "yes_no", "entailment", "caption", "?"]), TEXTS | LONG, TEXTS | LONG)
def test_parse_answer_any_text_gives_an_option_or_none(question_type, question, text):
    parse_in_time(question_type, question, text)
    for option in find_options(question):
        assert question[option.start : option.end].strip() == option.text


QUESTION = "Which? A) low tone B) high tone C) a a"


@pytest.mark.parametrize(
    ("question", "text", "answer"),
    [
        # This took quadratic time in the number of spaces.
        ("Which? A) x" + " " * 10**5 + "y B) z", "A", "a"),
        # This took the length times the number of repetitions.
        ("Which? A) " + "x " * 25_000 + "B) y", "x " * 50_000, "a"),
        ("Which? " + "A) x \t\n" * 15_000, "A", "a"),
        (QUESTION, " " * 10**5 + "A", "a"),
        (QUESTION, "A" + " " * 10**5, "a"),
        (QUESTION, "(" * 10**5, None),
        (QUESTION, "a'" * 50_000, None),
        (QUESTION, "'" * 10**5 + "b", "b"),
        (QUESTION, "a " + "-" * 50_000 + " b " + "-" * 50_000, None),
        (QUESTION, "a a a " * 16_000, "c"),
        (QUESTION, "the first one, not option two. " * 3000, "a"),
        (QUESTION, "not, " * 20_000, None),
    ],
)
def test_parse_answer_long_text_takes_linear_time(question, text, answer):
    assert parse_in_time("mcq", question, text) == answer
    parse_in_time("yes_no", question, text)


# --- the report ---
EVIL = [
    "<script>alert(1)</script>",
    "</style>",
    "</title>",
    "<!--",
    "-->",
    "]]>",
    '"',
    "'",
    "`",
    "&",
    "&lt;img&gt;",
    "{{ 7*7 }}",
    "{% raw %}",
    "<a href=javascript:alert(1)>",
    "javascript:alert(1)",
    '" onclick="alert(1)',
    "' onload='x",
    "http://evil.example/x",
    "<img src=//evil.example>",
    "url(x)",
    "\0",
    "\r",
    "\u202e",
    "\u200f",
    "\u2028",
    "\ud800",
    "é",
]


class Structure(HTMLParser):
    """Markup of a page: tags with the names of their attributes, addresses, all styles."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.addresses, self.style, self.inside = Counter(), set(), [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags[tag, tuple(name for name, _ in attrs)] += 1
        self.addresses |= {
            value
            for name, value in attrs
            if name in ("src", "href", "action", "srcset", "xlink:href")
        }
        self.style += [value for name, value in attrs if name == "style"]
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = None

    def handle_comment(self, data):
        self.tags["comment"] += 1

    def handle_data(self, data):
        if self.inside in ("style", "script"):
            self.style.append(data)


def report_of(folder: Path, text: str) -> str:
    """Returns the report of two arms with `text` in each place of a data set or a model."""
    rows = []
    for number, kind in enumerate(("mcq", "mcq", "yes_no", "caption")):
        right = {"mcq": "a", "yes_no": "yes"}.get(kind)
        outcome = {"parsed": right, "correct": True if right else None}
        scores = {"mcq": ("a", "b"), "yes_no": ("no", "yes")}.get(kind, ())
        answers = {"generate": {**outcome, "text": text}}
        if right:
            answers["likelihood"] = {**outcome, "scores": {option: [-1.0, 2] for option in scores}}
        rows.append(
            {
                "taskname": text,
                "caption1": text,
                "caption2": text,
                "subtype": f"T-{text}",
                "question_type": kind,
                "filepath1": f"{number}{text}.wav",
                "filepath2": "",
                "seconds": [0.6],
                "category": f"x{text}",
                "reference": right,
                "input": {"mcq": f"{text} A) {text}x B) x{text}", "yes_no": f"{text}?"}.get(
                    kind, f"caption {text}"
                ),
                "n_tokens": 2,
                "loss": 3.0,
                "answer": f"A) {text}",
                "answers": answers,
                "controls": {},
            }
        )
    metrics = score([row for row in rows if row["reference"]], "likelihood", 1.0)
    metrics["text"] = {"caption": {"n": 1, "loss_per_answer_token": 1.5, "control_loss": {}}}
    metrics["settings"] = {
        "model": {"encoder_type": "htsat", "no_audio": False, "training": {"seed": 0}}
    }
    arms = [f"{name}{text}" for name in ("one", "two")]
    runs = {arm: [Run(Path(arm.replace("\0", "")), metrics, rows)] for arm in arms}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "RESAMPLES", 20)
        results = compare(runs)
    results |= {"command": text, "note": f"note {text}", "corpus": None, "train": {}, "eval": {}}
    write_report(folder / "report.html", results, runs, folder)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return Structure(report_of(tmp_path_factory.mktemp("plain"), "plain"))


@fuzz(12)
@given(st.lists(st.sampled_from(EVIL), min_size=1, max_size=8).map("".join))
@example("".join(EVIL))
@example("\ud800")
def test_report_hostile_text_becomes_no_markup(tmp_path, plain, text):
    page = report_of(tmp_path, text)
    structure = Structure(page)
    assert structure.tags == plain.tags
    assert structure.style == plain.style
    assert all(address.startswith(("data:", "#")) for address in structure.addresses)
    assert "default-src 'none'" in page
    assert "<script" not in page
