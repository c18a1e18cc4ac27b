"""Hostile answers, reports and configurations, fuzzed: refused in one line, without a hang.

Each run draws the same examples. Inputs that once broke something are examples of their own.
"""

import json
import math
import subprocess
import sys
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.builders import ARMS, SMALL_HTSAT, SMALL_MIMI, TEXT
from support.hostile import EVERY, VALUES, fuzz, one_line

from audiolm import AudioLMConfig
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
    """Markup of a page: tags with the names of their attributes, addresses, the style sheet."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.addresses, self.style, self.inside = Counter(), set(), [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags[tag, tuple(name for name, _ in attrs)] += 1
        self.addresses |= {
            value
            for name, value in attrs
            if name in ("src", "href", "action", "srcset", "xlink:href", "style")
        }
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


# --- configurations ---
SIZES = [
    0,
    -1,
    10**9,
    10**12,
    2**63,
    2**64,
    1e9,
    math.nan,
    math.inf,
    True,
    None,
    "576",
    "",
    [],
    [10**9],
    {},
    "x" * 3000,
]
FIELDS_OF = {
    "text": [*TEXT, "hidden_act", "rope_parameters", "layer_types", "num_local_experts", "n_embd"],
    "htsat": [
        *SMALL_HTSAT,
        "n_fft",
        "num_mel_bins",
        "spec_size",
        "patch_size",
        "patch_stride",
        "hop_length",
        "sampling_rate",
        "frequency_max",
        "window_size",
        "num_hidden_layers",
        "mlp_ratio",
        "enable_fusion",
        "projection_dim",
    ],
    "mimi": [
        *SMALL_MIMI,
        "upsampling_ratios",
        "kernel_size",
        "sampling_rate",
        "num_residual_layers",
        "max_position_embeddings",
        "num_levels",
        "compress",
        "frame_rate",
        "audio_channels",
    ],
    "own": [
        "mapper_hidden_size",
        "audio_token_id",
        "max_audio_seconds",
        "freeze_lm",
        "no_audio",
        "encoder_type",
        "text_config",
        "encoder_config",
    ],
}


def configured(arm: str, part: str, changes: dict) -> dict:
    """The fields of a small configuration, some of them changed."""
    encoder = SMALL_HTSAT if arm == "htsat" else SMALL_MIMI
    fields = {
        "encoder_type": arm,
        "encoder_config": dict(encoder),
        "text_config": dict(TEXT),
        "mapper_hidden_size": 32,
    }
    into = {"own": fields, "text": fields["text_config"]}.get(part, fields["encoder_config"])
    into.update(changes)
    return fields


PART = st.sampled_from(["text", "own", "encoder"]).flatmap(
    lambda part: st.sampled_from(ARMS).flatmap(
        lambda arm: st.tuples(
            st.just(arm),
            st.just(part),
            st.dictionaries(
                st.sampled_from(
                    FIELDS_OF.get(part) or FIELDS_OF["htsat" if arm == "htsat" else "mimi"]
                ),
                st.sampled_from(SIZES) | VALUES | st.integers(-(2**70), 2**70),
                min_size=1,
                max_size=2,
            ),
        )
    )
)


@fuzz(300)
@given(PART)
@example(("htsat", "text", {"num_attention_heads": 0}))
@example(("htsat", "text", {"model_type": ["llama"]}))
@example(("htsat", "text", {"model_type": "clip"}))
@example(("htsat", "text", {"model_type": "gpt2", "n_embd": 10**9}))
@example(("htsat", "text", {"model_type": "mixtral", "num_local_experts": 10**9}))
@example(("htsat", "text", {"hidden_size": 2**15, "num_hidden_layers": 2**10}))
@example(("htsat", "encoder", {"depths": [1] * 1000}))
@example(("htsat", "encoder", {"window_seconds": math.nan}))
@example(("mimi_full", "encoder", {"hidden_size": -512}))
@example(("mimi_full", "own", {"encoder_config": "x"}))
@example(("mimi_full", "own", {"text_config": [1]}))
@example(("mimi_full", "own", {"encoder_type": ["htsat"]}))
@example(("mimi_full", "own", {"freeze_lm": "no"}))
@example(("mimi_full", "own", {"max_audio_seconds": math.nan}))
def test_config_any_values_are_bounded_or_refused(case):
    try:
        config = AudioLMConfig(**configured(*case))
    except ValueError as error:
        return one_line(error)
    text, encoder = config.text_config, config.encoder_config
    assert text.hidden_size * text.vocab_size * max(1, text.num_hidden_layers) <= 10**13
    assert (
        text.hidden_size * (text.vocab_size + text.num_hidden_layers * text.hidden_size) <= 10**11
    )
    assert 0 < encoder.hidden_size <= 4096
    assert config.mapper_hidden_size <= 2**15
    assert 0 <= config.max_audio_seconds <= 3600
    assert 0 <= config.audio_token_id < text.vocab_size


@pytest.mark.parametrize("arm", ARMS)
def test_config_usual_values_survive_saving(arm, tmp_path):
    for config in (
        AudioLMConfig(arm),
        AudioLMConfig(**configured(arm, "own", {}), max_audio_seconds=30, no_audio=True),
    ):
        config.save_pretrained(tmp_path)
        assert AudioLMConfig.from_pretrained(tmp_path).to_dict() == config.to_dict() | {
            "architectures": None
        }
    for kind in ("gpt2", "qwen2", "qwen3", "smollm3", "gemma", "mistral", "gpt_neox", "phi"):
        text = AudioLMConfig(arm, text_config={"model_type": kind}).text_config
        assert text.model_type == kind


ABSURD = [
    ("htsat", "text", {"hidden_size": 10**9}),
    ("htsat", "text", {"vocab_size": 10**12}),
    ("htsat", "text", {"num_hidden_layers": 10**8}),
    ("htsat", "text", {"intermediate_size": 10**11}),
    ("htsat", "text", {"hidden_size": -32}),
    ("htsat", "text", {"hidden_size": "32"}),
    ("htsat", "text", {"hidden_size": math.nan}),
    (
        "htsat",
        "text",
        {
            "hidden_size": 2**15,
            "vocab_size": 2**22,
            "intermediate_size": 2**18,
            "num_hidden_layers": 1000,
        },
    ),
    ("htsat", "encoder", {"n_fft": 10**9}),
    ("htsat", "encoder", {"depths": [10**8] * 4}),
    ("htsat", "encoder", {"patch_embeds_hidden_size": 10**9}),
    ("htsat", "encoder", {"window_seconds": 1e12}),
    ("mimi_full", "encoder", {"codebook_size": 2**40}),
    ("mimi_full", "encoder", {"num_quantizers": 10**9}),
    ("mimi_full", "encoder", {"num_filters": 10**8}),
    ("mimi_full", "encoder", {"num_residual_layers": 10**8}),
    ("mimi_full", "own", {"mapper_hidden_size": 10**12}),
    ("mimi_full", "own", {"mapper_hidden_size": -1}),
]
MAKE = """
import json, os, resource, sys
import torch
from transformers import AutoConfig
from audiolm import AudioLMConfig, AudioLMForConditionalGeneration
AutoConfig.register("audiolm", AudioLMConfig)
def make(folder):
    return AudioLMForConditionalGeneration(AutoConfig.from_pretrained(folder)).num_parameters()
make(sys.argv[1] + "/usual")
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28, taken + 2**28))
before, found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, {}
for name in sorted(os.listdir(sys.argv[1])):
    try:
        found[name] = make(os.path.join(sys.argv[1], name))
    except ValueError as error:
        found[name] = str(error)
print(json.dumps([found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


def test_model_of_absurd_size_is_not_built(tmp_path):
    for number, case in enumerate([*ABSURD, ("htsat", "own", {})]):
        folder = tmp_path / ("usual" if number == len(ABSURD) else f"{number:02d}")
        folder.mkdir()
        (folder / "config.json").write_text(
            json.dumps({"model_type": "audiolm", **configured(*case)})
        )
    run = subprocess.run(
        [sys.executable, "-c", MAKE, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr[-3000:]
    messages, memory_growth = json.loads(run.stdout.splitlines()[-1])
    assert messages.pop("usual") > 10_000
    assert memory_growth < 200_000, f"{memory_growth} kB"
    assert len(messages) == len(ABSURD)
    for name, message in messages.items():
        case = ABSURD[int(name)]
        assert isinstance(message, str), case
        assert "\n" not in message, case
        assert any(field in message for field in (*case[2], "parameters")), (message, case)
