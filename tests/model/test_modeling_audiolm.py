import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from support.builders import ARMS, Waits, clip, small_model

from audiolm import (
    AudioLMConfig,
    AudioLMFeatureExtractor,
    AudioLMForConditionalGeneration,
    AudioLMProcessor,
    modeling_audiolm,
)
from audiolm.data import ReasonAQACollator
from audiolm.encoders_audiolm import MimiEncoder

QUESTIONS = ["What is heard?", "Which is louder, the first or the second?"]


def batch(processor, **kwargs):
    """Two rows, the second with two clips, of three lengths."""
    audio = [[(clip(1.3), 24000)], [(clip(0.4, seed=1), 24000), (clip(2.1, seed=2), 24000)]]
    return processor(text=QUESTIONS, audio=audio, **kwargs)


def test_batch_equals_rows(parts):
    _, model, processor = parts
    together = model(**batch(processor)).logits[:, -1]
    one = model(**processor(text=QUESTIONS[0], audio=[(clip(1.3), 24000)])).logits[0, -1]
    two = model(
        **processor(
            text=QUESTIONS[1], audio=[(clip(0.4, seed=1), 24000), (clip(2.1, seed=2), 24000)]
        )
    ).logits[0, -1]
    assert torch.allclose(together, torch.stack([one, two]), atol=1e-4)


def test_the_audio_reaches_the_answer(parts):
    _, model, processor = parts
    logits = [
        model(**processor(text="?", audio=[(clip(1, seed=s), 24000)])).logits[0, -1] for s in (0, 5)
    ]
    assert (logits[0] - logits[1]).abs().max() > 1e-5


def test_frozen(parts):
    arm, _, processor = parts
    model = small_model(arm)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    assert not any(m.training for m in model.encoder.modules())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(**batch(processor, answer=["a dog", "the first"])).loss.backward()
    optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {f"mapper.linear_{i}.{p}" for i in (1, 2) for p in ("weight", "bias")}


def test_training_mode_is_set_once_and_again_where_something_changed(monkeypatch):
    """The Trainer asks before each step; whatever a caller changes in between is still put right."""
    model, whole = small_model("mimi_full"), torch.nn.Module.train
    calls = []
    monkeypatch.setattr(
        torch.nn.Module, "train", lambda self, mode=True: (calls.append(self), whole(self, mode))[1]
    )
    model.train()
    assert calls and not model.encoder.training and model.language_model.training
    calls.clear()
    assert model.train() is model and not calls
    for part, mode in ((model.encoder, True), (model.language_model, False)):
        part.train(mode)
        model.train()
        assert not model.encoder.training and model.language_model.training
    assert not any(p.requires_grad for p in model.language_model.parameters())
    model.config.freeze_lm = False
    model.train()
    assert all(p.requires_grad for p in model.language_model.parameters())
    model.eval()
    assert not any(m.training for m in model.modules())
    assert model.train().language_model.training and not model.encoder.training


def test_answer_only_loss_equals_full(parts):
    _, model, processor = parts
    inputs = batch(processor, answer=["a dog", "the first one"])
    full = model.eval()(**inputs)
    answer_only = model.train()(**inputs)
    model.eval()
    labels = int((inputs["labels"] != -100).sum())
    assert full.logits.shape[:2] == inputs["labels"].shape and answer_only.logits is None
    assert torch.allclose(full.loss, answer_only.loss, atol=1e-5)
    halves = model(**inputs, num_items_in_batch=2 * labels).loss
    assert torch.allclose(halves, full.loss / 2, atol=1e-5)
    assert model(**inputs, logits_to_keep=1).logits.shape[1] == 1


@pytest.mark.parametrize("freeze_lm", [True, False])
def test_logits_in_parts_change_nothing(monkeypatch, tokenizer, freeze_lm):
    """Loss and gradients, also of the head that the embeddings share; and no more logits at once than said."""
    model = small_model("mimi_semantic", freeze_lm=freeze_lm).train()
    inputs = batch(
        AudioLMProcessor.from_config(model.config, tokenizer), answer=["a dog", "the first one"]
    )
    labels, found, sizes = int((inputs["labels"] != -100).sum()), [], []
    model.get_output_embeddings().register_forward_hook(
        lambda module, given, logits: sizes.append(len(logits))
    )
    for at_once in (labels, 3):
        monkeypatch.setattr(modeling_audiolm, "LABELS_AT_ONCE", at_once)
        loss = model(**inputs).loss
        loss.backward()
        found.append(
            [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        )
        model.zero_grad()
    assert sizes[0] == labels and max(sizes[1:]) == 3 and len(found[0]) == len(found[1]) > 4
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*found))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to wait for")
@pytest.mark.parametrize("cached", [True, False])
def test_a_step_does_not_wait_for_the_gpu(tokenizer, cached):
    for arm in ARMS:
        model = small_model(arm).cuda().train()
        model.encoder.move_conv_sizes_to_cpu()
        processor = AudioLMProcessor.from_config(model.config, tokenizer)
        sounds = {str(i): (clip(1 + i, seed=i), 24000) for i in range(2)}
        if cached:
            sounds = {name: encode(model, processor, sound) for name, sound in sounds.items()}
        rows = [
            {"input": "What?", "answer": f"a {i}", "audio": [str(i) if cached else sounds[str(i)]]}
            for i in range(2)
        ]
        made = ReasonAQACollator(processor, features=sounds if cached else None)(rows)
        made = {
            name: value.cuda() if torch.is_tensor(value) else value for name, value in made.items()
        }
        for _ in range(2):  # the first one warms up
            with torch.autocast("cuda", torch.bfloat16):
                model(**made).loss.backward()
            torch.cuda.set_sync_debug_mode(
                "error" if cached or arm == "htsat" else "warn"
            )  # Mimi's encoder asks once
        torch.cuda.set_sync_debug_mode("default")


def encode(model, processor, sound):
    audio = processor.feature_extractor.load(sound)[None].to(model.device)
    return getattr(model.encoder, "codes", model.encoder.encode)(audio)[0].cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load(parts, tmp_path, dtype):
    arm, _, processor = parts
    small_model(arm).save_pretrained(tmp_path / "first")
    model = AudioLMForConditionalGeneration.from_pretrained(tmp_path / "first", dtype=dtype)
    assert {p.dtype for p in small_model(arm).to(dtype).encoder.parameters()} == {torch.float32}
    assert {p.dtype for p in model.encoder.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path)
    loaded = AudioLMForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    state = loaded.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value) and state[key].dtype == value.dtype, key
    assert torch.equal(model(**batch(processor)).logits, loaded(**batch(processor)).logits)
    assert not any(p.requires_grad for p in loaded.encoder.parameters())


def test_loads_in_a_fresh_process(tokenizer, tmp_path):
    for arm in ARMS:
        model = small_model(arm)
        processor = AudioLMProcessor.from_config(model.config, tokenizer)
        model.save_pretrained(tmp_path / arm)
        processor.save_pretrained(tmp_path / arm)
        torch.save(model(**batch(processor)).logits, tmp_path / arm / "logits.pt")
        torch.save(dict(batch(processor)), tmp_path / arm / "inputs.pt")
    code = """
import os, torch, transformers as t, numpy as np, sys
for arm in sys.argv[1:]:
    os.chdir(arm)
    for auto in (t.AutoModel, t.AutoModelForCausalLM, t.AutoModelForMultimodalLM):
        m = auto.from_pretrained(".", trust_remote_code=True)
        assert torch.equal(m(**torch.load("inputs.pt")).logits, torch.load("logits.pt")), (arm, auto)
    p = t.AutoProcessor.from_pretrained(".", trust_remote_code=True)
    again = p(text="What is heard?", audio=[(np.ones(2400, "float32") / 9, 24000)])
    assert m.generate(**again, max_new_tokens=3).shape[1] > again["input_ids"].shape[1]
    pipe = t.pipeline("any-to-any", model=".", trust_remote_code=True)
    content = [{"type": "audio", "audio": np.ones(2400, "float32") / 9}, {"type": "text", "text": "What?"}]
    talk = [{"role": "user", "content": content}]
    print("PIPE", pipe(talk, max_new_tokens=3, return_full_text=False))
    os.chdir("..")
assert not any(k == "audiolm" or k.startswith(("msclap", "moshi")) for k in sys.modules)
"""
    env = {
        "HF_HOME": str(tmp_path / "home"),
        "PATH": "",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.environ["PYTHONPATH"],
    }
    run = subprocess.run(
        [sys.executable, "-c", code, *ARMS], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert run.returncode == 0 and run.stdout.count("PIPE") == len(ARMS), run.stderr[-3000:]


def test_generate(parts):
    _, model, processor = parts
    inputs = batch(processor)
    options = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [2, 3]}
    greedy = model.generate(**inputs, **options)
    assert torch.equal(greedy, model.generate(**inputs, **options, use_cache=False))
    beams = model.generate(**inputs, **options, num_beams=3)
    alone = model.generate(
        **processor(
            text=QUESTIONS[1], audio=[(clip(0.4, seed=1), 24000), (clip(2.1, seed=2), 24000)]
        ),
        **options,
        num_beams=3,
    )
    assert torch.equal(beams[1, -6:], alone[0, -6:])
    assert (
        len(model.generate(**inputs, max_new_tokens=2, do_sample=True, num_return_sequences=2)) == 4
    )


def test_count_mismatch_names_both_numbers(parts):
    _, model, processor = parts
    inputs = batch(processor)
    inputs["input_ids"][0, inputs["input_ids"][0].eq(3).nonzero()[0]] = 7
    with pytest.raises(
        ValueError, match=r"\d+ audio placeholders stand in input_ids, but the audio has \d+ frames"
    ):
        model(**inputs)


def test_autocast_changes_no_feature(parts):
    _, model, processor = parts
    inputs = batch(processor)
    args = inputs["input_values"], inputs["input_values_mask"].sum(1).tolist()
    plain = model.encoder.encode(*args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.encoder.encode(*args), plain)
    if isinstance(model.encoder, MimiEncoder):
        assert len(model.encoder.codes(*args)[:, 0].unique()) > 4


def test_encoders_use_full_precision(parts, monkeypatch):
    """No TF32 inside an encoder whatever is set outside, and what was set outside comes back."""
    _, model, _ = parts
    backends = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    inside, encode = [], type(model.encoder)._encode

    def precisions():
        return [backend.fp32_precision for backend in backends]

    monkeypatch.setattr(
        type(model.encoder), "_encode", lambda *args: inside.append(precisions()) or encode(*args)
    )
    before = precisions()
    try:
        for backend in backends:
            backend.fp32_precision = "tf32"
        model.encoder.encode(torch.from_numpy(clip(0.5, model.encoder.sample_rate))[None])
        assert inside == [["ieee"] * 3] and precisions() == ["tf32"] * 3
    finally:
        for backend, value in zip(backends, before):
            backend.fp32_precision = value


def test_config():
    assert AudioLMConfig().encoder_type == "htsat"
    with pytest.raises(ValueError, match="htsat, mimi_semantic, mimi_full"):
        AudioLMConfig("whisper")
    with pytest.raises(ValueError, match="needs a 'mimi' encoder_config"):
        AudioLMConfig("mimi_full", {"model_type": "clap_audio_model"})


def test_features_or_codes_in_place_of_audio(parts):
    _, model, processor = parts
    inputs = batch(processor)
    expected, tokens = (
        model(**inputs).logits,
        model.generate(**inputs, max_new_tokens=3, num_beams=2),
    )
    values, lengths = inputs.pop("input_values"), inputs.pop("input_values_mask").sum(1).tolist()
    inputs["input_features_mask"] = model.encoder.frame_mask(lengths)
    kept = [model.encoder.encode(values, lengths)]
    if isinstance(model.encoder, MimiEncoder):
        kept.append(model.encoder.codes(values, lengths).to(torch.int16))
    for features in kept:
        assert torch.equal(model(**inputs, input_features=features).logits, expected)
        assert torch.equal(
            model.generate(**inputs, input_features=features, max_new_tokens=3, num_beams=2), tokens
        )


# What asks values of the CPU: the mask of frames, which is made there, and Mimi's sizes, which `latents` keeps there.
ON_THE_HOST = {
    f"aten.{of}.default in {name}, {function}"
    for of, name, function in [
        ("nonzero", "modeling_audiolm.py", "get_audio_features"),
        ("_local_scalar_dense", "modeling_mimi.py", "_pad1d"),
    ]
}
# Mimi's transformer looks for packed rows: once a batch, where no features are given.
IN_MIMI = {"aten._local_scalar_dense.default in masking_utils.py, find_packed_sequence_indices"}


def test_a_training_step_does_not_wait_for_the_gpu(parts, monkeypatch):
    _, model, processor = parts
    lists, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(
        torch.Tensor, "tolist", lambda tensor: lists.append(tensor.shape) or tolist(tensor)
    )
    rows = [
        {"input": q, "answer": "yes", "audio": [(clip(1 + i), 24000)]}
        for i, q in enumerate(QUESTIONS)
    ]
    made = ReasonAQACollator(processor)(rows)
    kept = {**made, "num_frames": [model.encoder.num_frames(n) for n in made["num_samples"]]}
    kept["input_features"] = model.encoder.encode(kept.pop("input_values"), kept.pop("num_samples"))
    lists.clear()
    losses = []
    for inputs in (made, kept):
        with Waits() as waits:
            loss = model.train()(**inputs, num_items_in_batch=torch.tensor(4)).loss
            loss.backward()
        model.eval().zero_grad()
        losses.append(loss)
        encodes = inputs is made and isinstance(model.encoder, MimiEncoder)
        assert waits.found - ON_THE_HOST == (IN_MIMI if encodes else set()) and not lists
    assert torch.equal(*losses)
    sizes = [
        b
        for m in model.encoder.modules()
        for b in ("stride", "kernel_size", "padding_total")
        if b in m._buffers
    ]
    assert not sizes
    del made["label_index"], made["audio_index"]
    lengths = made.pop("num_samples")
    made["input_values_mask"] = (
        torch.arange(made["input_values"].shape[1])[None] < torch.tensor(lengths)[:, None]
    )
    made["attention_mask"] = (made["input_ids"] != processor.tokenizer.pad_token_id).long()
    with Waits() as waits:
        again = model.train()(**made, num_items_in_batch=4).loss
    assert waits.found - ON_THE_HOST - IN_MIMI and lists  # so the check above can fail
    assert torch.equal(again, loss)
    model.eval()


def test_any_audio_is_heard(parts):
    """Silence, one sample, many channels, either order of the axes; a text cannot inject a placeholder."""
    _, model, processor = parts
    extractor = processor.feature_extractor
    for audio in (torch.zeros(9000).numpy(), torch.ones(1).numpy()):
        assert (
            model(**processor(text="<audio> <|im_end|> ?", audio=[audio])).logits.isfinite().all()
        )
    mono = clip(0.5)
    six = torch.tensor(mono).repeat(6, 1).numpy()
    for shape in (six, six.T):
        assert torch.allclose(
            extractor.load((shape, 24000)), extractor.load((mono, 24000)), atol=1e-6
        )
    ids = processor(text="<audio>", audio=[(mono, 24000)])["input_ids"]
    assert int((ids == 3).sum()) == extractor.num_frames(len(extractor.load((mono, 24000))))


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_32"])
def test_wav_is_read_without_soundfile(subtype, tmp_path, monkeypatch):
    sound = np.stack([clip(1.5), clip(1.5, seed=1)], 1)
    soundfile.write(tmp_path / "a.wav", sound, 16000, subtype=subtype)
    extractor = AudioLMFeatureExtractor(max_audio_seconds=1.0)
    with_it = extractor.load(tmp_path / "a.wav")
    monkeypatch.setattr("audiolm.processing_audiolm.soundfile", None)
    assert torch.equal(extractor.load(tmp_path / "a.wav"), with_it) and len(with_it) == 24000
    for name, options in {
        "b.flac": {},
        "c.wav": {"subtype": "FLOAT"},
        "d.wav": {"subtype": "PCM_24"},
    }.items():
        soundfile.write(tmp_path / name, sound, 16000, **options)
        with pytest.raises(ImportError, match=rf"{name}: reading it needs the package soundfile"):
            extractor.load(tmp_path / name)
