"""The measured step is the package's own, and its results come out as worked out by hand."""

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from support.builders import SMALL_HTSAT, SMALL_MIMI, TEXT

from audiolm.benchmark import cli, measure, workload
from audiolm.checkpoints.random_weights import randomise_codebooks
from audiolm.encoders_audiolm import MimiEncoder
from audiolm.runtime import UserError, resident_memory
from audiolm.training.compile import PAD_TO, compile_layers

ENCODERS = {"htsat": SMALL_HTSAT, "mimi_full": SMALL_MIMI}
CLIPS = workload.clip_files("clips")
COMMAND = ["--steps", "1", "--batch_size", "4", "--seconds", "1.3"]
TEXT_CONFIG = {**TEXT, "max_position_embeddings": 2048}
RESULTS = (
    "seconds",
    "samples_per_second",
    "tokens_per_step",
    "tokens_per_second",
    "peak_memory_bytes",
    "run_seconds",
    "losses",
)
# Hides these packages in each Python process.
WITHOUT = """
import sys
from importlib.machinery import PathFinder
MISSING = {
    "datasets", "evaluate", "sklearn", "scipy", "soundfile", "pyarrow", "pandas", "peft",
    "sacrebleu", "rouge_score",
}
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in MISSING else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


def small_sizes(encoder_type, **text_fields):
    """Options for tiny dimensions."""
    sizes = {
        "encoder_config": ENCODERS[encoder_type],
        "text_config": {**TEXT_CONFIG, **text_fields},
        "mapper_hidden_size": 32,
    }
    return ["--encoder_type", encoder_type, "--config_overrides", json.dumps(sizes)]


def parse_small(*more, encoder_type="mimi_full"):
    return cli.parse([*COMMAND, *small_sizes(encoder_type), *more])


@pytest.fixture(params=ENCODERS)
def options(request):
    return parse_small(encoder_type=request.param)


@pytest.fixture
def varied_codes(monkeypatch):
    """Mimi's random weights give few codes, which would hide errors."""
    build_model = measure.build_model

    def build(options):
        model, processor = build_model(options)
        if isinstance(model.encoder, MimiEncoder):
            randomise_codebooks(model.encoder)
        return model, processor

    monkeypatch.setattr(measure, "build_model", build)


def gradients(work, examples):
    model, batch = work.model, work.collate(examples)
    workload.encode_batch(model, batch)
    model.zero_grad()
    loss = work.loss(model, batch)
    loss.backward()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("cached", "freeze_lm"), [(True, True), (False, False)])
def test_our_step_has_the_baselines_loss_and_gradients(
    options, cached, freeze_lm, tmp_path, varied_codes
):
    options.config_overrides["freeze_lm"] = freeze_lm
    measure.prepare(options, tmp_path, cached=True)
    examples = workload.draw_examples(6, 300, workload.clip_files(tmp_path))
    assert {len(example["audio"]) for example in examples} == {1, 2}
    loss, ours = gradients(measure.build_workload(options, False, tmp_path, cached), examples)
    baseline = measure.build_workload(options, True, tmp_path, cached)
    expected_loss, expected = gradients(baseline, examples)
    assert abs(loss - expected_loss) < 1e-4
    assert ours.keys() == expected.keys()
    assert any("mapper" in name for name in ours)
    assert any("language_model" in name for name in ours) is not freeze_lm
    # HTSAT's cache holds bfloat16.
    tolerance = 2e-2 if cached and options.encoder_type == "htsat" else 1e-4
    for name, gradient in ours.items():
        error = (gradient - expected[name]).norm()
        assert error <= tolerance * expected[name].norm() + 1e-8, name
    # The comparison notices swapped clips.
    swapped = [{**example, "audio": example["audio"][::-1]} for example in examples]
    _, other = gradients(baseline, swapped)
    weight = "mapper.linear_1.weight"
    assert (other[weight] - expected[weight]).norm() > 0


def test_baseline_in_slices_has_the_losses_of_the_whole_batch(tmp_path, monkeypatch):
    options = parse_small("--batch_size", "6", "--steps", "2")
    measure.prepare(options, tmp_path, cached=False)
    losses = []
    for size, slices in ((6, 1), (2, 3)):
        monkeypatch.setattr(measure, "SLICE_SIZE", size)
        work = measure.build_workload(options, True, tmp_path, cached=False)
        facts = measure.time_steps(options, work)
        assert facts["parts"].shape == (2, len(measure.PARTS))
        assert {len(batch) for batch in work.batches} == {slices}
        losses.append(facts["losses"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_evaluation_states_rows_per_second_of_each_protocol_and_control(in_one_process, capsys):
    more = ["--evaluation", "--rows", "8", "--max_new_tokens", "2", "--seconds", "1"]
    cli.main([*COMMAND, *small_sizes("mimi_full"), *more])
    printed = capsys.readouterr().out
    for name in ("plain generate loop", "likelihood", "generate", "mismatched_audio"):
        assert re.search(rf"^{name} +[\d.,]+  +[\d:.]+ \w+$", printed, re.MULTILINE)
    assert re.search(r"^generate: [\d.]+ x the plain loop$", printed, re.MULTILINE)


def test_draw_examples_has_reasonaqas_lengths():
    examples = workload.draw_examples(4000, 49152, CLIPS)
    questions, answers = (
        [len(re.findall("w", example[part])) for example in examples]
        for part in ("input", "answer")
    )
    pairs = sum(len(example["audio"]) == 2 for example in examples) / len(examples)
    assert pairs == pytest.approx(3 * 67_855 / 968_071, abs=0.02)
    # Shares of the kinds by their means.
    assert sum(questions) / len(examples) == pytest.approx(16.65, abs=0.6)
    assert sum(answers) / len(examples) == pytest.approx(41.5, abs=2)
    assert max(answers) > 250
    assert min(answers) == 1


def test_draw_examples_one_clip_leaves_out_pairs():
    examples = workload.draw_examples(200, 300, CLIPS, one_clip=True)
    assert {len(example["audio"]) for example in examples} == {1}


def test_prompt_template_has_as_many_tokens_as_with_smollm2():
    # With SmolLM2's tokenizer "Audio 1: " is five tokens, "\n" one and "\nAnswer:" three.
    _, processor = workload.build_model(parse_small())
    (prompt,) = processor.encode_prompts(["w5w6"], [[4]])
    assert len(prompt) == 5 + 4 + 1 + 2 + 3
    assert processor.encode_answers(["w7w8"]) == [[7, 8, 2]]


@pytest.fixture
def few_examples(monkeypatch, tmp_path):
    """Two steps of two examples whose tokens are counted by hand. The first step is a warm-up."""
    clips = workload.clip_files(tmp_path)
    # 5 + 5 frames + 1, 3 + 3, 1 and EOS: 19 tokens
    short = {"audio": clips[:1], "input": "w5w6w7", "answer": "w8"}
    # 2 x 11, 1 + 3, 4 and EOS: 31 tokens
    pair = {"audio": clips[1:3], "input": "w5", "answer": "w8" * 4}
    warmup = {"audio": clips[3:4], "input": "w5w6w7", "answer": "w8" * 20}
    examples = [warmup, short, short, pair]
    monkeypatch.setattr(measure, "draw_examples", lambda *_: [dict(each) for each in examples])


def test_tokens_by_hand(few_examples, tmp_path):
    options = parse_small("--batch_size", "2", "--seconds", "0.4")
    measure.prepare(options, tmp_path, cached=False)
    ours, baseline = (
        measure.measure(options, is_baseline, tmp_path) for is_baseline in (False, True)
    )
    assert ours["tokens_per_step"] == {"real": 19 + 31, "padded": 2 * 31}
    assert baseline["tokens_per_step"] == {"real": 19 + 31, "padded": 2 * 31}
    assert ours["clips_per_step"] == 3
    assert ours["samples_per_second"] == pytest.approx(2 / ours["mean_step_seconds"])
    assert ours["run_seconds"] == pytest.approx(20_000 * ours["mean_step_seconds"])


def test_our_batches_hold_the_baselines_examples_sorted_by_length(tmp_path):
    options = parse_small("--steps", "6")
    measure.prepare(options, tmp_path, cached=False)
    ours, baseline = (
        measure.measure(options, is_baseline, tmp_path)["tokens_per_step"]
        for is_baseline in (False, True)
    )
    assert ours["real"] == baseline["real"]
    assert ours["padded"] < 0.9 * baseline["padded"]


@pytest.mark.parametrize("cached", [True, False])
def test_measure_returns_consistent_results(options, cached, tmp_path):
    options.precision = "bf16"
    clip_seconds = measure.prepare(options, tmp_path, cached)
    assert clip_seconds > 0 if cached else clip_seconds is None
    result = measure.measure(options, False, tmp_path, cached)
    assert result["precision"] == "bf16"
    assert list(result["seconds"]) == [*measure.PARTS, "step"]
    assert all(low <= median <= high for low, median, high in result["seconds"].values())
    parts = sum(result["seconds"][part][1] for part in measure.PARTS)
    assert parts == pytest.approx(result["seconds"]["step"][1])
    assert parts == pytest.approx(result["mean_step_seconds"])
    assert len(result["losses"]) == 2  # with the warm-up


@pytest.fixture(scope="module")
def lean_run(tmp_path_factory):
    """The command's output and JSON file, without the packages of `WITHOUT`."""
    folder = tmp_path_factory.mktemp("lean")
    (folder / "sitecustomize.py").write_text(WITHOUT)
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "HF_HUB_OFFLINE": "1",
    }
    probe = [sys.executable, "-c", "import soundfile"]
    probed = subprocess.run(probe, env=environment, capture_output=True)
    assert b"ModuleNotFoundError" in probed.stderr
    options = [*COMMAND, *small_sizes("mimi_full"), "--naive"]
    command = [sys.executable, "-m", "audiolm", "benchmark", *options]
    command += ["--json", folder / "results.json"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout, json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_command_without_optional_packages_prints_a_table(lean_run):
    output, _ = lean_run
    ratio = r"^ours to baseline: [\d.]+x samples/s \([\d.]+x with .*\), [\d.]+x peak memory$"
    assert re.search(ratio, output, re.MULTILINE)
    for part in (*measure.PARTS, "step"):
        line = rf"^{part}, ms( +[\d.,]+ \([\d.,]+-[\d.,]+\)){{2}}$"
        assert re.search(line, output, re.MULTILINE)


@pytest.mark.slow
def test_command_without_optional_packages_writes_all_results(lean_run):
    _, results = lean_run
    assert list(results) == [
        "settings",
        "environment",
        "variants",
        "encode_seconds_per_clip",
        "ratio",
    ]
    ours, baseline = results["variants"].values()
    assert ours.keys() == baseline.keys()
    assert ours.keys() >= set(RESULTS)
    # Of both steps, so the optimizer did the same too.
    assert ours["losses"] == pytest.approx(baseline["losses"], abs=1e-4)
    assert ours["peak_memory_bytes"] > 0
    speed = ours["samples_per_second"] / baseline["samples_per_second"]
    assert results["ratio"]["samples_per_second"] == pytest.approx(speed)
    assert 0 < results["ratio"]["samples_per_second_with_encoding"] < speed


def test_resident_memory_counts_allocated_memory():
    before = resident_memory("VmRSS")
    held = torch.ones(60_000_000)  # 240 MB. Earlier tests may have left some to the process.
    assert resident_memory("VmRSS") - before < 280e6
    assert resident_memory("VmHWM") > 240e6
    assert len(held)
    assert resident_memory("VmNothing") is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batch_size", "0"], "--batch_size 0: expected a positive number"),
        (["--steps", "2.5"], "--steps: invalid int value: '2.5'"),
        (["--seconds", "nan"], "--seconds nan: expected a positive number"),
        (["--precision", "fp16"], "--precision: invalid choice: 'fp16'"),
        (["--json", "nowhere/x.json"], "--json nowhere/x.json: its folder does not exist"),
        (["--encoder_type", "nothing"], "--encoder_type"),
        (["--evaluation", "--naive"], "--naive: it measures training steps"),
    ],
)
def test_parse_wrong_option_is_refused(argv, message, capsys):
    with pytest.raises(SystemExit):
        cli.parse(argv)
    assert message in capsys.readouterr().err.splitlines()[-1]


def measure_compiled(folder, *more):
    argv = ["--steps", "2", "--batch_size", "4", "--seconds", "1", "--precision", "bf16"]
    options = cli.parse([*argv, *small_sizes("htsat"), *more])
    measure.prepare(options, str(folder), True)
    return measure.measure(options, False, str(folder), True)


def test_compiled_steps_have_the_losses_of_plain_ones(tmp_path, monkeypatch):
    eager = partial(compile_layers, backend="eager")
    monkeypatch.setattr(measure, "compile_layers", eager)
    plain = measure_compiled(tmp_path)
    torch._dynamo.utils.counters.clear()
    compiled = measure_compiled(tmp_path, "--torch_compile")
    assert compiled["losses"] == pytest.approx(plain["losses"], rel=1e-3)
    tokens, plain_tokens = compiled["tokens_per_step"], plain["tokens_per_step"]
    assert tokens["real"] == plain_tokens["real"]
    assert tokens["padded"] % (4 * PAD_TO / 2) == 0
    assert tokens["padded"] > plain_tokens["padded"] >= tokens["real"]
    # One graph serves all layers and lengths.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.fixture
def in_one_process(monkeypatch):
    """Runs each part in this process."""

    def run(function, *arguments):
        return function(*arguments)

    monkeypatch.setattr(measure, "run_isolated", run)


def test_too_short_clips_are_refused(in_one_process):
    argv = [*COMMAND, *small_sizes("htsat"), "--seconds", "1e-6", "--no_feature_cache"]
    message = r"^audiolm benchmark: --seconds 1e-06: shorter than a sample at 44100 Hz$"
    with pytest.raises(SystemExit, match=message):
        cli.main(argv)


def test_too_long_examples_are_refused(in_one_process):
    argv = [*COMMAND, *small_sizes("htsat", max_position_embeddings=20)]
    message = (
        r"^audiolm benchmark: --seconds 1.3: an example has \d+ tokens, "
        r"but the language model takes at most 20$"
    )
    with pytest.raises(SystemExit, match=message):
        cli.main(argv)


def test_out_of_memory_is_one_line(monkeypatch):
    monkeypatch.setattr(measure, "ProcessPoolExecutor", lambda *_: nullcontext(FullMemory()))
    with pytest.raises(UserError, match=r"^out of memory: take a smaller --batch_size$"):
        measure.run_isolated(measure.measure)


class FullMemory:
    """Takes the place of a process."""

    def submit(self, *_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
