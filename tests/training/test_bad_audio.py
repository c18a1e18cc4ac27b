"""Audio that turns bad while a run goes on: files that vanish, are overwritten, hang, or kill the process that decodes them."""

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.builders import arguments, clip, small_model, weights

from audiolm.data import decoder as decoding
from audiolm.data.decoder import BadClip, ClipDecoder, replaced
from audiolm.data.features import FeatureCache
from audiolm.processing_audiolm import AudioLMFeatureExtractor
from audiolm.training.callbacks import BadAudio, StopOnSignal
from audiolm.training.train import main as train

SKIP = [
    "--on_bad_audio",
    "skip",
    "--max_bad_audio",
    "0.2",
    "--max_steps",
    "12",
    "--eval_strategy",
    "no",
    "--save_steps",
    "4",
    "--num_stats_clips",
    "2",
]


def words_of(corpus, tokenizer, *more) -> list[str]:
    """Arguments without an evaluation, whose clips, here those of training, would be encoded before."""
    words = arguments(corpus, "mimi_semantic", tokenizer, *more)
    at = words.index("--validation_file")
    return words[:at] + words[at + 2 :]


def at_step(monkeypatch, step: int, happens) -> None:
    """Something that is done to the files as soon as a step is over."""
    inner = StopOnSignal.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            happens()
        inner(self, args, state, control, **kwargs)

    monkeypatch.setattr(StopOnSignal, "on_step_end", on_step_end)


def losses(corpus) -> list[float]:
    log = json.loads((corpus / "out" / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


def spoil(corpus: Path, kind: str) -> None:
    file = corpus / "3.wav"
    content = file.read_bytes()
    file.unlink()
    if kind == "torn":
        file.write_bytes(content[:20])
    if kind == "hanging":
        os.mkfifo(file)  # opening it waits for whoever would write, as a network mount that is gone


@pytest.mark.parametrize(
    "kind, says",
    [("gone", "3.wav"), ("torn", "3.wav"), ("hanging", "3.wav: not decoded within 1 s")],
)
def test_a_clip_that_turns_bad_is_replaced_named_and_counted(
    corpus, tokenizer, monkeypatch, capsys, caplog, kind, says
):
    words = words_of(corpus, tokenizer, *SKIP, "--audio_timeout", "1")
    at_step(monkeypatch, 2, lambda: spoil(corpus, kind))
    train(words)
    assert losses(corpus)[11] > 0
    listed = (corpus / "out" / "bad_audio.txt").read_text().splitlines()
    assert len(listed) == 1 and says in listed[0]
    assert (
        sum(
            "another row of its batch takes its place" in record.message
            for record in caplog.records
        )
        == 1
    )
    assert "rows were replaced, since 1 clips turned bad" in capsys.readouterr().err


def test_processes_count_a_bad_clip_once(tmp_path, monkeypatch):
    bad, other = BadAudio(1, str(tmp_path)), BadAudio(1, str(tmp_path))
    for guard, fault in ((bad, "3.wav: torn"), (other, "3.wav: torn"), (bad, "4.wav: gone")):
        guard.found(fault)
    bad("3.wav: torn")
    assert (tmp_path / "bad_audio.txt").read_text().splitlines() == ["3.wav: torn", "4.wav: gone"]

    def gather(of_all, mine):
        of_all[:] = [mine, list(other.faults)]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    args, state = (
        SimpleNamespace(world_size=2, device=torch.device("cuda")),
        SimpleNamespace(global_step=10),
    )
    control = SimpleNamespace(should_log=False, should_save=False, should_training_stop=False)
    bad.on_step_end(args, state, control)
    assert (
        bad.clips == 2
        and control.should_training_stop
        and str(bad).startswith("1 rows were replaced, since 2 clips")
    )
    state.global_step = 11  # on a GPU nothing is asked then
    bad.on_step_end(args, state, control)
    assert bad.clips == 0


@pytest.mark.parametrize("kind", ["gone", "torn"])
def test_a_bad_clip_is_told_of_once_where_a_cache_is_filled(corpus, kind):
    spoil(corpus, kind)
    encoder, told = small_model("mimi_full").encoder, []
    cache = FeatureCache(
        corpus / "cache", encoder, AudioLMFeatureExtractor.of_encoder(encoder, 10.0)
    )
    clips = [str(corpus / f"{i}.wav") for i in range(5)]
    cache.fill_together(clips, told.append)
    assert (
        len(told) == 1
        and "3.wav" in told[0]
        and [path in cache for path in clips] == [True] * 3 + [False, True]
    )
    with pytest.raises(BadClip, match=r"3\.wav"):
        cache.fill(clips)


def test_what_takes_a_rows_place_is_the_same_each_time(corpus, tokenizer, monkeypatch):
    words = words_of(corpus, tokenizer, *SKIP)
    (corpus / "kept").mkdir()
    found = []
    for _ in range(2):
        at_step(monkeypatch, 2, lambda: (corpus / "3.wav").rename(corpus / "kept" / "3.wav"))
        train(words)
        found.append((losses(corpus), weights(corpus / "out")))
        monkeypatch.undo()
        (corpus / "kept" / "3.wav").rename(corpus / "3.wav")
    train(words)  # with nothing wrong
    assert found[0][0] == found[1][0] != losses(corpus)
    assert found[0][0][:2] == losses(corpus)[:2]
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())


def test_too_many_stop_the_run_with_its_step_saved(corpus, tokenizer, monkeypatch):
    words = words_of(corpus, tokenizer, *SKIP)
    at_step(monkeypatch, 2, lambda: [(corpus / f"{i}.wav").unlink() for i in (3, 5, 7, 9)])
    with pytest.raises(
        SystemExit,
        match=r"4 clips turned bad, more than --max_bad_audio 0.2 of 16; step \d+ is saved",
    ):
        train(words)
    step = max(int(folder.name.split("-")[1]) for folder in (corpus / "out").glob("checkpoint-*"))
    assert 2 < step < 12 and (corpus / "out" / f"checkpoint-{step}" / "model.safetensors").exists()
    assert len((corpus / "out" / "bad_audio.txt").read_text().splitlines()) == 4


@pytest.mark.parametrize("workers", ["0", "1"])
def test_without_skip_the_clip_is_named_in_one_line(corpus, tokenizer, monkeypatch, workers):
    words = words_of(corpus, tokenizer, "--dataloader_num_workers", workers)
    at_step(monkeypatch, 1, lambda: spoil(corpus, "torn"))
    with pytest.raises(SystemExit) as stopped:
        train(words)
    assert "3.wav" in str(stopped.value) and "\n" not in str(stopped.value)


def test_a_process_that_dies_is_named_with_its_file(corpus, tokenizer, monkeypatch):
    words = words_of(corpus, tokenizer, "--dataloader_num_workers", "1")
    inner, here = decoding.clip_audio, os.getpid()

    def deadly(source, seconds):
        if str(source).endswith("/3.wav") and os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(source, seconds)

    monkeypatch.setattr(decoding, "clip_audio", deadly)
    with pytest.raises(
        SystemExit, match=r"(killed by signal|exited unexpectedly).*; it decoded .*/3\.wav$"
    ):
        train(words)


def test_a_bad_clip_is_left_out_of_the_cache(corpus, tokenizer, monkeypatch, caplog):
    words = words_of(corpus, tokenizer, *SKIP, "--feature_cache", str(corpus / "cache"))
    inner = decoding.clip_audio

    def bad(source, seconds):
        if str(source).endswith("/3.wav"):
            raise OSError("Input/output error")
        return inner(source, seconds)

    monkeypatch.setattr(decoding, "clip_audio", bad)
    train(words)
    assert "3.wav: Input/output error" in (corpus / "out" / "bad_audio.txt").read_text()
    with pytest.raises(SystemExit, match="3\\.wav: Input/output error"):
        train([*words, "--on_bad_audio", "error", "--feature_cache", str(corpus / "other")])


def test_a_decoder_that_hangs_is_left_behind_and_the_next_clip_is_decoded(tmp_path):
    decoder = ClipDecoder(AudioLMFeatureExtractor(24000), timeout=0.3)
    os.mkfifo(tmp_path / "never.wav")
    sound = (clip(0.5), 24000)
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(BadClip, match=r"never\.wav: not decoded within 0\.3 s"):
            decoder(str(tmp_path / "never.wav"))
        assert time.monotonic() - began < 5
        assert len(decoder(sound)) == 12000


def test_the_next_sound_row_takes_the_place():
    rows = [{"row": i} for i in range(4)]
    assert [row["row"] for row in replaced(rows, {1: "", 3: ""})] == [0, 2, 2, 0]
    with pytest.raises(BadClip, match="no clip of a batch"):
        replaced(rows, dict.fromkeys(range(4), "x"))
