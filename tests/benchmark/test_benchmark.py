"""The step that run_benchmark.py measures is the package's own, and its figures come out as worked out by hand."""

import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise

import pytest
import torch

from audiolm import AudioLMConfig
from audiolm.benchmark import cli as run_benchmark
from audiolm.benchmark import measure as benchmark_measures
from audiolm.benchmark import workload as benchmark_steps
from audiolm.checkpoints.random_weights import randomise_codebooks
from audiolm.encoders_audiolm import MimiEncoder
from audiolm.training.compile import PAD_TO, compile_layers

ENCODERS = ["htsat", "mimi_full"]
CLIPS = benchmark_steps.clip_files("clips")
SMALL = ["--small", "--steps", "1", "--batch_size", "4", "--seconds", "1.3"]
# in each process of Python: these packages are not there
WITHOUT = """
import sys
from importlib.machinery import PathFinder
MISSING = {"datasets", "evaluate", "sklearn", "scipy", "soundfile", "pyarrow", "pandas", "peft", "sacrebleu", "rouge_score"}
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in MISSING else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


@pytest.fixture(params=ENCODERS)
def options(request):
    return run_benchmark.parse([*SMALL, "--encoder_type", request.param])


@pytest.fixture
def varied_codes(monkeypatch):
    """Mimi's random weights give few codes, which would hide errors."""
    inner = benchmark_measures.build

    def build(options):
        model, processor = inner(options)
        if isinstance(model.encoder, MimiEncoder):
            randomise_codebooks(model.encoder)
        return model, processor

    monkeypatch.setattr(benchmark_measures, "build", build)


def drawn(options, folder, count=6, **fields):
    benchmark_measures.prepare(options, folder, cached=True)
    return benchmark_steps.draw_rows(count, 0, 300, benchmark_steps.clip_files(folder), **fields)


def gradients(model, batch, loss_of):
    benchmark_steps.encode(model, batch)
    model.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same(found, expected, close):
    assert abs(found[0] - expected[0]) < 1e-4
    assert found[1].keys() == expected[1].keys() and any("mapper" in name for name in found[1])
    for name, gradient in found[1].items():
        assert (gradient - expected[1][name]).norm() <= close * expected[1][name].norm() + 1e-8, (
            name
        )


@pytest.mark.parametrize("freeze_lm", [True, False])
@pytest.mark.parametrize("cached", [True, False])
def test_our_step_learns_what_the_naive_step_learns(
    options, cached, freeze_lm, tmp_path, varied_codes
):
    options.freeze_lm = freeze_lm
    rows = drawn(options, tmp_path)
    assert {len(row["audio"]) for row in rows} == {1, 2}
    model, processor = benchmark_measures.build(options)
    model.train()
    make = benchmark_measures.collator(options, model, processor, tmp_path, cached)
    ours = gradients(model, make(rows), benchmark_steps.our_loss)
    naive = gradients(
        model, benchmark_steps.naive_batch(rows, processor), benchmark_steps.naive_loss
    )
    assert any("language_model" in name for name in ours[1]) is not freeze_lm
    assert_same(
        ours, naive, 2e-2 if cached and options.encoder_type == "htsat" else 1e-4
    )  # its cache holds bfloat16
    rows = [
        {**row, "audio": row["audio"][::-1]} for row in rows
    ]  # what the comparison would notice
    other = gradients(
        model, benchmark_steps.naive_batch(rows, processor), benchmark_steps.naive_loss
    )
    assert (other[1]["mapper.linear_1.weight"] - naive[1]["mapper.linear_1.weight"]).norm() > 0


def packed_batch(options, folder):
    rows = drawn(options, folder)
    model, processor = benchmark_measures.build(options)
    batch = benchmark_measures.collator(options, model, processor, folder, cached=True)(rows)
    frames = iter(batch["num_frames"])
    counts = [[next(frames) for _ in row["audio"]] for row in rows]
    lengths = [
        len(processor.encode_prompt(row["input"], n) + processor.encode_answer(row["answer"]))
        for row, n in zip(rows, counts)
    ]
    return (
        model.train(),
        batch,
        benchmark_steps.packed(batch, lengths, processor.audio_token_id),
        lengths,
    )


def test_packed_rows_learn_what_padded_ones_do(options, tmp_path, varied_codes):
    model, batch, packed, lengths = packed_batch(options, tmp_path)
    assert packed["input_ids"].shape == (1, sum(lengths)) and batch["input_ids"].numel() > sum(
        lengths
    )
    found, expected = (
        gradients(model, given, benchmark_steps.our_loss) for given in (packed, batch)
    )
    assert_same(found, expected, 1e-4)


def test_packed_rows_do_not_see_each_other(options, tmp_path, varied_codes):
    model, _, packed, lengths = packed_batch(options, tmp_path)
    benchmark_steps.encode(model, packed)
    ids = packed.pop("input_ids")
    audio = model.get_audio_features(
        input_features=packed.pop("input_features"), num_frames=packed.pop("num_frames")
    )
    embeds = model.merge_audio_embeddings(
        model.get_input_embeddings()(ids), audio, ids, packed.pop("audio_index")
    ).detach()
    starts = [sum(lengths[:row]) for row in range(len(lengths) + 1)]
    for row, (start, end) in enumerate(pairwise(starts)):
        inside = packed["label_index"][
            (packed["label_index"] >= start) & (packed["label_index"] < end)
        ]
        read = embeds.clone().requires_grad_()
        model(inputs_embeds=read, **{**packed, "label_index": inside}).loss.backward()
        seen = read.grad[0].norm(dim=-1) > 0
        assert seen[start : end - 1].all() and not seen[:start].any() and not seen[end:].any(), row
    seen_by_all = (
        embeds.clone().requires_grad_()
    )  # keys and values kept: transformers does not look for packed rows
    model(
        inputs_embeds=seen_by_all, **{**packed, "label_index": inside, "use_cache": True}
    ).loss.backward()
    assert (seen_by_all.grad[0].norm(dim=-1) > 0)[:start].any()


def test_rows_are_reasonaqas():
    rows = benchmark_steps.draw_rows(4000, 1, 49152, CLIPS)
    assert rows == benchmark_steps.draw_rows(
        4000, 1, 49152, CLIPS
    ) and rows != benchmark_steps.draw_rows(4000, 2, 49152, CLIPS)
    questions, answers = (
        [len(re.findall("w", row[part])) for row in rows] for part in ("input", "answer")
    )
    two = sum(len(row["audio"]) == 2 for row in rows) / len(rows)
    assert two == pytest.approx(3 * 67_855 / 968_071, abs=0.02)
    assert sum(questions) / len(rows) == pytest.approx(
        17.2, abs=0.6
    )  # shares of the kinds by their means
    assert sum(answers) / len(rows) == pytest.approx(41.5, abs=2)
    assert max(answers) > 250 and min(answers) == 1
    assert {
        len(row["audio"]) for row in benchmark_steps.draw_rows(200, 1, 300, CLIPS, one_clip=True)
    } == {1}


def test_prompts_have_the_templates_tokens():
    # by SmolLM2's tokenizer "Audio 1: " is five tokens, "\n" one and "\nAnswer:" three
    options = run_benchmark.parse([*SMALL, "--encoder_type", "mimi_full"])
    _, processor = benchmark_steps.build(options)
    assert len(processor.encode_prompt("w5w6", [4])) == 5 + 4 + 1 + 2 + 3
    assert processor.encode_answer("w7w8") == [7, 8, 2]


def test_tokens_by_hand(monkeypatch, tmp_path):
    clips = benchmark_steps.clip_files(tmp_path)
    one = {
        "audio": clips[:1],
        "input": "w5w6w7",
        "answer": "w8",
    }  # 5 + 5 frames + 1, 3 + 3, 1 and EOS: 19
    two = {"audio": clips[1:3], "input": "w5", "answer": "w8" * 4}  # 2 x 11, 1 + 3, 4 and EOS: 31
    long = {"audio": clips[3:4], "input": "w5w6w7", "answer": "w8" * 20}  # 38, in the warm-up
    monkeypatch.setattr(benchmark_measures, "draw_rows", lambda *_: [long, one, one, two])
    options = run_benchmark.parse(
        [*SMALL, "--batch_size", "2", "--seconds", "0.4", "--encoder_type", "mimi_full"]
    )
    benchmark_measures.prepare(options, tmp_path, cached=False)
    ours, naive = (benchmark_measures.measure(options, naive, tmp_path) for naive in (False, True))
    assert ours["tokens_per_step"] == {"real": 19 + 31, "padded": 2 * 31, "labels": 2 + 5}
    assert naive["tokens_per_step"] == {"real": 19 + 31, "padded": 2 * 31, "labels": 2 + 5}
    assert ours["clips_per_step"] == 3 and ours["flops_per_step"] == naive["flops_per_step"]
    assert ours["samples_per_second"] == pytest.approx(2 / ours["mean_step_seconds"])
    assert ours["arm_seconds"] == pytest.approx(20_000 * ours["mean_step_seconds"])


def test_our_steps_are_of_one_length_and_hold_the_naive_rows(tmp_path):
    options = run_benchmark.parse([*SMALL, "--steps", "6", "--encoder_type", "mimi_full"])
    benchmark_measures.prepare(options, tmp_path, cached=False)
    grouped, naive = (
        benchmark_measures.measure(options, naive, tmp_path) for naive in (False, True)
    )
    options.packed = True
    packed = benchmark_measures.measure(options, False, tmp_path)
    assert (
        packed["tokens_per_step"]["padded"]
        == packed["tokens_per_step"]["real"]
        == grouped["tokens_per_step"]["real"]
    )
    assert packed["losses"] == pytest.approx(grouped["losses"], abs=1e-4)
    options.train_sampling_strategy, options.packed = "random", False
    drawn = benchmark_measures.measure(options, False, tmp_path)
    tokens = [found["tokens_per_step"] for found in (grouped, drawn, naive)]
    assert tokens[0]["real"] == tokens[1]["real"] == tokens[2]["real"] and tokens[1] == tokens[2]
    assert tokens[0]["padded"] < 0.9 * tokens[1]["padded"]


def test_flops_by_hand():
    text = {
        "hidden_size": 8,
        "intermediate_size": 10,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "vocab_size": 20,
    }
    config = AudioLMConfig("mimi_full", text_config=text, mapper_hidden_size=6)
    # q and o 64 each, k and v 32 each, MLP 240: 432 weights at 7 tokens, the head's 160 at 2 labels; 4 FLOPs each
    assert 4 * (432 * 7 + 160 * 2) == 13_376
    # attention 6 x 8 x (3² + 4²); the mapper at 4 frames 6 x 5 weights of 4 FLOPs and 6 x 8 of 6
    assert benchmark_steps.step_flops(config, 5, [3, 4], 2, 4) == 13_376 + 1200 + 4 * (
        30 * 4 + 48 * 6
    )
    config.freeze_lm = False
    assert benchmark_steps.step_flops(config, 5, [3, 4], 2, 4) == 6 * 3344 + 1200 + 1632


@pytest.mark.parametrize("cached", [True, False])
def test_measures(options, cached, tmp_path):
    options.precision, options.peak_tflops = "bf16", 2.0
    clip_seconds = benchmark_measures.prepare(options, tmp_path, cached)
    assert clip_seconds > 0 if cached else clip_seconds is None
    found = benchmark_measures.measure(options, False, tmp_path, cached)
    assert list(found["seconds"]) == [*run_benchmark.PARTS, "step"] and found["precision"] == "bf16"
    assert all(low <= median <= high for low, median, high in found["seconds"].values())
    parts = sum(found["seconds"][part][1] for part in run_benchmark.PARTS)
    assert (
        parts
        == pytest.approx(found["seconds"]["step"][1])
        == pytest.approx(found["mean_step_seconds"])
    )
    assert found["mfu"] == pytest.approx(
        found["flops_per_step"] / found["mean_step_seconds"] / 2e12
    )
    assert len(found["losses"]) == 2  # with the warm-up
    options.new_tokens = 3
    rates = benchmark_measures.generation_rates(options, tmp_path, cached)
    assert list(rates) == ["dynamic", "static"] and min(rates.values()) > 0


def test_loader_rate_counts_rows(options, tmp_path, monkeypatch):
    benchmark_measures.prepare(options, tmp_path, cached=True)
    make = benchmark_measures.ReasonAQACollator.__call__
    monkeypatch.setattr(
        benchmark_measures.ReasonAQACollator,
        "__call__",
        lambda self, rows: time.sleep(0.02) or make(self, rows),
    )
    monkeypatch.setattr(benchmark_measures, "LOADER_BATCHES", 20)
    assert 100 < benchmark_measures.loader_rate(options, tmp_path) < 4 / 0.02


@pytest.mark.slow
def test_runs_with_four_packages_alone(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    probe = [sys.executable, "-c", "import soundfile"]
    assert (
        b"ModuleNotFoundError" in subprocess.run(probe, env=environment, capture_output=True).stderr
    )
    words = [
        run_benchmark.__file__,
        *SMALL,
        "--encoder_type",
        "mimi_full",
        "--naive",
        "--new_tokens",
        "2",
        "--json",
        tmp_path / "figures.json",
    ]
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^ours to naive: [\d.]+x samples/s \([\d.]+x with .*\), [\d.]+x peak memory$",
        done.stdout,
        re.MULTILINE,
    )
    for part in (*run_benchmark.PARTS, "step"):
        assert re.search(
            rf"^{part}, ms( +[\d.,]+ \([\d.,]+-[\d.,]+\)){{2}}$", done.stdout, re.MULTILINE
        )
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures) == [
        "settings",
        "environment",
        "variants",
        "encode_seconds_per_clip",
        "loader_rows_per_second",
        "generated_tokens_per_second",
        "ratio",
    ]
    assert figures["loader_rows_per_second"] > 0 and list(
        figures["generated_tokens_per_second"]
    ) == ["dynamic", "static"]
    ours, naive = figures["variants"].values()
    assert (
        ours.keys()
        == naive.keys()
        >= {
            "seconds",
            "samples_per_second",
            "tokens_per_step",
            "tokens_per_second",
            "peak_memory_bytes",
            "flops_per_step",
            "tflops",
            "peak_tflops",
            "mfu",
            "arm_seconds",
            "losses",
        }
    )
    assert ours["losses"] == pytest.approx(
        naive["losses"], abs=1e-4
    )  # of both steps: the optimizer did the same too
    assert ours["mfu"] is None and ours["peak_memory_bytes"] > 0
    speed = ours["samples_per_second"] / naive["samples_per_second"]
    assert figures["ratio"]["samples_per_second"] == pytest.approx(speed)
    assert 0 < figures["ratio"]["samples_per_second_with_encoding"] < speed


def test_peaks_are_of_the_device():
    names = [
        "NVIDIA H200",
        "NVIDIA H100 80GB HBM3",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA L4",
        "NVIDIA L40S",
        "CPU (AVX512)",
    ]
    assert [benchmark_measures.peak_tflops(name) for name in names] == [
        989,
        989,
        312,
        121,
        None,
        None,
    ]


def test_memory_counts_what_is_taken():
    before = benchmark_measures.resident("VmRSS")
    held = torch.ones(
        60_000_000
    )  # 240 MB, some of which earlier tests may have left to the process
    assert (
        benchmark_measures.resident("VmRSS") - before < 280e6
        and benchmark_measures.resident("VmHWM") > 240e6
    )
    assert len(held) and benchmark_measures.resident("VmNothing") is None


@pytest.mark.parametrize(
    "words, message",
    [
        (["--batch_size", "0"], "--batch_size: 0: a number above 0 is wanted"),
        (["--steps", "2.5"], "--steps: invalid number value: '2.5'"),
        (["--seconds", "nan"], "--seconds: nan: a number above 0 is wanted"),
        (["--precision", "fp16"], "--precision: invalid choice: 'fp16'"),
        (["--dataloader_num_workers", "-1"], "--dataloader_num_workers -1: 0 or more are wanted"),
        (
            ["--torch_compile", "--packed"],
            "--torch_compile: packed rows need a mask, which compiled layers do without",
        ),
        (["--json", "nowhere/x.json"], "--json nowhere/x.json: its folder is not there"),
        (["--json", "."], "--json .: a file is wanted, and this is a folder"),
    ],
)
def test_refuses_wrong_numbers(words, message, capsys):
    with pytest.raises(SystemExit):
        run_benchmark.parse(words)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_compiled_steps_are_measured(tmp_path, monkeypatch):
    words = [
        "--small",
        "--steps",
        "2",
        "--batch_size",
        "4",
        "--seconds",
        "1",
        "--precision",
        "bf16",
    ]
    found = []
    monkeypatch.setattr(
        benchmark_measures, "compile_layers", partial(compile_layers, backend="eager")
    )
    for more in ([], ["--torch_compile"]):
        options = run_benchmark.parse([*words, *more])
        benchmark_measures.prepare(options, str(tmp_path), True)
        found.append(benchmark_measures.measure(options, False, str(tmp_path), True))
    assert found[1]["losses"] == pytest.approx(found[0]["losses"], rel=1e-3)
    padded, real = (
        [each["tokens_per_step"][kind] for each in found] for kind in ("padded", "real")
    )
    assert padded[1] % (4 * PAD_TO / 2) == 0 and padded[1] > padded[0] >= real[0] == real[1]
    assert [each["compiled_graphs"] for each in found] == [0, 1]  # of all layers and lengths
    assert ("1 compiled" in run_benchmark.table({"ours": found[1]})) > (
        "compiled" in run_benchmark.table({"ours": found[0]})
    )


def test_errors_take_one_line(monkeypatch):
    def here(function, *arguments, **environment):  # as on a GPU
        return benchmark_measures.in_this_process(function, *arguments)

    monkeypatch.setattr(run_benchmark, "apart", here)
    monkeypatch.setattr(benchmark_measures, "LOADER_BATCHES", 20)
    with pytest.raises(
        SystemExit, match=r"^run_benchmark.py: --seconds 1e-06: at 44100 Hz that is no sample$"
    ):
        run_benchmark.main([*SMALL, "--seconds", "1e-6", "--no_feature_cache"])
    monkeypatch.setitem(benchmark_steps.SMALL["text"], "max_position_embeddings", 20)
    with pytest.raises(
        SystemExit,
        match=r"^run_benchmark.py: --seconds 1.3: a row has \d+ tokens, but the language model takes 20$",
    ):
        run_benchmark.main(SMALL)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(run_benchmark, "measure", full)
    with pytest.raises(
        SystemExit, match=r"^run_benchmark.py: the memory does not suffice, .* --batch_size$"
    ):
        run_benchmark.main(SMALL)
