"""Clips in the report: the seconds that were used, as a small audio file, and their spectrogram, both as data URIs."""

import base64
import io
import math
import struct
import zlib
from typing import NamedTuple

import numpy as np
import soundfile

from ..processing_audiolm import open_file

# the first that libsndfile can write at the clip's rate; MP3 before Vorbis, which iPhones play since 2025 only
FORMATS = (
    ("MP3", "MPEG_LAYER_III", "audio/mpeg"),
    ("OGG", "VORBIS", "audio/ogg"),
    ("FLAC", "PCM_16", "audio/flac"),
    ("WAV", "PCM_16", "audio/wav"),
)
QUALITY = 0.5  # of MP3 and Vorbis, from 0, the best, to 1: some 40 to 75 kB for 10 s
COLUMNS, BANDS = 360, 96  # of a spectrogram
DEPTH = 70.0  # dB below a spectrogram's loudest point that are told apart
SHADES = 32
MARKS = (0.5, 1, 2, 4, 8, 16)  # kHz, on the axis of a spectrogram
# Dark violet to pale yellow: their lightness rises evenly, so that they read without colour too (matplotlib's magma).
COLOURS = (
    (0, 0, 4),
    (28, 16, 68),
    (79, 18, 123),
    (129, 37, 129),
    (181, 54, 122),
    (229, 80, 100),
    (251, 135, 97),
    (254, 194, 135),
    (252, 253, 191),
)


class Picture(NamedTuple):
    """A clip as the page shows it.

    Attributes:
        audio, spectrogram: data URIs. whole: seconds of the file; used: seconds that the models were given.
        hertz: marks of the frequency axis, place in per cent from the top and kHz; times: from the left, and seconds.
    """

    audio: str
    spectrogram: str
    whole: float
    used: float
    hertz: list[tuple[float, str]]
    times: list[tuple[float, str]]


def picture(source, max_seconds: float, playable: bool = True) -> Picture:
    """The first `max_seconds` of what soundfile reads, channels averaged; its audio is empty unless `playable`.

    Raises:
        soundfile.LibsndfileError, OSError: if it cannot be read. ValueError: if it holds no samples, or states too many.
    """
    with open_file(source) as sound:
        rate, whole = sound.samplerate, sound.frames / sound.samplerate
        samples = sound.read(math.ceil(max_seconds * rate), dtype="float32", always_2d=True).mean(1)
    if not len(samples):
        raise ValueError("no samples")
    used, top = len(samples) / rate, mel(rate / 2)
    step = next(
        step
        for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 600)
        if used / step <= 6 or step == 600
    )
    return Picture(
        audio_uri(samples, rate) if playable else "",
        data_uri("image/png", png(spectrogram(samples, rate))),
        whole,
        used,
        [
            (100 - 100 * mel(1000 * mark) / top, f"{mark:g}")
            for mark in MARKS
            if 1000 * mark <= 0.97 * rate / 2
        ],
        [
            (100 * second / used, f"{second:g}")
            for second in np.arange(0, used, step).round(6).tolist()
        ],
    )


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def audio_uri(samples: np.ndarray, rate: int) -> str:
    """A small audio file of samples, (samples,), at `rate` Hz."""
    for file_format, subtype, kind in FORMATS:
        if not soundfile.check_format(file_format, subtype):
            continue
        file, lossy = io.BytesIO(), file_format in ("MP3", "OGG")
        try:
            soundfile.write(
                file,
                samples,
                rate,
                subtype,
                format=file_format,
                compression_level=QUALITY if lossy else None,
            )
        except soundfile.LibsndfileError:  # a rate that the format does not know, such as 96 kHz
            continue
        return data_uri(kind, file.getvalue())
    raise ValueError(
        f"libsndfile {soundfile.__libsndfile_version__} writes none of {', '.join(f for f, *_ in FORMATS)}"
    )


def mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def spectrogram(samples: np.ndarray, rate: int) -> np.ndarray:
    """Power in mel bands from 0 Hz to half the rate, as shades from 0 to `SHADES` - 1: (bands, columns), the highest first.

    Windows of some 40 ms; the loudest point is the brightest, `DEPTH` dB less and silence the darkest.
    """
    size = 2 ** round(math.log2(0.04 * rate))
    centres = np.linspace(0, len(samples), min(COLUMNS, max(2, 8 * len(samples) // size)) * 2 + 1)[
        1::2
    ].astype(int)
    padded = np.pad(samples, size // 2)
    frames = np.stack([padded[centre : centre + size] for centre in centres]) * np.hanning(size)
    power = np.abs(np.fft.rfft(frames)) ** 2
    # a band's power is the difference of the running sum at its edges, also where it is narrower than a bin
    running = np.pad(np.cumsum(power, 1), ((0, 0), (1, 0)))
    edges = (
        700
        * (10 ** (np.linspace(0, mel(rate / 2), BANDS + 1) / 2595) - 1)
        * (power.shape[1] / (rate / 2))
    )
    at = np.array([np.interp(edges, np.arange(running.shape[1]), row) for row in running])
    bands = (np.diff(at) / np.diff(edges))[:, ::-1].T
    decibels = (
        10 * np.log10(np.maximum(bands, 1e-12) / max(bands.max(), 1e-12))
        if bands.max() > 1e-12
        else bands - 2 * DEPTH
    )
    return np.clip((1 + decibels / DEPTH) * SHADES, 0, SHADES - 1).astype(np.uint8)


def png(shades: np.ndarray) -> bytes:
    """A PNG file of shades, (rows, columns), in `COLOURS`."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    place = np.linspace(0, len(COLOURS) - 1, SHADES)
    palette = (
        np.stack([np.interp(place, range(len(COLOURS)), of) for of in zip(*COLOURS)], 1)
        .round()
        .astype(np.uint8)
    )
    rows, columns = shades.shape
    lines = np.pad(shades, ((0, 0), (1, 0))).tobytes()  # each line's first byte is its filter: none
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", header),
            chunk(b"PLTE", palette.tobytes()),
            chunk(b"IDAT", zlib.compress(lines, 9)),
            chunk(b"IEND", b""),
        ]
    )
