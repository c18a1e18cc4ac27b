"""From clips and a question to what the model reads: resampled audio, and ids with a placeholder for each frame."""

import errno
import math
import os
import wave
from functools import lru_cache

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

from .configuration_audiolm import AudioLMConfig
from .encoders_audiolm import build_encoder, htsat_windows

try:
    import soundfile
except ImportError:  # arrays need no reader
    soundfile = None

# No recording has more; a file of a few kB can state far more, and then would fill any memory.
MOST_RATE = 768_000  # Hz
MOST_SAMPLES = 12_288_000  # a second in all channels: 64 at 192 kHz


class AudioLMFeatureExtractor(SequenceFeatureExtractor):
    """Clips of any rate and channel count to mono float32 at the encoder's rate, at most `max_audio_seconds` long."""

    model_input_names = ["input_values", "input_values_mask"]

    def __init__(
        self, sampling_rate=24000, max_audio_seconds=10.0, frame_size=1920, window_samples=None, time_cells=None,
        frequency_cells=None, **kwargs,
    ):  # fmt: skip
        kwargs = {"feature_size": 1, "padding_value": 0.0, **kwargs}  # a saved one gives them too
        super().__init__(sampling_rate=sampling_rate, **kwargs)
        self.max_audio_seconds, self.frame_size, self.window_samples = max_audio_seconds, frame_size, window_samples
        self.time_cells, self.frequency_cells = time_cells, frequency_cells

    def num_frames(self, num_samples: int) -> int:
        """Frames that the encoder gives for a clip of so many samples at `sampling_rate`."""
        if self.window_samples is None:
            return -(-num_samples // self.frame_size)
        windows = htsat_windows(num_samples, self.window_samples, self.time_cells)
        return self.frequency_cells * sum(end - first for _, first, end in windows)

    def load(self, clip) -> torch.Tensor:
        """One clip (path, array at `sampling_rate`, or (array, rate)) as mono audio, of shape (samples,).

        Raises:
            ValueError: if the clip is empty, not finite, not of one or two dimensions, or of no rate that a recording has.
        """
        name, rate, channels = "the clip", self.sampling_rate, None
        if isinstance(clip, (str, bytes)) or hasattr(clip, "__fspath__"):
            name, channels = str(clip), 1
            clip, rate = (read_wav if soundfile is None else read_file)(clip, self.max_audio_seconds)
        elif isinstance(clip, tuple):
            clip, rate = clip
        audio = torch.as_tensor(np.asarray(clip), dtype=torch.float32)
        if audio.ndim not in (1, 2) or not audio.numel():
            raise ValueError(f"{name} has shape {tuple(audio.shape)}, but (samples,) or two dimensions and a sample are wanted")
        if audio.ndim == 2:  # of an array, the shorter axis holds the channels
            audio = audio if (channels or (1 if audio.shape[0] >= audio.shape[1] else 0)) == 1 else audio.T
            # the mean to the bit, and six times as fast
            audio = (audio[:, 0] + audio[:, 1]) / 2 if audio.shape[1] == 2 else audio.mean(1)
        check_rate(name, rate)
        audio = resample(audio[: math.ceil(self.max_audio_seconds * rate)], rate, self.sampling_rate)
        if not torch.isfinite(audio.sum()) and not torch.isfinite(audio).all():  # a sum alone may be too large
            raise ValueError(f"{name} holds NaN or infinite samples")
        return audio[: round(self.max_audio_seconds * self.sampling_rate)]

    def __call__(self, audio: list, return_tensors="pt", **kwargs) -> BatchFeature:
        """Clips padded to the longest: `input_values` and `input_values_mask`, of shape (clips, samples)."""
        clips = [self.load(clip) for clip in audio]
        values = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        mask = torch.arange(values.shape[1])[None] < torch.tensor([len(c) for c in clips])[:, None]
        return BatchFeature({"input_values": values, "input_values_mask": mask}, tensor_type=return_tensors)


def open_file(path):
    """An audio file of any format, opened by soundfile.

    Raises:
        FileNotFoundError: if it is no file. ValueError: if it does not tell what its samples are, or states a rate that no
            recording has.
    """
    if soundfile is None:
        raise ImportError("the package soundfile is needed to read audio files")
    check_file(path)
    try:
        file = soundfile.SoundFile(path)
    except TypeError as error:
        raise ValueError(f"{path} does not tell the rate and format of its samples") from error
    try:
        check_rate(path, file.samplerate, file.channels)
    except ValueError:
        file.close()
        raise
    return file


def check_file(path) -> None:
    """FileNotFoundError if a path is that of no file: a pipe would be waited for, and a name be read up to its first NUL."""
    if isinstance(path, (str, bytes, os.PathLike)) and not os.path.isfile(path):
        raise FileNotFoundError(errno.ENOENT, "no file is there", path)


def check_rate(name, rate: int, channels: int = 1) -> None:
    """ValueError if there are no samples a second, or more than a recording has."""
    if not (1 <= rate <= MOST_RATE and 1 <= channels <= MOST_SAMPLES / rate):
        said = f"at most {MOST_RATE:,} Hz and {MOST_SAMPLES:,} samples a second are read"
        raise ValueError(f"{name} states {channels} channels at {rate} Hz; {said}")


def read_file(path, seconds: float) -> tuple[np.ndarray, int]:
    """The first `seconds` of an audio file of any format, (samples, channels) in float32, and its rate in Hz."""
    with open_file(path) as file:
        frames = math.ceil(seconds * file.samplerate)
        if file.subtype == "PCM_16" and frames * file.channels <= 2**24:
            # libsndfile's own scaling takes three times as long, but less memory
            return file.read(frames, dtype="int16", always_2d=True) * np.float32(2**-15), file.samplerate
        return file.read(frames, dtype="float32", always_2d=True), file.samplerate


def read_wav(path, seconds: float) -> tuple[np.ndarray, int]:
    """As [`read_file`], for where soundfile is not installed: WAV files of 16 or 32 bits alone.

    Raises:
        ImportError: for any other file.
    """
    check_file(path)
    try:
        with wave.open(str(path)) as file:
            rate, bits = file.getframerate(), 8 * file.getsampwidth()
            check_rate(path, rate, file.getnchannels())
            content = file.readframes(math.ceil(seconds * rate))
            size = file.getnchannels() * bits // 8  # of a frame; a torn file may end within one
            content = np.frombuffer(content[: len(content) // size * size], {16: "<i2", 32: "<i4"}[bits])
            return content.reshape(-1, file.getnchannels()).astype("float32") / 2 ** (bits - 1), rate
    except (wave.Error, KeyError, EOFError) as error:
        raise ImportError(f"{path}: reading it needs the package soundfile; or give (array, rate)") from error


def resample(audio: torch.Tensor, rate: int, new_rate: int) -> torch.Tensor:
    """Band-limited sinc interpolation with a Hann window, 6 zero crossings and roll-off 0.99: torchaudio's defaults.

    Args:
        audio: (samples,) at `rate` Hz.

    Raises:
        ValueError: if it is no rate that a recording has.
    """
    if rate == new_rate:
        return audio
    check_rate("the audio", rate)
    check_rate("the encoder", new_rate)
    common = math.gcd(int(rate), int(new_rate))
    old, new = int(rate) // common, int(new_rate) // common
    many = -(-64 // new)  # frames that make one matrix of them
    old, new = many * old, many * new
    # the weights of an odd rate take up to 230 MB, and are not kept
    width, kernels = (_resampling_kernels if max(old, new) < 100_000 else _resampling_kernels.__wrapped__)(old, new)
    frames = torch.nn.functional.pad(audio, (width, width + old)).unfold(0, 2 * width + old, old)
    result = torch.cat([frames[:, first : first + len(kernel)] @ kernel.to(audio.dtype) for first, kernel in kernels], 1)
    return result.flatten()[: math.ceil(new * len(audio) / old)]


@lru_cache(32)
def _resampling_kernels(old: int, new: int) -> tuple[int, list[tuple[int, torch.Tensor]]]:
    """Samples that a frame of `old` ones needs before and behind it; and, for 64 of its `new` ones at a time, the first sample
    that weighs in them and the weights (samples, 64): from 32 to 44.1 kHz, 61 of a frame's 334 samples."""
    base, zeros = min(old, new) * 0.99, 6
    reach = zeros * old / base
    width, kernels = math.ceil(reach), []
    for phase in torch.arange(new, dtype=torch.float64).split(64):
        centres = phase * old / new
        first, last = math.ceil(centres[0].item() - reach), math.floor(centres[-1].item() + reach)
        t = ((torch.arange(first, last + 1)[:, None] - centres) * base / old).clamp(-zeros, zeros)
        weights = torch.sinc(t) * torch.cos(t * math.pi / zeros / 2) ** 2 * base / old
        kernels.append((width + first, weights.float()))
    return width, kernels


class AudioLMProcessor(ProcessorMixin):
    """One text with one or two clips, or a list of texts with a list of clips for each."""

    def __init__(
        self, feature_extractor=None, tokenizer=None, audio_token_id=3, audio_tokens=None, chat_template=None, **kwargs
    ):
        self.audio_token_id, self.audio_tokens = audio_token_id, audio_tokens
        chat_template = chat_template or (
            "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
            "{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
        )
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_config(cls, config: AudioLMConfig, tokenizer) -> "AudioLMProcessor":
        """The processor of a model's configuration.

        Raises:
            ValueError: if the tokenizer has an ordinary word where the configuration has the audio placeholder.
        """
        placeholder = tokenizer.added_tokens_decoder.get(config.audio_token_id)
        if placeholder is None or not placeholder.special:
            word = tokenizer.convert_ids_to_tokens(config.audio_token_id)
            raise ValueError(f"audio_token_id {config.audio_token_id} is no spare special token of the tokenizer, but {word!r}")
        with torch.device("meta"):
            encoder = build_encoder(config.encoder_config)
        extractor = AudioLMFeatureExtractor(
            encoder.sample_rate, config.max_audio_seconds,
            *(getattr(encoder, k, None) for k in ("frame_size", "window_samples", "time_cells", "frequency_cells")),
        )  # fmt: skip
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return cls(extractor, tokenizer, config.audio_token_id, config.audio_tokens)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        # a question that contains a special token's text must not inject one
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids if texts else []

    def prompts(self, questions: list[str], frames: list[list[int]]) -> list[list[int]]:
        """Ids of prompts: each clip named and standing for its frames, then the question.

        Args:
            frames: for each question the frames of each of its clips.
        """
        end, *names = self._ids(["\n", *(f"Audio {i + 1}: " for i in range(max(map(len, frames), default=0)))])
        made = []
        for question, counts in zip(self._ids([f"{question.strip()}\nAnswer:" for question in questions]), frames):
            prompt = []
            for name, count in zip(names, counts):
                prompt += [*name, *[self.audio_token_id] * (self.audio_tokens or count), *end]
            made.append(prompt + question)
        return made

    def prompt_ids(self, question: str, frames: list[int]) -> list[int]:
        """Ids of one prompt, as of [`prompts`]."""
        return self.prompts([question], [frames])[0]

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of an answer and its EOS."""
        return self.answers([answer])[0]

    def answers(self, answers: list[str]) -> list[list[int]]:
        """Ids of answers, each with its EOS."""
        return [[*ids, self.tokenizer.eos_token_id] for ids in self._ids([" " + answer.strip() for answer in answers])]

    def __call__(self, text=None, audio=None, answer=None, padding_side="left", return_tensors="pt", **kwargs) -> BatchFeature:
        """Model inputs.

        Args:
            text: a question, or a list of them.
            audio: for one question a clip or a list of clips; for several a list with a clip or a list of clips each.
                A clip is a path, an array at the encoder's rate, or (array, rate).
            answer: the answers, for training: `labels` stand on them and their EOS alone.
        """
        texts = [text] if isinstance(text, str) else list(text)
        rows = [audio] if isinstance(text, str) else list(audio or [None] * len(texts))
        rows = [[] if r is None else list(r) if isinstance(r, list) else [r] for r in rows]
        if len(rows) != len(texts):
            raise ValueError(f"{len(texts)} texts were given, but audio for {len(rows)}")
        answers = [answer] if isinstance(answer, str) else answer
        clips = [clip for row in rows for clip in row]
        data = dict(self.feature_extractor(clips)) if clips else {}
        lengths = data["input_values_mask"].sum(1).tolist() if clips else []
        counts = iter([self.feature_extractor.num_frames(n) for n in lengths])
        frames = [[next(counts) for _ in row] for row in rows]
        return BatchFeature(data | self.text_inputs(texts, frames, answers, padding_side))

    def text_inputs(
        self,
        texts: list[str],
        frames: list[list[int]],
        answers: list[str] | None = None,
        padding_side: str = "left",
        pad_to_multiple_of: int = 1,
    ) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and, where answers are given, `labels`, each (rows, sequence).

        Args:
            frames: for each text the frames of each of its clips. pad_to_multiple_of: of the sequence.
        """
        prompts = self.prompts(texts, frames)
        ends = self.answers(answers) if answers else [[] for _ in prompts]
        longest = max(len(prompt) + len(end) for prompt, end in zip(prompts, ends))
        size = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
        filled = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}
        data = {name: np.full((len(prompts), size), value, dtype=np.int64) for name, value in filled.items()}
        for i, (prompt, end) in enumerate(zip(prompts, ends)):
            length = len(prompt) + len(end)
            first = size - length if padding_side == "left" else 0
            data["input_ids"][i, first : first + length] = prompt + end
            data["attention_mask"][i, first : first + length] = 1
            data["labels"][i, first + len(prompt) : first + length] = end
        if not answers:
            del data["labels"]
        return {name: torch.from_numpy(array) for name, array in data.items()}


AudioLMFeatureExtractor.register_for_auto_class()
AudioLMProcessor.register_for_auto_class()
