"""Renders a clip for a web page: a small audio file of the seconds that are used, a spectrogram.

Both are data URIs, so that a page needs no other files.
"""

import base64
import io
import math
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from transformers.audio_utils import hertz_to_mel, mel_filter_bank

from ..processing_audiolm import open_file

COMPRESSION = 0.5  # from 0 to 1: 40 to 75 kB for 10 s
MAX_COLUMNS = 360  # Width of a spectrogram.
BANDS = 96  # Height of a spectrogram.
DYNAMIC_RANGE = 70.0  # dB between the brightest and the darkest shade.
SHADES = 32
TICKS_KHZ = (0.5, 1, 2, 4, 8, 16)
TICKS_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 600)


class ClipPreview(NamedTuple):
    """A clip as a page shows it."""

    audio: str  # data URI, or empty
    spectrogram: str  # data URI of a PNG
    seconds: float  # of the file
    used: float  # seconds that the models use
    hertz: list[tuple[float, str]]  # ticks: per cent from the top, kHz
    times: list[tuple[float, str]]  # ticks: per cent from the left, seconds


def preview_clip(
    source: str | io.BytesIO, max_seconds: float, playable: bool = True
) -> ClipPreview:
    """Renders the first seconds of a clip, with its channels averaged and playable or not.

    Raises:
        soundfile.LibsndfileError: If the file cannot be decoded.
        OSError: If the file cannot be read.
        ValueError: If the file holds no samples, or states too many.
    """
    with open_file(source) as file:
        rate = file.samplerate
        seconds = file.frames / rate
        samples = file.read(math.ceil(max_seconds * rate), dtype="float32", always_2d=True).mean(1)
    if not len(samples):
        raise ValueError("no samples")
    used = len(samples) / rate
    top = hertz_to_mel(rate / 2, "htk")
    hertz = [
        (100 - 100 * hertz_to_mel(1000.0 * tick, "htk") / top, f"{tick:g}")
        for tick in TICKS_KHZ
        if 1000 * tick <= 0.97 * rate / 2
    ]
    step = next((step for step in TICKS_SECONDS if used / step <= 6), TICKS_SECONDS[-1])
    times = [
        (100 * tick / used, f"{tick:g}") for tick in np.arange(0, used, step).round(6).tolist()
    ]
    audio = audio_uri(samples, rate) if playable else ""
    image = data_uri("image/png", encode_png(spectrogram(samples, rate)))
    return ClipPreview(audio, image, seconds, used, hertz, times)


def data_uri(media_type: str, content: bytes) -> str:
    """Returns content as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def audio_uri(samples: np.ndarray, rate: int) -> str:
    """Returns samples, shape `(samples,)`, as the data URI of a small audio file."""
    file = io.BytesIO()
    try:
        soundfile.write(file, samples, rate, format="MP3", compression_level=COMPRESSION)
        return data_uri("audio/mpeg", file.getvalue())
    except soundfile.LibsndfileError:  # MP3 has no rate such as 96 kHz.
        file = io.BytesIO()
        soundfile.write(file, samples, rate, "PCM_16", format="FLAC")
        return data_uri("audio/flac", file.getvalue())


def spectrogram(samples: np.ndarray, rate: int) -> np.ndarray:
    """Returns a mel spectrogram as shades from 0 to `SHADES` - 1, shape `(bands, columns)`.

    The highest band comes first. Windows have about 40 ms. The loudest point is the brightest.
    """
    window = max(32, 2 ** round(math.log2(0.04 * rate)))
    # Zero-padding gives each band a frequency bin of its own, however low the band is.
    n_fft = max(2 * window, 2048)
    power = torch.stft(
        torch.as_tensor(samples, dtype=torch.float32),
        n_fft,
        hop_length=max(window // 8, math.ceil(len(samples) / MAX_COLUMNS)),
        win_length=window,
        window=torch.hann_window(window),
        pad_mode="constant",
        return_complex=True,
    )
    filters = mel_filter_bank(n_fft // 2 + 1, BANDS, 0.0, rate / 2, rate, "slaney", "htk")
    bands = filters.T[::-1] @ power.abs().square().numpy()
    # Silence is dark: its loudest point does not count as bright.
    loudest = max(bands.max(), 1e-9)
    decibels = 10 * np.log10(np.maximum(bands / loudest, 10 ** (-DYNAMIC_RANGE / 10)))
    shades = (1 + decibels / DYNAMIC_RANGE) * SHADES
    return np.clip(shades, 0, SHADES - 1).astype(np.uint8)


def encode_png(shades: np.ndarray) -> bytes:
    """Returns shades, shape `(rows, columns)`, as a PNG in matplotlib's colours "magma"."""
    # Imported here because matplotlib takes long to load, and only pages need it.
    from matplotlib import colormaps
    from PIL import Image

    # The lightness of these colours rises evenly, so they can be read without colour vision.
    colours = colormaps["magma"](np.linspace(0, 1, SHADES), bytes=True)
    image = Image.fromarray(shades)
    image.putpalette(colours[:, :3].tobytes())
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return content.getvalue()
