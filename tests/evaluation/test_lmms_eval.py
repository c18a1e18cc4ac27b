"""lmms-eval finds the adapter, and its texts and accuracy equal those of `run_eval.py`."""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from support.evaluation import read_jsonl

if not os.environ.get("CI"):  # CI installs all extras
    pytest.importorskip("lmms_eval", reason="the extra lmms-eval is not installed")

from lmms_eval.api.instance import Instance
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from lmms_eval.tasks.mmau.utils import parse_multi_choice_response

from audiolm.data.soundscapes.corpus import make_soundscapes
from audiolm.evaluation.evaluate import main as evaluate
from audiolm.evaluation.lmms_eval_adapter import LmmsEvalModel
from audiolm.runtime import UserError

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "demo/models/mimi_full")
QUESTION = "Which sound can be heard? A) dog B) rain C) engine D) alarm"
LINES = "Which sound can be heard?\nA. dog\nB. rain\nC. engine\nD. alarm\nAnswer with the letter."
ARRAY, RATE = soundfile.read(ROOT / "demo/example.flac")
CLIP = {"array": ARRAY, "sampling_rate": RATE}


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    """Results of lmms-eval on the task of docs/lmms-eval.md, and of `run_eval.py`, by row."""
    folder = tmp_path_factory.mktemp("lmms_eval")
    test_file = make_soundscapes(folder / "outputs/clips", rows=100, seed=77)["test"]
    test_file.write_text(json.dumps(json.loads(test_file.read_text())[:24]))
    page = (ROOT / "docs/lmms-eval.md").read_text()
    (folder / "tasks").mkdir()
    for name, content in re.findall(r"^`(tasks/\S+)`:\n\n```\w+\n(.*?)```", page, re.M | re.S):
        (folder / name).write_text(content)
    tasks = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        theirs = simple_evaluate(
            "audiolm", f"pretrained={MODEL}", tasks=["my_clips"], task_manager=tasks, batch_size=4
        )
        files = ["--test_file", "outputs/clips/test.json", "--audio_dir", "outputs/clips"]
        options = ["--model_name_or_path", MODEL, "--output_dir", "ours"]
        evaluate([*files, *options, "--protocol", "generate"])
    rows = read_jsonl(folder / "ours/predictions.jsonl")
    closed = [row for row in rows if row["reference"] is not None]
    return theirs, closed


def ask(visuals, question=QUESTION, gen_kwargs=None, **model_args):
    """The answer to one question about the example clip."""
    model = LmmsEvalModel(MODEL, device="cpu", **model_args)
    model.task_dict = {"task": {"test": [visuals]}}
    arguments = (question, gen_kwargs or {}, lambda doc: doc, 0, "task", "test")
    metadata = {"task": "task", "doc_id": 0, "repeats": 1}
    return model.generate_until([Instance("generate_until", arguments, 0, metadata)])[0]


def test_lmms_eval_texts_equal_those_of_run_eval(evaluations):
    theirs, ours = evaluations
    texts = [sample["resps"][0][0] for sample in theirs["samples"]["my_clips"]]
    assert texts == [row["answers"]["generate"]["text"] for row in ours]


def test_lmms_eval_questions_have_one_and_two_clips(evaluations):
    assert {bool(row["filepath2"]) for row in evaluations[1]} == {False, True}


def test_lmms_eval_accuracy_equals_that_of_run_eval(evaluations):
    theirs, ours = evaluations
    accuracy = np.mean([row["answers"]["generate"]["correct"] for row in ours])
    assert theirs["results"]["my_clips"]["accuracy,none"] == pytest.approx(accuracy)


def test_generate_until_audio_decoder_answers_as_for_an_array():
    samples = SimpleNamespace(data=torch.tensor(ARRAY.T), sample_rate=RATE)
    decoder = SimpleNamespace(get_all_samples=lambda: samples)
    assert ask([decoder]) == ask([CLIP]) == "A) dog"


def test_generate_until_stop_string_ends_the_text():
    assert ask([CLIP], gen_kwargs={"until": [" dog"], "max_new_tokens": 8}) == "A)"


def test_generate_until_max_new_tokens_limits_the_text():
    assert len(ask([CLIP], gen_kwargs={"max_new_tokens": 1})) < len("A) dog")


def test_generate_until_reasonaqa_options_answers_with_a_letter():
    assert ask([CLIP], LINES, reasonaqa_options=True) == "A"


@pytest.mark.parametrize("text, is_parsed", [("A) dog", False), ("A", True)])
def test_mmau_parser_draws_an_option_for_a_text_that_is_no_letter(text, is_parsed):
    letters = {parse_multi_choice_response(text, ["A", "B", "C", "D"]) for _ in range(100)}
    assert (letters == {"A"}) == is_parsed


@pytest.mark.parametrize(
    "options, message",
    [
        ({"visuals": [CLIP] * 3}, "task task, document 0: AudioLM takes one or two clips, not 3"),
        ({"visuals": []}, "one or two clips, not 0"),
        ({"visuals": [object()]}, "task task, document 0: can.t convert"),
        ({"visuals": [{**CLIP, "array": []}]}, "task task, document 0: .* has shape"),
        ({"gen_kwargs": {"temperature": 0.2}}, "greedily, without temperature=0.2. Change it"),
        ({"gen_kwargs": {"do_sample": True}}, "greedily, without do_sample=True"),
        ({"gen_kwargs": {"max_length": 9}}, "without max_length=9"),
        ({"dtype": "bf16"}, "--model_args: expected pretrained=.*, not 'dtype'"),
        ({"batch_size": "auto"}, "--batch_size auto: expected a number above 0"),
    ],
)
def test_generate_until_unsupported_input_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        ask(**{"visuals": [CLIP], **options})


@pytest.mark.parametrize("method", ["loglikelihood", "generate_until_multi_round"])
def test_other_request_types_are_refused(method):
    model = LmmsEvalModel(MODEL, device="cpu")
    with pytest.raises(UserError, match="task x: "):
        getattr(model, method)([SimpleNamespace(task_name="x")])
