"""Audio files whose headers state no length, a wrong one, or more than the file holds."""

import io
import struct

import numpy as np
import soundfile

RATE = 16000


def tone(seconds, rate=RATE):
    """A tone of 440 Hz with some noise, which no encoder makes tiny."""
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(time))
    return (0.3 * np.sin(2 * np.pi * 440 * time) + 0.05 * noise).astype("f4")


def encode(samples, format, subtype, rate=RATE):
    """The bytes of an audio file."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, subtype, format=format)
    return file.getvalue()


def mp3_without_tag(seconds):
    """An MP3 stream without its first frame, which states the length."""
    content = encode(tone(seconds), "MP3", "MPEG_LAYER_III")
    return content[content.index(content[:2], 4) :]


def wav_with_sizes(riff, data, seconds=0.5):
    """A stereo WAV that states other sizes, as programs do that write to a pipe."""
    samples = np.stack([tone(seconds)] * 2, 1)
    content = bytearray(encode(samples, "WAV", "PCM_16"))
    content[4:8] = struct.pack("<I", riff)
    content[40:44] = struct.pack("<I", data)
    return bytes(content)


def media_file(format, codec, seconds, rate=48000):
    """The bytes of a file that FFmpeg writes."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(seconds, rate)[None], "fltp", "mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return file.getvalue()
