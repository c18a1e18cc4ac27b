"""Trains the demo's two encoders on soundscapes: `python -m audiolm.demo.train_encoders`.

HTSAT learns which events sound when. Mimi learns to reconstruct audio, and its first codebook to
predict HTSAT's features, as Mimi's is distilled from WavLM (arXiv 2410.00037). Both are saved in
half precision in the file formats of the published weights, with what they reach in `figures.json`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from tqdm.contrib.concurrent import process_map
from transformers import ClapFeatureExtractor, MimiConfig, MimiModel, set_seed

from ..configuration_audiolm import default_encoder_config
from ..data.soundscapes.events import CLASSES, SAMPLE_RATE
from ..data.soundscapes.scenes import draw_scene, render
from ..encoders_audiolm import HTSATEncoder
from ..runtime import use_all_of_the_cpu
from .training import Optimizer, script_parser, shuffled_batches, write_figures

SCENE_SEED = 990_000_000  # differs from any seed of a corpus
WINDOW_SECONDS = 5
CELLS = 16  # HTSAT's time cells in a window
FRAME = 1920  # samples per Mimi frame
SEGMENT = 16  # Mimi frames per training segment
HTSAT_BATCH_SIZE = 32  # windows
MIMI_BATCH_SIZE = 8  # segments
CODEBOOK_DECAY = 0.99
MIN_CODE_USAGE = 0.05
NEW_CODE_USAGE = 0.2
HTSAT = {
    "sampling_rate": SAMPLE_RATE, "mel_sampling_rate": SAMPLE_RATE, "n_fft": 1024,
    "hop_length": 480, "frequency_min": 50.0, "frequency_max": 11000.0, "num_mel_bins": 64,
    "window_seconds": float(WINDOW_SECONDS), "spec_size": 128, "depths": [1, 2, 1],
    "num_attention_heads": [2, 4, 8], "patch_embeds_hidden_size": 48, "hidden_size": 192,
    "num_hidden_layers": 3, "hidden_dropout_prob": 0.0,
}  # fmt: skip
MIMI = {
    "num_filters": 8, "hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 256,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32, "codebook_size": 256,
    "codebook_dim": 64, "num_quantizers": 8, "vector_quantization_hidden_dimension": 64,
    "upsample_groups": 128, "layer_scale_initial_scale": 0.1,
}  # fmt: skip


def _render_scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    scene = draw_scene(np.random.default_rng([SCENE_SEED, number]))
    cell_seconds = WINDOW_SECONDS / CELLS
    # The window is filled by repeating the scene, as HTSATEncoder does.
    starts = np.arange(CELLS) * WINDOW_SECONDS / CELLS % scene.seconds
    presence = np.zeros((len(CLASSES), CELLS), bool)
    for event in scene.events:
        begins_before = starts < event.onset + event.duration
        ends_after = starts + cell_seconds > event.onset
        presence[list(CLASSES).index(event.name)] |= ends_after & begins_before
    sound = np.resize(render(scene), WINDOW_SECONDS * SAMPLE_RATE)
    return (sound * 32767).astype(np.int16), presence


def render_scenes(first: int, count: int) -> tuple[Tensor, Tensor]:
    """Renders 16-bit audio, `(scenes, samples)`, and presences, `(scenes, classes, cells)`."""
    numbers = range(first, first + count)
    rendered = process_map(_render_scene, numbers, chunksize=16, desc="rendering", unit="scene")
    audio, presence = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*rendered))
    return audio, presence.float()


def _to_float(audio: Tensor) -> Tensor:
    return audio.float() / 32768


def train_htsat(
    audio: Tensor, presence: Tensor, steps: int, seed: int
) -> tuple[HTSATEncoder, nn.Module]:
    """Trains HTSAT and a linear head by binary cross-entropy, per time cell and per clip."""
    encoder = HTSATEncoder(default_encoder_config("htsat", HTSAT))
    head = nn.Conv1d(encoder.dim, len(CLASSES), 1)
    optimizer = Optimizer([*encoder.parameters(), *head.parameters()], 1e-3, steps)
    encoder.train()
    for bar, indices in shuffled_batches(steps, HTSAT_BATCH_SIZE, len(audio), seed, "htsat"):
        grid, _ = encoder.encode_windows(_to_float(audio[indices]))
        scores = head(grid.mean(2))
        targets = presence[indices]
        loss = F.binary_cross_entropy_with_logits(scores, targets)
        loss = loss + F.binary_cross_entropy_with_logits(scores.amax(2), targets.amax(2))
        optimizer.step(loss)
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return encoder.eval(), head.eval()


@torch.no_grad()
def htsat_features(encoder: HTSATEncoder, audio: Tensor) -> Tensor:
    """Returns features averaged over frequency, in half precision, `(clips, dim, cells)`."""
    batches = tqdm(audio.split(64), desc="htsat features", unit="batch")
    grids = (encoder.encode_windows(_to_float(batch))[0] for batch in batches)
    return torch.cat([grid.mean(2).half() for grid in grids])


@torch.no_grad()
def htsat_figures(
    encoder: HTSATEncoder, head: nn.Module, audio: Tensor, presence: Tensor
) -> dict[str, float]:
    """Returns mean average precisions: for the classes in a clip, and for those in a time cell."""
    scores = head(htsat_features(encoder, audio).float())
    cells = [values.transpose(1, 2).flatten(0, 1) for values in (presence, scores)]
    return {
        "tagging_map": float(average_precision_score(presence.amax(2), scores.amax(2))),
        "detection_map": float(average_precision_score(*cells)),
    }


def quantize(rvq: Any, latents: Tensor, num_codebooks: int) -> tuple[Tensor, Tensor]:
    """Quantises latents with a straight-through gradient, and updates the codebooks.

    Latents have the shape `(batch, dim, frames)`. The second result is the commitment loss.
    """
    projected = rvq.input_proj(latents)
    residual = projected
    total = torch.zeros_like(projected)
    commitment = torch.zeros(())
    for layer in rvq.layers[:num_codebooks]:
        codes = layer.encode(residual.detach())
        decoded = layer.decode(codes)
        points = residual.detach().transpose(1, 2).flatten(0, 1)
        update_codebook(layer.codebook, points, codes.flatten())
        commitment = commitment + F.mse_loss(residual, decoded)
        residual = residual - decoded
        total = total + decoded
    return rvq.output_proj(projected + (total - projected).detach()), commitment


@torch.no_grad()
def update_codebook(codebook: Any, points: Tensor, codes: Tensor) -> None:
    """Updates the moving averages of a `MimiEuclideanCodebook` with points, `(points, dim)`.

    Random points replace unused codes.
    """
    counts = torch.bincount(codes, minlength=codebook.codebook_size).to(points.dtype)
    sums = torch.zeros_like(codebook.embed_sum).index_add_(0, codes, points)
    codebook.cluster_usage.lerp_(counts, 1 - CODEBOOK_DECAY)
    codebook.embed_sum.lerp_(sums, 1 - CODEBOOK_DECAY)
    is_unused = codebook.cluster_usage < MIN_CODE_USAGE
    replacements = points[torch.randint(len(points), (int(is_unused.sum()),))]
    codebook.cluster_usage[is_unused] = NEW_CODE_USAGE
    codebook.embed_sum[is_unused] = NEW_CODE_USAGE * replacements
    codebook._embed = None


def spectral_distance(audio: Tensor, target: Tensor) -> Tensor:
    """Returns the L1 distance of log-magnitude spectra in nepers, the mean over four resolutions.

    Both tensors have the shape `(batch, samples)`.
    """

    def log_spectrum(wave: Tensor, size: int) -> Tensor:
        window = torch.hann_window(size)
        spectrum = torch.stft(wave, size, size // 4, window=window, return_complex=True)
        return (spectrum.abs() + 1e-2).log()

    total = torch.zeros(())
    for size in (256, 512, 1024, 2048):
        total = total + F.l1_loss(log_spectrum(audio, size), log_spectrum(target, size))
    return total / 4


@torch.no_grad()
def normalise_outputs(module: nn.Module, *inputs: Tensor) -> None:
    """Scales each convolution to an output variance of 1 for `inputs` (arXiv 1511.06422).

    Recordings are quiet. With the default initialisation, the codec's biases outweigh the audio and
    it does not learn.
    """
    deviations = []
    for part in module.modules():
        if isinstance(part, nn.Conv1d | nn.ConvTranspose1d):
            hook = part.register_forward_hook(lambda _, __, out: deviations.append(out.std()))
            if part.bias is not None:
                part.bias.zero_()
            module(*inputs)
            hook.remove()
            part.weight.div_(deviations.pop())


def _quantizers(model: Any) -> tuple[Any, Any]:
    split = model.quantizer
    return split.semantic_residual_vector_quantizer, split.acoustic_residual_vector_quantizer


def _initialise_mimi(audio: Tensor) -> MimiModel:
    model: Any = MimiModel(MimiConfig(**MIMI))
    middle = audio.shape[1] // 2
    sample = _to_float(audio[:16, middle : middle + SEGMENT * FRAME])[:, None]
    normalise_outputs(model.encoder, sample)
    normalise_outputs(model.decoder, model.encoder(sample).latents.detach())
    model.decoder.decoder_seanet.layers[-1].conv.weight.data.mul_(sample.std())
    for quantizer in _quantizers(model):
        for layer in quantizer.layers:
            # An unused code is replaced by a latent in the first step.
            layer.codebook.cluster_usage.zero_()
    return model


def train_mimi(audio: Tensor, features: Tensor, steps: int, seed: int) -> MimiModel:
    """Trains the codec for reconstruction, commitment, and prediction of `htsat_features`."""
    model: Any = _initialise_mimi(audio)
    semantic, acoustic = _quantizers(model)
    predictor = nn.Conv1d(model.config.hidden_size, features.shape[1], 1)
    parameters = [*model.parameters(), *predictor.parameters()]
    optimizer = Optimizer(parameters, 1e-3, steps)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    mean = features.float().mean((0, 2))[:, None]
    deviation = features.float().std((0, 2))[:, None]
    frames = audio.shape[1] // FRAME
    features = F.interpolate(features.float(), size=frames, mode="linear").half()
    for bar, indices in shuffled_batches(steps, MIMI_BATCH_SIZE, len(audio), seed, "mimi"):
        start = int(torch.randint(frames - SEGMENT, (1,), generator=generator))
        num_acoustic = 7
        if torch.rand(1, generator=generator) < 0.5:
            num_acoustic = int(torch.randint(8, (1,), generator=generator))
        wave = _to_float(audio[indices, start * FRAME : (start + SEGMENT) * FRAME])
        target = (features[indices, :, start : start + SEGMENT].float() - mean) / deviation
        latents = model.encoder(wave[:, None]).latents
        first, commitment = quantize(semantic, latents, 1)
        quantized = first
        if num_acoustic:
            rest, acoustic_commitment = quantize(acoustic, latents, num_acoustic)
            quantized = first + rest
            commitment = commitment + acoustic_commitment
        decoded = model.decoder(quantized).audio_values[:, 0, : wave.shape[1]]
        distance = spectral_distance(decoded, wave)
        distillation = F.mse_loss(predictor(first), target)
        loss = distance + 2 * F.l1_loss(decoded, wave) + 0.25 * commitment + 2 * distillation
        optimizer.step(loss, clipped_model=model)
        bar.set_postfix(distance=f"{distance.item():.3f}", distilled=f"{distillation.item():.3f}")
    return model.eval()


@torch.no_grad()
def codec_figures(model: Any, audio: Tensor) -> dict[str, dict]:
    """Returns the spectral distance of reconstructions by number of codebooks."""
    waves = _to_float(audio[:, : audio.shape[1] // FRAME * FRAME]).split(16)
    codes = [model.encode(wave[:, None]).audio_codes for wave in waves]
    distances = {}
    for k in (1, 2, 8):
        decoded = [model.decode(part[:, :k]).audio_values[:, 0] for part in codes]
        distances[k] = float(np.mean(list(map(spectral_distance, decoded, waves))))
    return {"spectral_distance": distances}


def main(argv: list[str] | None = None) -> None:
    """Trains and saves both encoders."""
    parser = script_parser(__doc__, Path(__file__).parent, "folder for htsat/ and mimi/")
    add = parser.add_argument
    add("--scenes", type=int, default=6000, help="training scenes of 5 s")
    add("--unseen", type=int, default=400, help="test scenes")
    add("--htsat_steps", type=int, default=1000, help="steps with batch size 32")
    add("--mimi_steps", type=int, default=7000, help="steps with batch size 8, segments of 1.28 s")
    args = parser.parse_args(argv)
    use_all_of_the_cpu()
    audio, presence = render_scenes(0, args.scenes)
    unseen, unseen_presence = render_scenes(args.scenes, args.unseen)
    set_seed(args.seed)
    encoder, head = train_htsat(audio, presence, args.htsat_steps, args.seed)
    features = htsat_features(encoder, audio)
    figures = htsat_figures(encoder, head, unseen, unseen_presence)
    encoder.model.half().save_pretrained(args.output / "htsat")
    ClapFeatureExtractor(
        sampling_rate=SAMPLE_RATE,
        fft_window_size=HTSAT["n_fft"],
        hop_length=HTSAT["hop_length"],
        max_length_s=WINDOW_SECONDS,
        frequency_min=HTSAT["frequency_min"],
        frequency_max=HTSAT["frequency_max"],
        truncation="rand_trunc",
    ).save_pretrained(args.output / "htsat")
    write_figures(args.output / "htsat", figures)
    set_seed(args.seed)
    codec = train_mimi(audio, features, args.mimi_steps, args.seed)
    figures = codec_figures(codec, unseen)
    codec.half().save_pretrained(args.output / "mimi")
    write_figures(args.output / "mimi", figures)


if __name__ == "__main__":
    main()
