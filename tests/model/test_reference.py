"""Our encoders against msclap and moshi, with the same random weights in files of both formats."""

import sys
import types

import numpy as np
import pytest
import torch
from support.builders import SHARED, needs_shared

from audiolm.checkpoints.encoders import load_encoder
from audiolm.checkpoints.random_weights import randomise_codebooks
from audiolm.checkpoints.reference import MSClapReference
from audiolm.encoders_audiolm import HTSATEncoder, MimiEncoder

SECONDS = [0.1, 1.0, 5.0, 7.4, 10.0]


def sound(seconds: float, rate: int, seed: int = 0) -> torch.Tensor:
    """Gliding tones and bursts over noise. 60 dB below a pure tone, STFTs hold rounding alone."""
    random = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate) + 7) / rate  # + 7: no multiple of any frame
    tone = np.sin(2 * np.pi * (200 * (1 + seed) * t + 300 * t**2)) * (
        np.sin((9 + 7 * seed) * t) > 0
    )
    return torch.tensor(
        0.4 * tone + 0.1 * random.standard_normal(len(t)) * (1 + np.abs(np.sin(4 * t))),
        dtype=torch.float32,
    )


@pytest.fixture(scope="module")
def msclap(tmp_path_factory):
    pytest.importorskip("msclap", reason="the extra `reference` is not installed")
    from msclap.models.audio import HTSATWrapper

    torch.manual_seed(0)
    reference = HTSATWrapper(44100, 1024, 320, 64, 50, 14000, 527, 768).eval()
    for (
        name,
        value,
    ) in reference.named_parameters():  # nothing left at zero or one: a wrong mapping must show
        if not name.startswith(("htsat.spectrogram", "htsat.logmel")):
            value.data.add_(0.05 * torch.randn_like(value))
    reference.htsat.bn0.running_mean.normal_(-30, 5)
    reference.htsat.bn0.running_var.uniform_(100, 300)
    path = tmp_path_factory.mktemp("msclap") / "CLAP_weights_2023.pth"
    state = {f"audio_encoder.base.{k}": v for k, v in reference.state_dict().items()}
    state["audio_encoder.projection.linear1.weight"] = torch.zeros(1024, 768)
    state["caption_encoder.base.wte.weight"] = torch.zeros(8, 768)
    torch.save({"model": state}, path)
    return MSClapReference(str(path)), load_encoder("htsat", str(path)), state, path


@pytest.mark.parametrize("seconds", SECONDS)
def test_htsat_equals_msclap(msclap, seconds):
    reference, ours, _, _ = msclap
    clip = sound(seconds, 44100)
    for start, _ in ours.windows(len(clip)):
        window = clip.repeat(-(-308700 // len(clip)))[start : start + 308700][None]
        with torch.no_grad():
            mel = reference.model.logmel_extractor(reference.model.spectrogram_extractor(window))[
                :, 0
            ]
            latent = reference.model(window)["latent_output"]
            our_grid, our_latent = ours.encode_windows(window)
        assert (ours.log_mel(window) - mel).abs().max() <= 1e-4
        assert (our_latent - latent).abs().max() <= 1e-5
        assert (our_grid - reference.grid).abs().max() <= 1e-5
        assert our_grid.shape == (1, 768, 2, 32)
    features = ours.encode(clip[None])
    assert torch.allclose(features, reference.encode(clip[None], ours), atol=2e-5)
    assert features.shape[1] == ours.num_frames(len(clip))


@needs_shared
def test_command_on_real_recordings_finds_no_deviation(msclap, moshi, tmp_path, capsys):
    """The command line on real recordings, with all three arms."""
    from audiolm.checkpoints.reference import main

    files = [str(path) for path in sorted((SHARED / "audio").rglob("*.ogg"))[::160]]
    assert len(files) == 5
    for arm, path in (("htsat", msclap[3]), ("mimi_semantic", moshi), ("mimi_full", moshi)):
        assert main(["--encoder_type", arm, "--encoder_name_or_path", str(path), *files]) <= 1e-4


def test_htsat_of_the_audioset_checkpoint_equals_msclap(msclap, tmp_path, monkeypatch):
    """HTS-AT's own file has 32 kHz, windows of 10 s, and a Lightning wrapper of pickled classes."""
    reference, _, state, _ = msclap
    prefix = "audio_encoder.base.htsat."
    state = {
        "sed_model." + k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)
    }
    module = types.ModuleType("not_installed_here")
    module.Callback = type("Callback", (dict,), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    wrapper = {"epoch": 1, "state_dict": state, "callbacks": {module.Callback: {"best": 1.0}}}
    torch.save(wrapper, tmp_path / "HTSAT_AudioSet_Saved_1.ckpt")
    monkeypatch.delitem(sys.modules, module.__name__)
    loaded = load_encoder("htsat", str(tmp_path))
    assert (loaded.sample_rate, loaded.window_samples) == (32000, 320000)
    window = sound(10, 32000)[None, :320000]
    with torch.no_grad():
        assert (
            loaded.encode_windows(window)[1] - reference.model(window)["latent_output"]
        ).abs().max() <= 1e-5


@pytest.mark.parametrize("seconds", [5, 10])
def test_htsat_of_a_laion_checkpoint_equals_transformers(tmp_path, seconds):
    """A folder as laion/clap-htsat-unfused gives the mel and the latent of transformers."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    torch.manual_seed(0)
    audio = {
        "patch_embeds_hidden_size": 8,
        "hidden_size": 64,
        "depths": [1, 1, 2, 1],
        "num_attention_heads": [1, 1, 2, 2],
    }
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 16,
        "vocab_size": 50,
    }
    clap = ClapModel(ClapConfig(text_config=text, audio_config=audio)).eval()
    clap.audio_model.audio_encoder.batch_norm.running_mean.normal_(-30, 5)
    clap.audio_model.audio_encoder.batch_norm.running_var.uniform_(100, 300)
    clap.save_pretrained(tmp_path)
    front = ClapFeatureExtractor(truncation="rand_trunc", frequency_min=50, frequency_max=14000)
    front.save_pretrained(tmp_path)
    ours = load_encoder("htsat", str(tmp_path))
    assert (ours.sample_rate, ours.window_samples) == (48000, 480000)
    clip = sound(seconds, 48000)[: seconds * 48000]
    mel = front(clip.numpy(), sampling_rate=48000, return_tensors="pt")["input_features"]
    window = clip.repeat(10 // seconds)[None]
    assert (ours.log_mel(window) - mel[:, 0]).abs().max() <= 1e-3  # theirs is computed in float64
    with torch.no_grad():
        expected = clap.audio_model(input_features=mel.float())
        grid, latent = ours.encode_windows(window)
    assert (latent - expected.pooler_output).abs().max() <= 1e-4
    assert (grid - expected.last_hidden_state).abs().max() <= 1e-4


def test_load_encoder_of_a_checkpoint_that_does_not_fit_names_keys(msclap, tmp_path):
    _, _, state, _ = msclap
    broken = {k: v for k, v in state.items() if not k.endswith("bn0.weight")}
    broken["audio_encoder.base.htsat.surplus"] = torch.zeros(1)
    torch.save({"model": broken}, tmp_path / "CLAP_weights_2023.pth")
    with pytest.raises(
        ValueError, match=r'Missing key.*"batch_norm.weight".* Unexpected key.*"surplus"'
    ):
        load_encoder("htsat", str(tmp_path / "CLAP_weights_2023.pth"))


@pytest.fixture(scope="module")
def moshi(tmp_path_factory):
    pytest.importorskip("moshi", reason="the extra `reference` is not installed")
    from moshi.models import loaders
    from safetensors.torch import save_file

    torch.manual_seed(0)
    reference = loaders.get_mimi(None)
    state = {k: v.clone() for k, v in reference.state_dict().items()}
    for key, value in state.items():
        if key.startswith(("encoder", "downsample")) and not key.endswith(
            "conv.bias"
        ):  # no large mean to round against
            scale = 0.3 if "layer_scale" in key else 0.3 / max(1, value[0].numel()) ** 0.5
            state[key] = value + scale * torch.randn_like(value)
    path = tmp_path_factory.mktemp("moshi") / loaders.MIMI_NAME
    save_file(state, str(path))
    # codebooks from encoder outputs, so that codes vary; written back into moshi's layout
    ours = load_encoder("mimi_full", str(path))
    randomise_codebooks(ours)
    quantizer = ours.model.quantizer
    parts = {
        "first": quantizer.semantic_residual_vector_quantizer,
        "rest": quantizer.acoustic_residual_vector_quantizer,
    }
    for name, part in parts.items():
        for i, layer in enumerate(part.layers):
            usage = torch.rand(len(layer.codebook.cluster_usage)) + 0.5
            at = f"quantizer.rvq_{name}.vq.layers.{i}._codebook."
            state[at + "cluster_usage"] = usage
            state[at + "embedding_sum"] = layer.codebook.embed_sum * usage[:, None]
            state[at + "_initialized"] = torch.ones(1)
    save_file(state, str(path))
    return path


def tied_frames(encoder, clip, codes, others) -> list[int]:
    """Returns frames whose codes differ, and asserts that the two codewords are equally near.

    On some CPUs, with one thread, this is one of 640 frames. Its distances differ by 5e-6, at 0.33.
    """
    frames = (codes != others).any(0).nonzero()[:, 0].tolist()
    if not frames:
        return frames
    padded = torch.nn.functional.pad(clip, (0, codes.shape[1] * encoder.frame_size - len(clip)))
    with torch.no_grad():
        latents = encoder.latents(padded[None]).transpose(1, 2)
        rvq = encoder.model.quantizer
        for frame in frames:
            level = int((codes[:, frame] != others[:, frame]).nonzero()[0])
            semantic, acoustic = (
                rvq.semantic_residual_vector_quantizer,
                rvq.acoustic_residual_vector_quantizer,
            )
            part, first = (acoustic, 1) if level else (semantic, 0)
            residual = part.input_proj(latents)[0, :, frame].double()
            for before in range(first, level):
                residual -= (
                    part.layers[before - first].codebook.embed[codes[before, frame]].double()
                )
            near = (
                part.layers[level - first]
                .codebook.embed[[int(codes[level, frame]), int(others[level, frame])]]
                .double()
            )
            distance, other_distance = (residual - near).norm(dim=1).tolist()
            assert abs(distance - other_distance) <= 3e-5 * distance, (frame, level)
    return frames


@pytest.mark.parametrize(
    ("arm", "levels"), [pytest.param("mimi_semantic", 1, marks=pytest.mark.slow), ("mimi_full", 8)]
)  # whose first level it is
def test_mimi_equals_moshi(moshi, arm, levels):
    from moshi.models import loaders

    reference = loaders.get_mimi(moshi, num_codebooks=levels)
    ours = load_encoder(arm, str(moshi))
    clips = [sound(seconds, 24000, seed) for seed, seconds in enumerate([*SECONDS, 9.3, 10.0, 8.8])]
    codes, latents, ties = [], [], 0

    def assert_equal(clip, our_codes, features, number) -> int:
        tied = tied_frames(ours, clip, our_codes, codes[number][0])
        apart = (features - latents[number]).abs().amax(-1)
        apart[tied] = 0
        assert apart.max() <= 1e-4
        return len(tied)

    for number, clip in enumerate(clips):
        with torch.no_grad():
            codes.append(reference.encode(clip[None, None]))
            latents.append(reference.decode_latent(codes[-1])[0].T)
        alone = ours.codes(clip[None])
        ties += assert_equal(clip, alone[0], ours.decode_codes(alone)[0], number)
        assert len(latents[-1]) == ours.num_frames(len(clip))
    lengths, padded = [len(clip) for clip in clips], torch.nn.utils.rnn.pad_sequence
    together = ours.codes(padded(clips, batch_first=True), lengths)
    for number, (row, clip) in enumerate(zip(together, clips)):
        row = row[:, : len(latents[number])]
        ties += assert_equal(clip, row, ours.decode_codes(row[None])[0], number)
    encoded = ours.encode(
        padded(clips[:3], batch_first=True), lengths[:3]
    )  # the same, with zeros behind a clip's end
    for number, row in enumerate(encoded):
        frames = len(latents[number])
        assert torch.allclose(
            row[:frames], ours.decode_codes(together[number : number + 1, :, :frames])[0], atol=1e-5
        )
        assert not row[frames:].any()
        assert len(row) == len(latents[2])
    # Of 1,290 frames. All others are bitwise identical.
    assert ties <= 2
    assert all(len(level.unique()) >= 100 for level in torch.cat(codes, 2)[0])


def test_mimi_under_autocast_changes_no_code(moshi):
    ours = load_encoder("mimi_full", str(moshi))
    clip = sound(3, 24000)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours.codes(clip), load_encoder("mimi_full", str(moshi)).codes(clip))


def test_mimi_of_a_transformers_folder_equals_moshis_file(moshi, tmp_path):
    """A folder as kyutai/mimi's gives the codes that moshi's file gives."""
    from transformers import MimiConfig, MimiModel

    ours = load_encoder("mimi_full", str(moshi))
    mimi = MimiModel(MimiConfig())
    mimi.load_state_dict(ours.model.state_dict(), strict=False)
    mimi.save_pretrained(tmp_path)
    clip = sound(2, 24000)[None]
    loaded = load_encoder("mimi_full", str(tmp_path))
    assert isinstance(loaded, MimiEncoder)
    assert loaded.model.decoder is None
    assert torch.equal(loaded.codes(clip), ours.codes(clip))
    mimi.half().save_pretrained(tmp_path)  # half precision on disk is float32 here
    loaded = load_encoder("mimi_full", str(tmp_path))
    assert {t.dtype for t in loaded.state_dict().values() if t.is_floating_point()} == {
        torch.float32
    }


def test_htsat_of_a_batch_equals_single_clips(msclap):
    _, ours, _, _ = msclap
    assert isinstance(ours, HTSATEncoder)
    clips = [sound(seconds, 44100, seed) for seed, seconds in enumerate(SECONDS)]
    lengths = [len(clip) for clip in clips]
    features = ours.encode(torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), lengths)
    mask = ours.frame_mask(lengths)
    for clip, row, is_frame in zip(clips, features, mask):
        assert torch.allclose(row[is_frame], ours.encode(clip[None])[0], atol=1e-5)
    assert ours.num_frames(441000) == 92
    assert ours.num_frames(1) == 2


def test_command_prints_the_largest_deviation(msclap, moshi, tmp_path, capsys):
    """The command line agrees on files of other rates and lengths, and says by how much."""
    import soundfile

    from audiolm.checkpoints.reference import main

    files = []
    for seconds, rate in ((0.3, 16000), (8.0, 48000)):
        files.append(str(tmp_path / f"{rate}.wav"))
        soundfile.write(files[-1], sound(seconds, rate).numpy(), rate, subtype="FLOAT")
    assert (
        main(["--encoder_type", "htsat", "--encoder_name_or_path", str(msclap[3]), *files]) <= 1e-4
    )
    assert (
        main(["--encoder_type", "mimi_full", "--encoder_name_or_path", str(moshi), *files]) <= 1e-4
    )
    assert capsys.readouterr().out.count("largest deviation") == 2


@pytest.mark.parametrize("arm", ["htsat", "mimi_semantic"])
def test_load_encoder_with_random_weights_warns(arm):
    with pytest.warns(UserWarning, match=f"{arm}: the encoder's weights are RANDOM"):
        encoder = load_encoder(arm, "random")
    assert not encoder.training
    if arm == "mimi_semantic":
        assert len(encoder.codes(sound(5, 24000)[None]).unique()) > 10
