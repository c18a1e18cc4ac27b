"""Trains the demo's two encoders on soundscapes of seeds that no corpus uses: `python -m audiolm.demo.train_encoders`.

HTSAT learns which events are heard when. Mimi learns to reconstruct, and its first level to predict HTSAT's features
from what was heard so far, as Mimi's is distilled from WavLM (arXiv 2410.00037). Both are of the classes that hold the
published weights, in their files' formats, in half precision; figures.json beside each says what it reaches.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    ClapFeatureExtractor,
    MimiConfig,
    MimiModel,
    get_cosine_schedule_with_warmup,
    set_seed,
)

from ..configuration_audiolm import default_encoder_config
from ..data.soundscapes.scenes import CLASSES, SAMPLE_RATE, draw_scene, render
from ..encoders_audiolm import HTSATEncoder
from ..runtime import use_all_of_the_cpu

SCENE_SEED = 990_000_000  # apart from any seed of a corpus
WINDOW_SECONDS = 5
HTSAT = {
    "sampling_rate": SAMPLE_RATE,
    "mel_sampling_rate": SAMPLE_RATE,
    "n_fft": 1024,
    "hop_length": 480,
    "frequency_min": 50.0,
    "frequency_max": 11000.0,
    "window_seconds": float(WINDOW_SECONDS),
    "spec_size": 128,
    "num_mel_bins": 64,
    "depths": [1, 2, 1],
    "num_attention_heads": [2, 4, 8],
    "patch_embeds_hidden_size": 48,
    "hidden_size": 192,
    "num_hidden_layers": 3,
    "hidden_dropout_prob": 0.0,
}
MIMI = {
    "num_filters": 8,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "codebook_size": 256,
    "codebook_dim": 64,
    "num_quantizers": 8,
    "vector_quantization_hidden_dimension": 64,
    "upsample_groups": 128,
    "layer_scale_initial_scale": 0.1,
}
CELLS = 16  # HTSAT's time cells in a window
FRAME = 1920  # samples of a Mimi frame
SEGMENT = 16  # Mimi frames that it trains on at once


def _scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    scene = draw_scene(np.random.default_rng([SCENE_SEED, seed]))
    cells = np.zeros((len(CLASSES), CELLS), bool)
    begin = np.arange(CELLS) * WINDOW_SECONDS / CELLS % scene.seconds
    for event in scene.events:
        heard = (begin + WINDOW_SECONDS / CELLS > event.onset) & (
            begin < event.onset + event.duration
        )
        cells[list(CLASSES).index(event.name)] |= heard
    sound = np.resize(
        render(scene), WINDOW_SECONDS * SAMPLE_RATE
    )  # tiled to a window, as HTSATEncoder does
    return (sound * 32767).astype(np.int16), cells


def scenes(first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Audio (count, samples) of 16 bits, and where each class is heard, (count, classes, time cells)."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(_scene, range(first, first + count), chunksize=16)
        made = list(tqdm(made, total=count, desc="rendering scenes", unit="scene"))
    return torch.from_numpy(np.stack([s for s, _ in made])), torch.from_numpy(
        np.stack([c for _, c in made])
    ).float()


def steps(count: int, size: int, rows: int, seed: int, desc: str):
    """Shuffled row numbers of each batch of a run, with a progress bar."""
    generator, order = torch.Generator().manual_seed(seed), torch.zeros(0, dtype=torch.long)
    for step in (bar := tqdm(range(count), desc=desc, unit="step")):
        if len(order) < size:
            order = torch.cat([order, torch.randperm(rows, generator=generator)])
        yield bar, step, order[:size]
        order = order[size:]


def optimiser(parameters, rate: float, count: int):
    made = torch.optim.AdamW(parameters, rate, betas=(0.8, 0.99), weight_decay=0.01)
    return made, get_cosine_schedule_with_warmup(made, count // 20, count)


def mean_average_precision(scores: torch.Tensor, present: torch.Tensor) -> float:
    """Mean over classes of the area under precision and recall."""
    found = []
    for score, right in zip(scores.T, present.T):
        hits = right[score.argsort(descending=True)]
        precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
        found.append(float((precision * hits).sum() / hits.sum().clamp(min=1)))
    return sum(found) / len(found)


def train_htsat(audio, cells, count: int, batch: int, seed: int) -> tuple[HTSATEncoder, nn.Module]:
    """The detector and its head, after `count` steps of binary cross-entropy by time cell and by clip."""
    encoder = HTSATEncoder(default_encoder_config("htsat", HTSAT))
    head = nn.Conv1d(encoder.dim, len(CLASSES), 1)
    made, schedule = optimiser([*encoder.parameters(), *head.parameters()], 1e-3, count)
    encoder.train()
    for bar, _, rows in steps(count, batch, len(audio), seed, "htsat"):
        grid, _ = encoder.encode_windows(audio[rows].float() / 32768)
        scores = head(grid.mean(2))
        loss = F.binary_cross_entropy_with_logits(scores, cells[rows])
        loss = loss + F.binary_cross_entropy_with_logits(scores.amax(2), cells[rows].amax(2))
        made.zero_grad()
        loss.backward()
        made.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return encoder.eval(), head.eval()


@torch.no_grad()
def htsat_frames(encoder: HTSATEncoder, audio, batch: int = 64) -> torch.Tensor:
    """Features of whole windows, mean over frequency, in half precision: (clips, dim, time cells)."""
    parts = tqdm(audio.split(batch), desc="htsat features", unit="batch")
    return torch.cat(
        [encoder.encode_windows(part.float() / 32768)[0].mean(2).half() for part in parts]
    )


@torch.no_grad()
def htsat_figures(encoder: HTSATEncoder, head: nn.Module, audio, cells) -> dict[str, float]:
    """Mean average precision on unseen scenes: of the classes in a clip, and of the classes in a time cell."""
    scores = head(htsat_frames(encoder, audio).float())
    by_cell = mean_average_precision(
        scores.transpose(1, 2).flatten(0, 1), cells.transpose(1, 2).flatten(0, 1)
    )
    return {
        "tagging_map": mean_average_precision(scores.amax(2), cells.amax(2)),
        "detection_map": by_cell,
    }


def quantise(rvq, latents, levels: int, decay: float | None):
    """Quantised latents with a straight-through gradient, and the commitment loss; codebooks follow by moving averages.

    Args:
        rvq: a `MimiResidualVectorQuantizer`. latents: (batch, dim, frames). decay: of the averages, None to leave them.
    """
    projected = rvq.input_proj(latents)
    residual, total, commitment = projected, torch.zeros_like(projected), 0.0
    for layer in rvq.layers[:levels]:
        codes = layer.encode(residual.detach())
        chosen = layer.decode(codes)
        if decay is not None:
            follow(
                layer.codebook,
                residual.detach().transpose(1, 2).flatten(0, 1),
                codes.flatten(),
                decay,
            )
        commitment = commitment + F.mse_loss(residual, chosen)
        residual, total = residual - chosen, total + chosen
    return rvq.output_proj(projected + (total - projected).detach()), commitment


@torch.no_grad()
def follow(codebook, points, codes, decay: float) -> None:
    """One step of a codebook's moving averages; words that nobody uses are drawn anew from `points`."""
    count = torch.bincount(codes, minlength=codebook.codebook_size).to(points.dtype)
    summed = torch.zeros_like(codebook.embed_sum).index_add_(0, codes, points)
    codebook.cluster_usage.lerp_(count, 1 - decay)
    codebook.embed_sum.lerp_(summed, 1 - decay)
    dead = codebook.cluster_usage < 0.05
    drawn = points[torch.randint(len(points), (int(dead.sum()),))]
    codebook.cluster_usage[dead] = 0.2
    codebook.embed_sum[dead] = 0.2 * drawn
    codebook._embed = None


def spectral_distance(made, wanted) -> torch.Tensor:
    """Mean over four resolutions of the L1 distance of log-magnitude spectra, in nepers; of (batch, samples)."""
    total = 0.0
    for size in (256, 512, 1024, 2048):
        window = torch.hann_window(size)
        made_, wanted_ = (
            torch.stft(x, size, size // 4, window=window, return_complex=True).abs()
            for x in (made, wanted)
        )
        total = total + F.l1_loss((made_ + 1e-2).log(), (wanted_ + 1e-2).log())
    return total / 4


@torch.no_grad()
def unit_variance(module: nn.Module, *inputs) -> None:
    """Scales each convolution so that what it gives for `inputs` has a variance of 1 (arXiv 1511.06422).

    Recordings are quiet: as initialised by default, the codec hears little but its own biases, and learns no sound.
    """
    spread = []
    for part in module.modules():
        if isinstance(part, (nn.Conv1d, nn.ConvTranspose1d)):
            hook = part.register_forward_hook(lambda _, __, output: spread.append(output.std()))
            if part.bias is not None:
                part.bias.zero_()
            module(*inputs)
            hook.remove()
            part.weight.div_(spread.pop())


def train_mimi(audio, features, count: int, batch: int, seed: int) -> MimiModel:
    """The codec, after `count` steps on segments of `SEGMENT` frames: reconstruction, commitment, distillation."""
    model = MimiModel(MimiConfig(**MIMI))
    semantic = model.quantizer.semantic_residual_vector_quantizer
    acoustic = model.quantizer.acoustic_residual_vector_quantizer
    some = audio[:16, audio.shape[1] // 2 :][:, : SEGMENT * FRAME].float() / 32768
    unit_variance(model.encoder, some[:, None])
    unit_variance(model.decoder, model.encoder(some[:, None]).latents.detach())
    model.decoder.decoder_seanet.layers[-1].conv.weight.data.mul_(some.std())
    for rvq in (semantic, acoustic):
        for layer in rvq.layers:  # nobody uses them yet: the first step draws them from latents
            layer.codebook.cluster_usage.zero_()
    predict = nn.Conv1d(model.config.hidden_size, features.shape[1], 1)
    made, schedule = optimiser([*model.parameters(), *predict.parameters()], 1e-3, count)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    mean, deviation = features.float().mean((0, 2))[:, None], features.float().std((0, 2))[:, None]
    frames = audio.shape[1] // FRAME
    features = F.interpolate(features.float(), size=frames, mode="linear").half()
    for bar, _, rows in steps(count, batch, len(audio), seed, "mimi"):
        start = int(torch.randint(frames - SEGMENT, (1,), generator=generator))
        levels = (
            int(torch.randint(8, (1,), generator=generator))
            if torch.rand(1, generator=generator) < 0.5
            else 7
        )
        wave = audio[rows, start * FRAME : (start + SEGMENT) * FRAME].float() / 32768
        target = (features[rows, :, start : start + SEGMENT].float() - mean) / deviation
        latents = model.encoder(wave[:, None]).latents
        first, commitment = quantise(semantic, latents, 1, 0.99)
        quantised = first
        if levels:
            rest, more = quantise(acoustic, latents, levels, 0.99)
            quantised, commitment = first + rest, commitment + more
        heard = model.decoder(quantised).audio_values[:, 0, : wave.shape[1]]
        distance = spectral_distance(heard, wave)
        distilled = F.mse_loss(predict(first), target)  # of standardised features: 1 says nothing
        loss = distance + 2 * F.l1_loss(heard, wave) + 0.25 * commitment + 2 * distilled
        made.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        made.step()
        schedule.step()
        bar.set_postfix(distance=f"{distance.item():.3f}", distilled=f"{distilled.item():.3f}")
    return model.eval()


@torch.no_grad()
def codec_figures(model: MimiModel, audio) -> dict[str, dict]:
    """Spectral distance after 1 to 8 levels and unquantised, and the perplexity of each level's codes, on unseen scenes."""
    wave = audio[:, : audio.shape[1] // FRAME * FRAME].float() / 32768
    parts = [(part, model.encode(part[:, None]).audio_codes) for part in wave.split(16)]
    distance = {
        k: float(
            np.mean(
                [
                    spectral_distance(model.decode(codes[:, :k]).audio_values[:, 0], part)
                    for part, codes in parts
                ]
            )
        )
        for k in range(1, 9)
    }
    both = (
        model.quantizer.semantic_residual_vector_quantizer,
        model.quantizer.acoustic_residual_vector_quantizer,
    )
    whole = []
    for part, _ in parts:
        latents = model.encoder(part[:, None]).latents
        heard = model.decoder(
            sum(rvq.output_proj(rvq.input_proj(latents)) for rvq in both)
        ).audio_values[:, 0]
        whole.append(spectral_distance(heard[:, : part.shape[1]], part))
    distance["unquantised"] = float(np.mean(whole))
    codes = torch.cat([codes for _, codes in parts])
    used = [
        torch.bincount(codes[:, k].flatten(), minlength=MIMI["codebook_size"]).float()
        for k in range(8)
    ]
    perplexity = {
        k + 1: float(torch.distributions.Categorical(u / u.sum()).entropy().exp())
        for k, u in enumerate(used)
    }
    return {"spectral_distance": distance, "codebook_perplexity": perplexity}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).parent
    parser.add_argument(
        "--output", type=Path, default=here, help="folder for htsat/ and mimi/; default: demo/"
    )
    parser.add_argument(
        "--scenes", type=int, default=6000, help="training scenes of 5 s (default: 6000)"
    )
    parser.add_argument(
        "--unseen", type=int, default=400, help="scenes for the figures (default: 400)"
    )
    parser.add_argument(
        "--htsat_steps", type=int, default=1000, help="steps of 32 scenes (default: 1000)"
    )
    parser.add_argument(
        "--mimi_steps", type=int, default=7000, help="steps of 8 segments of 1.28 s (default: 7000)"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    use_all_of_the_cpu()
    audio, cells = scenes(0, args.scenes)
    unseen, unseen_cells = scenes(args.scenes, args.unseen)
    set_seed(args.seed)
    encoder, head = train_htsat(audio, cells, args.htsat_steps, 32, args.seed)
    features = htsat_frames(encoder, audio)
    figures = htsat_figures(encoder, head, unseen, unseen_cells)
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
    record(args.output / "htsat", figures)
    set_seed(args.seed)  # so that either can be trained alone
    codec = train_mimi(audio, features, args.mimi_steps, 8, args.seed)
    figures = codec_figures(codec, unseen)
    codec.half().save_pretrained(args.output / "mimi")
    record(args.output / "mimi", figures)


def record(folder: Path, figures: dict) -> None:
    """Writes what trained weights reach beside them, and prints it."""
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(f"{folder}: {json.dumps(figures, indent=2)}", flush=True)


if __name__ == "__main__":
    main()
