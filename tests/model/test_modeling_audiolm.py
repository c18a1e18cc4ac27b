"""The model: the audio reaches the answer, what is trained, the loss, saving, generation."""

import os
import subprocess
import sys

import pytest
import torch
from support.builders import ARMS, SMALL_MIMI, TEXT, Waits, clip, small_model
from support.small_encoders import PAIR, noise_clips, small_encoder
from torch import nn

from audiolm import (
    AudioLMConfig,
    AudioLMForConditionalGeneration,
    AudioLMProcessor,
    modeling_audiolm,
)
from audiolm.data.collator import ReasonAQACollator
from audiolm.data.features import feature_statistics
from audiolm.encoders_audiolm import MimiEncoder
from audiolm.modeling_audiolm import AudioMapper, pool_to_length

QUESTIONS = ["What is heard?", "Which is louder, the first or the second?"]


def two_examples(processor, **kwargs):
    """Two examples, the second with two clips, of three lengths."""
    audio = [[(clip(1.3), 24000)], [(clip(0.4, seed=1), 24000), (clip(2.1, seed=2), 24000)]]
    return processor(text=QUESTIONS, audio=audio, **kwargs)


def test_forward_of_a_batch_equals_single_examples(parts):
    _, model, processor = parts
    together = model(**two_examples(processor)).logits[:, -1]
    clips = [(clip(0.4, seed=1), 24000), (clip(2.1, seed=2), 24000)]
    first = model(**processor(text=QUESTIONS[0], audio=[(clip(1.3), 24000)])).logits[0, -1]
    second = model(**processor(text=QUESTIONS[1], audio=clips)).logits[0, -1]
    assert torch.allclose(together, torch.stack([first, second]), atol=1e-4)


def test_forward_with_other_audio_gives_other_logits(parts):
    _, model, processor = parts
    logits = [
        model(**processor(text="?", audio=[(clip(1, seed=s), 24000)])).logits[0, -1] for s in (0, 5)
    ]
    assert (logits[0] - logits[1]).abs().max() > 1e-5


def test_training_step_changes_only_the_mapper(parts):
    arm, _, processor = parts
    model = small_model(arm)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    assert not any(m.training for m in model.encoder.modules())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(**two_examples(processor, answer=["a dog", "the first"])).loss.backward()
    optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {f"mapper.linear_{i}.{p}" for i in (1, 2) for p in ("weight", "bias")}


def test_train_visits_modules_only_where_something_changed(monkeypatch):
    """The Trainer calls it before each step. What a caller changes in between is set right."""
    model, original = small_model("mimi_full"), torch.nn.Module.train
    calls = []
    monkeypatch.setattr(
        torch.nn.Module,
        "train",
        lambda self, mode=True: (calls.append(self), original(self, mode))[1],
    )
    model.train()
    assert calls
    assert not model.encoder.training
    assert model.language_model.training
    calls.clear()
    assert model.train() is model
    assert not calls
    for part, mode in ((model.encoder, True), (model.language_model, False)):
        part.train(mode)
        model.train()
        assert not model.encoder.training
        assert model.language_model.training
    assert not any(p.requires_grad for p in model.language_model.parameters())
    model.config.freeze_lm = False
    model.train()
    assert all(p.requires_grad for p in model.language_model.parameters())
    model.eval()
    assert not any(m.training for m in model.modules())
    assert model.train().language_model.training
    assert not model.encoder.training


def test_loss_in_training_equals_that_of_all_logits(parts):
    _, model, processor = parts
    inputs = two_examples(processor, answer=["a dog", "the first one"])
    full = model.eval()(**inputs)
    answer_only = model.train()(**inputs)
    model.eval()
    labels = int((inputs["labels"] != -100).sum())
    assert full.logits.shape[:2] == inputs["labels"].shape
    assert answer_only.logits is None
    assert torch.allclose(full.loss, answer_only.loss, atol=1e-5)
    halves = model(**inputs, num_items_in_batch=2 * labels).loss
    assert torch.allclose(halves, full.loss / 2, atol=1e-5)
    assert model(**inputs, logits_to_keep=1).logits.shape[1] == 1


@pytest.mark.parametrize("freeze_lm", [True, False])
def test_loss_in_chunks_changes_no_gradient(monkeypatch, tokenizer, freeze_lm):
    """Also not that of the head, which the embeddings share."""
    model = small_model("mimi_semantic", freeze_lm=freeze_lm).train()
    processor = AudioLMProcessor.from_config(model.config, tokenizer)
    inputs = two_examples(processor, answer=["a dog", "the first one"])
    num_labels = int((inputs["labels"] != -100).sum())
    results, sizes = [], []
    model.get_output_embeddings().register_forward_hook(
        lambda module, args, logits: sizes.append(len(logits))
    )
    for chunk_size in (num_labels, 3):
        monkeypatch.setattr(modeling_audiolm, "LOSS_CHUNK_SIZE", chunk_size)
        loss = model(**inputs).loss
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append([loss.detach(), *gradients])
        model.zero_grad()
    assert sizes[0] == num_labels
    assert max(sizes[1:]) == 3
    assert len(results[0]) > 4
    for value, chunked in zip(*results, strict=True):
        assert torch.allclose(value, chunked, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to wait for")
@pytest.mark.parametrize("is_encoded", [True, False])
@pytest.mark.parametrize("arm", ARMS)
def test_training_step_on_a_gpu_does_not_synchronise(arm, tokenizer, is_encoded):
    model = small_model(arm).cuda().train()
    model.encoder.move_conv_sizes_to_cpu()
    processor = AudioLMProcessor.from_config(model.config, tokenizer)
    sounds = {str(i): (clip(1 + i, seed=i), 24000) for i in range(2)}
    if is_encoded:
        sounds = {name: encode(model, processor, sound) for name, sound in sounds.items()}
    rows = [
        {"input": "What?", "answer": f"a {name}", "audio": [name if is_encoded else sound]}
        for name, sound in sounds.items()
    ]
    batch = ReasonAQACollator(processor, features=sounds if is_encoded else None)(rows)
    for name, value in batch.items():
        if torch.is_tensor(value):
            batch[name] = value.cuda()
    for _ in range(2):  # The first one warms up.
        with torch.autocast("cuda", torch.bfloat16):
            model(**batch).loss.backward()
        # Mimi's encoder synchronises once.
        is_strict = is_encoded or arm == "htsat"
        torch.cuda.set_sync_debug_mode("error" if is_strict else "warn")
    torch.cuda.set_sync_debug_mode("default")


def encode(model, processor, sound):
    audio = processor.feature_extractor.load(sound)[None].to(model.device)
    return getattr(model.encoder, "codes", model.encoder.encode)(audio)[0].cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_model_reloads_with_equal_logits(parts, tmp_path, dtype):
    arm, _, processor = parts
    small_model(arm).save_pretrained(tmp_path / "first")
    model = AudioLMForConditionalGeneration.from_pretrained(tmp_path / "first", dtype=dtype)
    assert {p.dtype for p in small_model(arm).to(dtype).encoder.parameters()} == {torch.float32}
    assert {p.dtype for p in model.encoder.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path)
    loaded = AudioLMForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    state = loaded.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value), key
        assert state[key].dtype == value.dtype, key
    assert torch.equal(
        model(**two_examples(processor)).logits, loaded(**two_examples(processor)).logits
    )
    assert not any(p.requires_grad for p in loaded.encoder.parameters())


def test_saved_model_loads_in_a_process_without_the_package(tokenizer, tmp_path):
    for arm in ARMS:
        model = small_model(arm)
        processor = AudioLMProcessor.from_config(model.config, tokenizer)
        model.save_pretrained(tmp_path / arm)
        processor.save_pretrained(tmp_path / arm)
        torch.save(model(**two_examples(processor)).logits, tmp_path / arm / "logits.pt")
        torch.save(dict(two_examples(processor)), tmp_path / arm / "inputs.pt")
    code = """
import os, torch, transformers as t, numpy as np, sys
for arm in sys.argv[1:]:
    os.chdir(arm)
    for auto in (t.AutoModel, t.AutoModelForCausalLM, t.AutoModelForMultimodalLM):
        m = auto.from_pretrained(".", trust_remote_code=True)
        logits = m(**torch.load("inputs.pt")).logits
        assert torch.equal(logits, torch.load("logits.pt")), (arm, auto)
    p = t.AutoProcessor.from_pretrained(".", trust_remote_code=True)
    again = p(text="What is heard?", audio=[(np.ones(2400, "float32") / 9, 24000)])
    assert m.generate(**again, max_new_tokens=3).shape[1] > again["input_ids"].shape[1]
    pipe = t.pipeline("any-to-any", model=".", trust_remote_code=True)
    sound = {"type": "audio", "audio": np.ones(2400, "float32") / 9}
    talk = [{"role": "user", "content": [sound, {"type": "text", "text": "What?"}]}]
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
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("PIPE") == len(ARMS)


def test_generate_with_beams_equals_a_single_example(parts):
    _, model, processor = parts
    inputs = two_examples(processor)
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


def test_forward_with_too_few_placeholders_names_both_numbers(parts):
    _, model, processor = parts
    inputs = two_examples(processor)
    inputs["input_ids"][0, inputs["input_ids"][0].eq(3).nonzero()[0]] = 7
    with pytest.raises(
        ValueError, match=r"the input has \d+ audio placeholders, but the audio has \d+ frames"
    ):
        model(**inputs)


def test_encode_under_autocast_changes_no_feature(parts):
    _, model, processor = parts
    inputs = two_examples(processor)
    args = inputs["input_values"], inputs["input_values_mask"].sum(1).tolist()
    plain = model.encoder.encode(*args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.encoder.encode(*args), plain)
    if isinstance(model.encoder, MimiEncoder):
        assert len(model.encoder.codes(*args)[:, 0].unique()) > 4


def test_encode_uses_no_tf32_and_restores_the_settings(parts, monkeypatch):
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
        assert inside == [["ieee"] * 3]
        assert precisions() == ["tf32"] * 3
    finally:
        for backend, value in zip(backends, before):
            backend.fp32_precision = value


def test_forward_of_features_or_codes_equals_that_of_audio(parts):
    _, model, processor = parts
    inputs = two_examples(processor)
    expected, tokens = (
        model(**inputs).logits,
        model.generate(**inputs, max_new_tokens=3, num_beams=2),
    )
    values, lengths = inputs.pop("input_values"), inputs.pop("input_values_mask").sum(1).tolist()
    inputs["input_features_mask"] = model.encoder.frame_mask(lengths)
    encoded = [model.encoder.encode(values, lengths)]
    if isinstance(model.encoder, MimiEncoder):
        encoded.append(model.encoder.codes(values, lengths).to(torch.int16))
    for features in encoded:
        assert torch.equal(model(**inputs, input_features=features).logits, expected)
        assert torch.equal(
            model.generate(**inputs, input_features=features, max_new_tokens=3, num_beams=2), tokens
        )


# Values of the CPU alone: the mask of frames is made there, and `latents` moves Mimi's sizes there.
ON_THE_HOST = {
    "aten.nonzero.default in modeling_audiolm.py, get_audio_features",
    "aten._local_scalar_dense.default in modeling_mimi.py, _pad1d",
}
# Mimi's transformer looks for packed sequences, once a batch.
IN_MIMI = {"aten._local_scalar_dense.default in masking_utils.py, find_packed_sequence_indices"}
CONV_SIZES = ("stride", "kernel_size", "padding_total")


@pytest.fixture
def lists(monkeypatch):
    """The shapes of tensors that became lists."""
    shapes, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(
        torch.Tensor, "tolist", lambda tensor: shapes.append(tensor.shape) or tolist(tensor)
    )
    return shapes


def training_batch(processor) -> dict:
    rows = [
        {"input": question, "answer": "yes", "audio": [(clip(seconds), 24000)]}
        for seconds, question in enumerate(QUESTIONS, 1)
    ]
    return ReasonAQACollator(processor)(rows)


def encoded_batch(batch: dict, encoder) -> dict:
    """A batch with features in place of audio."""
    batch = {**batch, "num_frames": [encoder.num_frames(n) for n in batch["num_samples"]]}
    batch["input_features"] = encoder.encode(batch.pop("input_values"), batch.pop("num_samples"))
    return batch


@pytest.mark.parametrize("is_encoded", [True, False])
def test_training_step_does_not_wait_for_values(parts, lists, is_encoded):
    _, model, processor = parts
    batch = training_batch(processor)
    if is_encoded:
        batch = encoded_batch(batch, model.encoder)
    lists.clear()
    with Waits() as waits:
        model.train()(**batch, num_items_in_batch=torch.tensor(4)).loss.backward()
    model.eval().zero_grad()
    encodes_with_mimi = not is_encoded and isinstance(model.encoder, MimiEncoder)
    assert waits.places - ON_THE_HOST == (IN_MIMI if encodes_with_mimi else set())
    assert not lists


def test_loss_of_features_equals_that_of_audio(parts):
    _, model, processor = parts
    batch = training_batch(processor)
    loss = model.train()(**batch, num_items_in_batch=torch.tensor(4)).loss
    encoded = encoded_batch(batch, model.encoder)
    encoded_loss = model(**encoded, num_items_in_batch=torch.tensor(4)).loss
    model.eval()
    assert torch.equal(loss, encoded_loss)


def test_encode_moves_the_sizes_of_convolutions_to_the_cpu(parts):
    _, model, processor = parts
    model(**training_batch(processor))
    assert not [
        name for module in model.encoder.modules() for name in CONV_SIZES if name in module._buffers
    ]


def test_training_step_without_indices_waits_for_values_with_equal_loss(parts, lists):
    """So that `test_training_step_does_not_wait_for_values` can fail."""
    _, model, processor = parts
    batch = training_batch(processor)
    loss = model.train()(**batch, num_items_in_batch=torch.tensor(4)).loss
    del batch["label_index"], batch["audio_index"]
    lengths = torch.tensor(batch.pop("num_samples"))[:, None]
    batch["input_values_mask"] = torch.arange(batch["input_values"].shape[1])[None] < lengths
    batch["attention_mask"] = (batch["input_ids"] != processor.tokenizer.pad_token_id).long()
    lists.clear()
    with Waits() as waits:
        loss_without_indices = model(**batch, num_items_in_batch=4).loss
    model.eval()
    assert waits.places - ON_THE_HOST - IN_MIMI
    assert lists
    assert torch.equal(loss_without_indices, loss)


@pytest.fixture(scope="module")
def features():
    return torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(0))


def test_pool_to_length_of_as_many_frames_is_the_identity(features):
    assert torch.equal(pool_to_length(features, [7, 4, 1], 4)[1], features[1, :4])


def test_pool_to_length_of_fewer_frames_repeats_them(features):
    pooled = pool_to_length(features, [7, 4, 1], 4)[2]
    assert torch.equal(pooled, features[2, :1].expand(4, -1))


def test_pool_to_length_of_more_frames_averages_them(features):
    expected = nn.functional.adaptive_avg_pool1d(features[0].T, 4).T
    assert torch.allclose(pool_to_length(features, [7, 4, 1], 4)[0], expected)
    thirds = features[:, :6].unflatten(1, (3, 2)).mean(2)
    assert torch.allclose(pool_to_length(features[:, :6], [6, 6, 6], 3), thirds)
    mean = pool_to_length(features, [7, 7, 7], 1)[:, 0]
    assert torch.allclose(mean, features.mean(1), atol=1e-6)


class PairedClips:
    """Two encoded clips of a pair of encoders, and a mapper with their statistics."""

    def __init__(self):
        torch.manual_seed(0)
        pair = small_encoder(PAIR)
        self.width = pair.first.dim
        self.clips = [pair.encode(noise_clips(pair, seconds)[0])[0] for seconds in (1.3, 0.7)]
        is_primary = [clip[:, : self.width].any(1) for clip in self.clips]
        self.num_primary = int(is_primary[0].sum())
        self.primary = torch.cat(
            [clip[mask, : self.width] for clip, mask in zip(self.clips, is_primary)]
        )
        self.secondary = torch.cat(
            [clip[~mask, self.width :] for clip, mask in zip(self.clips, is_primary)]
        )
        self.mean, self.std = feature_statistics(pair, self.clips)
        self.mapper = AudioMapper(pair.dims, 16, 8)
        self.mapper.feature_mean.copy_(self.mean)
        self.mapper.feature_std.copy_(self.std)


@pytest.fixture
def paired():
    return PairedClips()


def test_feature_statistics_are_those_of_each_kind_of_frames(paired):
    means = [paired.primary.mean(0), paired.secondary.mean(0)]
    deviations = [frames.std(0, correction=0) for frames in (paired.primary, paired.secondary)]
    assert torch.allclose(paired.mean.float(), torch.cat(means), atol=1e-5)
    assert torch.allclose(paired.std.float(), torch.cat(deviations), atol=1e-5)


def test_mapper_maps_primary_frames_by_its_first_layers(paired):
    mapper, width, count = paired.mapper, paired.width, paired.num_primary
    standardised = (paired.primary - paired.mean[:width]) / paired.std[:width]
    expected = mapper.linear_2(mapper.act(mapper.linear_1(standardised.float()[:count])))
    assert torch.allclose(mapper(paired.clips[0])[:count], expected, atol=1e-5)


def test_mapper_maps_secondary_frames_by_its_second_layers(paired):
    mapper = paired.mapper
    mapper(paired.clips[0])[paired.num_primary :].sum().backward()
    assert mapper.linear_1.weight.grad.abs().sum() == 0
    assert mapper.second["linear_1"].weight.grad.abs().sum() > 0


def test_mean_features_keep_the_kind_of_each_frame(paired):
    width, count = paired.width, paired.num_primary
    means = paired.mapper.mean_features(paired.clips[0])
    expected = paired.mean[:width].float().expand(count, -1)
    assert torch.allclose(means[:count, :width], expected)
    assert not means[:count, width:].any()
    assert not means[count:, :width].any()
    assert means[count:, width:].any()


@pytest.fixture
def embedding_model():
    """A model that learns embeddings of Mimi's codes."""
    torch.manual_seed(0)
    config = AudioLMConfig("mimi_full", SMALL_MIMI, TEXT, 32, learn_code_embeddings=True)
    model = AudioLMForConditionalGeneration(config)
    model.encoder = small_encoder("mimi_full")
    return model.train()


def test_code_embeddings_have_a_table_for_each_codebook(embedding_model):
    weight = embedding_model.mapper.code_embeddings.weight
    assert embedding_model.mapper.codebooks == (8, 64)
    assert weight.shape == (512, 32)
    assert weight.std().item() == pytest.approx(8**-0.5, rel=0.05)


def test_code_embeddings_of_codes_equal_those_of_audio(embedding_model):
    encoder = embedding_model.encoder
    waveform, lengths = noise_clips(encoder, 1.2, 0.4)
    codes = encoder.codes(waveform, lengths).to(torch.int16)
    frames = [encoder.num_frames(length) for length in lengths]
    from_audio = embedding_model.get_audio_features(
        input_values=waveform, num_samples=lengths
    ).pooler_output
    from_codes = embedding_model.get_audio_features(
        input_features=codes, num_frames=frames
    ).pooler_output
    assert torch.equal(from_audio, from_codes)


def test_code_embeddings_of_a_frame_are_summed(embedding_model):
    mapper = embedding_model.mapper
    waveform, lengths = noise_clips(embedding_model.encoder, 1.2, 0.4)
    codes = embedding_model.encoder.codes(waveform, lengths)
    tables = mapper.code_embeddings.weight.unflatten(0, (8, 64))
    summed = tables[torch.arange(8), codes[0, :, 0]].sum(0)
    audio = embedding_model.get_audio_features(
        input_values=waveform, num_samples=lengths
    ).pooler_output
    assert torch.allclose(audio[0], mapper(summed[None])[0], atol=1e-6)


def test_code_embeddings_have_gradients_only_where_codes_occur(embedding_model):
    encoder = embedding_model.encoder
    waveform, lengths = noise_clips(encoder, 1.2, 0.4)
    embedding_model.get_audio_features(
        input_values=waveform, num_samples=lengths
    ).pooler_output.sum().backward()
    gradient = embedding_model.mapper.code_embeddings.weight.grad
    has_gradient = gradient.unflatten(0, (8, 64)).any(2)
    codes = encoder.codes(waveform, lengths)
    occurs = torch.zeros(8, 64, dtype=torch.bool)
    for clip_codes, length in zip(codes, lengths):
        for codebook, row in enumerate(clip_codes[:, : encoder.num_frames(length)]):
            occurs[codebook, row] = True
    assert torch.equal(has_gradient, occurs)


@pytest.fixture
def silence_model():
    torch.manual_seed(0)
    config = AudioLMConfig("silence=9", text_config=TEXT, mapper_hidden_size=32)
    return AudioLMForConditionalGeneration(config).eval()


@torch.no_grad()
def audio_tokens_of_two_clips(model) -> torch.Tensor:
    waveform, lengths = noise_clips(model.encoder, 1.2, 0.4)
    audio = model.get_audio_features(input_values=waveform, num_samples=lengths).pooler_output
    return audio.unflatten(0, (2, 9))


def test_silence_gives_all_clips_the_same_tokens(silence_model):
    tokens = audio_tokens_of_two_clips(silence_model)
    assert torch.equal(tokens[0], tokens[1])
    assert len(tokens[0].unique(dim=0)) == 9


def test_silence_reloads_in_half_precision(silence_model, tmp_path):
    silence_model.save_pretrained(tmp_path)
    half = AudioLMForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    tokens, half_tokens = (audio_tokens_of_two_clips(model) for model in (silence_model, half))
    tolerance = 0.02 * tokens.abs().max().item()
    assert half_tokens.dtype == torch.bfloat16
    assert torch.allclose(half_tokens.float(), tokens, atol=tolerance)
