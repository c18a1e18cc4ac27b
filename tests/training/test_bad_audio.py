"""Audio that turns bad during a run: files that vanish, hang, or kill their worker."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from support.builders import arguments, clip, small_model, weights

from audiolm.data import decoder as decoder_module
from audiolm.data.decoder import BadClip, ClipDecoder, replace_bad_examples
from audiolm.data.features import FeatureCache
from audiolm.processing_audiolm import AudioLMFeatureExtractor
from audiolm.run_train import main as train
from audiolm.training.callbacks import BadAudioLog, StopOnSignal

SKIP = {
    "--on_bad_audio": "skip",
    "--max_steps": "12",
    "--eval_strategy": "no",
    "--save_steps": "4",
    "--num_stats_clips": "2",
}
SKIP_OPTIONS = [word for option in SKIP.items() for word in option]


def options_without_evaluation(corpus: Path, tokenizer, *more: str) -> list[str]:
    """Each step decodes its clips: evaluation and a cache would keep them encoded."""
    options = arguments(corpus, "mimi_semantic", tokenizer, "--feature_cache", "none", *more)
    position = options.index("--validation_file")
    return options[:position] + options[position + 2 :]


def call_after_step(monkeypatch, step: int, action) -> None:
    original = StopOnSignal.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            action()
        original(self, args, state, control, **kwargs)

    monkeypatch.setattr(StopOnSignal, "on_step_end", on_step_end)


def training_losses(corpus: Path) -> list[float]:
    log = json.loads((corpus / "out" / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


def damage_clip_3(corpus: Path, damage: str) -> None:
    file = corpus / "3.wav"
    content = file.read_bytes()
    file.unlink()
    if damage == "truncated":
        file.write_bytes(content[:20])
    if damage == "hanging":
        # Opening a FIFO waits for a writer, as a lost network mount would.
        os.mkfifo(file)


@pytest.mark.parametrize(
    "damage, message",
    [
        ("missing", "3.wav"),
        ("truncated", "3.wav"),
        ("hanging", "3.wav: not decoded within 1 s"),
    ],
)
def test_run_with_skip_replaces_and_names_a_clip_that_turns_bad(
    corpus, tokenizer, monkeypatch, caplog, damage, message
):
    options = options_without_evaluation(corpus, tokenizer, *SKIP_OPTIONS, "--audio_timeout", "1")
    call_after_step(monkeypatch, 2, lambda: damage_clip_3(corpus, damage))
    train(options)
    assert training_losses(corpus)[11] > 0
    [line] = (corpus / "out" / "bad_audio.txt").read_text().splitlines()
    assert message in line
    warnings = [record for record in caplog.records if "of its batch takes" in record.message]
    assert len(warnings) == 1


def test_bad_audio_of_two_processes_is_listed_once(tmp_path):
    first, other = BadAudioLog(str(tmp_path)), BadAudioLog(str(tmp_path))
    first("3.wav: torn")
    other("3.wav: torn")
    first("4.wav: gone")
    first("3.wav: torn")
    lines = (tmp_path / "bad_audio.txt").read_text().splitlines()
    assert lines == ["3.wav: torn", "4.wav: gone"]


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_feature_cache_with_a_bad_clip_reports_it_once(corpus, damage):
    damage_clip_3(corpus, damage)
    encoder = small_model("mimi_full").encoder
    extractor = AudioLMFeatureExtractor.from_encoder(encoder, 10.0)
    cache = FeatureCache(corpus / "cache", encoder, extractor)
    clips = [str(corpus / f"{i}.wav") for i in range(5)]
    faults = []
    assert len(list(cache.encode_together(clips, "", faults.append))) == 4
    assert len(faults) == 1
    assert "3.wav" in faults[0]
    assert [path in cache for path in clips] == [True, True, True, False, True]
    with pytest.raises(BadClip, match=r"3\.wav"):
        cache.encode(clips)


def test_run_with_skip_replaces_the_same_examples_each_time(corpus, tokenizer, monkeypatch):
    options = options_without_evaluation(corpus, tokenizer, *SKIP_OPTIONS)
    clip_3, hidden = corpus / "3.wav", corpus / "hidden.wav"
    runs = []
    for _ in range(2):
        call_after_step(monkeypatch, 2, lambda: clip_3.rename(hidden))
        train(options)
        runs.append((training_losses(corpus), weights(corpus / "out")))
        monkeypatch.undo()
        hidden.rename(clip_3)
    train(options)
    undamaged_losses = training_losses(corpus)
    (losses, tensors), (losses_again, tensors_again) = runs
    assert losses == losses_again
    assert losses != undamaged_losses
    assert losses[:2] == undamaged_losses[:2]
    assert all(torch.equal(value, tensors_again[name]) for name, value in tensors.items())


@pytest.mark.parametrize("workers", ["0", "1"])
def test_run_without_skip_names_the_clip_in_one_line(corpus, tokenizer, monkeypatch, workers):
    options = options_without_evaluation(corpus, tokenizer, "--dataloader_num_workers", workers)
    call_after_step(monkeypatch, 1, lambda: damage_clip_3(corpus, "truncated"))
    with pytest.raises(SystemExit) as stopped:
        train(options)
    message = str(stopped.value)
    assert "3.wav" in message
    assert "\n" not in message
    assert "BadClip" not in message


def test_run_with_a_killed_worker_stops_with_one_line(corpus, tokenizer, monkeypatch):
    options = options_without_evaluation(corpus, tokenizer, "--dataloader_num_workers", "1")
    original, this_process = decoder_module.clip_audio, os.getpid()

    def kill_worker(source, seconds):
        if str(source).endswith("/3.wav") and os.getpid() != this_process:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(source, seconds)

    monkeypatch.setattr(decoder_module, "clip_audio", kill_worker)
    with pytest.raises(SystemExit, match=r"killed by signal|exited unexpectedly") as stopped:
        train(options)
    assert "\n" not in str(stopped.value)


def test_feature_cache_of_a_run_leaves_a_bad_clip_out(corpus, tokenizer, monkeypatch):
    options = options_without_evaluation(
        corpus, tokenizer, *SKIP_OPTIONS, "--feature_cache", str(corpus / "cache")
    )
    original = decoder_module.clip_audio

    def fail(source, seconds):
        if str(source).endswith("/3.wav"):
            raise OSError("Input/output error")
        return original(source, seconds)

    monkeypatch.setattr(decoder_module, "clip_audio", fail)
    strict = options_without_evaluation(corpus, tokenizer)
    train(options)
    assert "3.wav: Input/output error" in (corpus / "out" / "bad_audio.txt").read_text()
    with pytest.raises(SystemExit, match="3\\.wav: Input/output error"):
        train([*strict, "--feature_cache", str(corpus / "other")])


def test_decoder_of_a_clip_that_hangs_raises_in_time_and_decodes_the_next(tmp_path):
    decoder = ClipDecoder(AudioLMFeatureExtractor(24000), timeout=0.3)
    os.mkfifo(tmp_path / "never.wav")
    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(BadClip, match=r"never\.wav: not decoded within 0\.3 s"):
            decoder(str(tmp_path / "never.wav"))
        assert time.monotonic() - start < 5
        assert len(decoder((clip(0.5), 24000))) == 12000


def test_decoder_after_a_fork_decodes():
    decoder = ClipDecoder(AudioLMFeatureExtractor(24000), timeout=10)
    decoder((clip(0.5), 24000))
    child = os.fork()
    if child == 0:
        os._exit(0 if len(decoder((clip(0.5), 24000))) == 12000 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_bad_clip_from_a_worker_has_one_line():
    traceback = (
        "Caught BadClip in DataLoader worker process 0.\nOriginal Traceback:\n"
        '  File "decoder.py", line 1\naudiolm.data.decoder.BadClip: 3.wav: empty\n'
    )
    assert str(BadClip(traceback)) == "3.wav: empty"


def test_replace_bad_examples_takes_the_next_valid_one():
    examples = [{"number": i} for i in range(4)]
    replaced = replace_bad_examples(examples, {1: "", 3: ""})
    assert [example["number"] for example in replaced] == [0, 2, 2, 0]


def test_replace_bad_examples_without_a_valid_one_raises():
    with pytest.raises(BadClip, match="no clip of a batch"):
        replace_bad_examples([{}] * 4, dict.fromkeys(range(4), "x"))
