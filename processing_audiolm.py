"""From clips and a question to what the model reads: resampled audio, and ids with a placeholder for each frame."""

import errno
import math
import os
import wave

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

from .configuration_audiolm import AudioLMConfig
from .encoders_audiolm import AudioEncoder, build_encoder, check_rate, count_frames, resample

try:
    import soundfile
except ImportError:  # arrays need no reader
    soundfile = None


class AudioLMFeatureExtractor(SequenceFeatureExtractor):
    """Clips of any rate and channel count to mono float32 at the encoder's rate, at most `max_audio_seconds` long."""

    model_input_names = ["input_values", "input_values_mask"]

    def __init__(self, sampling_rate=24000, max_audio_seconds=10.0, frame_counts=None, **kwargs):
        kwargs = {"feature_size": 1, "padding_value": 0.0, **kwargs}  # a saved one gives them too
        names = (
            "frame_size",
            "window_samples",
            "time_cells",
            "frequency_cells",
        )  # as they were saved at first
        earlier = {name: value for name in names if (value := kwargs.pop(name, None)) is not None}
        super().__init__(sampling_rate=sampling_rate, **kwargs)
        self.max_audio_seconds, self.frame_counts = (
            max_audio_seconds,
            frame_counts or earlier or {"frame_size": 1920},
        )

    @classmethod
    def of_encoder(
        cls, encoder: AudioEncoder, max_audio_seconds: float
    ) -> "AudioLMFeatureExtractor":
        """What an encoder wants to hear."""
        return cls(encoder.sample_rate, max_audio_seconds, encoder.frame_counts())

    def num_frames(self, num_samples: int) -> int:
        """Frames that the encoder gives for a clip of so many samples at `sampling_rate`."""
        return count_frames(num_samples, **self.frame_counts)

    def load(self, clip) -> torch.Tensor:
        """One clip (path, array at `sampling_rate`, or (array, rate)) as mono audio, of shape (samples,).

        Raises:
            ValueError: if the clip is empty, not finite, not of one or two dimensions, or of no rate that a recording has.
        """
        name, rate, channels = "the clip", self.sampling_rate, None
        if isinstance(clip, (str, bytes)) or hasattr(clip, "__fspath__"):
            name, channels = str(clip), 1
            clip, rate = (read_wav if soundfile is None else read_file)(
                clip, self.max_audio_seconds
            )
        elif isinstance(clip, tuple):
            clip, rate = clip
        audio = torch.as_tensor(np.asarray(clip), dtype=torch.float32)
        if audio.ndim not in (1, 2) or not audio.numel():
            raise ValueError(
                f"{name} has shape {tuple(audio.shape)}, but (samples,) or two dimensions and a sample are wanted"
            )
        if audio.ndim == 2:  # of an array, the shorter axis holds the channels
            audio = (
                audio
                if (channels or (1 if audio.shape[0] >= audio.shape[1] else 0)) == 1
                else audio.T
            )
            # the mean to the bit, and six times as fast
            audio = (audio[:, 0] + audio[:, 1]) / 2 if audio.shape[1] == 2 else audio.mean(1)
        check_rate(name, rate)
        audio = resample(
            audio[: math.ceil(self.max_audio_seconds * rate)], rate, self.sampling_rate
        )
        if (
            not torch.isfinite(audio.sum()) and not torch.isfinite(audio).all()
        ):  # a sum alone may be too large
            raise ValueError(f"{name} holds NaN or infinite samples")
        return audio[: round(self.max_audio_seconds * self.sampling_rate)]

    def __call__(self, audio: list, return_tensors="pt", **kwargs) -> BatchFeature:
        """Clips padded to the longest: `input_values` and `input_values_mask`, of shape (clips, samples)."""
        clips = [self.load(clip) for clip in audio]
        values = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        mask = torch.arange(values.shape[1])[None] < torch.tensor([len(c) for c in clips])[:, None]
        return BatchFeature(
            {"input_values": values, "input_values_mask": mask}, tensor_type=return_tensors
        )


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


def read_file(path, seconds: float) -> tuple[np.ndarray, int]:
    """The first `seconds` of an audio file of any format, (samples, channels) in float32, and its rate in Hz."""
    with open_file(path) as file:
        frames = math.ceil(seconds * file.samplerate)
        if file.subtype == "PCM_16" and frames * file.channels <= 2**24:
            # libsndfile's own scaling takes three times as long, but less memory
            return file.read(frames, dtype="int16", always_2d=True) * np.float32(
                2**-15
            ), file.samplerate
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
            content = np.frombuffer(
                content[: len(content) // size * size], {16: "<i2", 32: "<i4"}[bits]
            )
            return content.reshape(-1, file.getnchannels()).astype("float32") / 2 ** (
                bits - 1
            ), rate
    except (wave.Error, KeyError, EOFError) as error:
        raise ImportError(
            f"{path}: reading it needs the package soundfile; or give (array, rate)"
        ) from error


MELLOW_PROMPT = 129  # tokens, whatever the question
MELLOW_SEPARATOR = 0  # the token behind each clip


class AudioLMProcessor(ProcessorMixin):
    """One text with one or two clips, or a list of texts with a list of clips for each.

    Args:
        prompt_format: "audiolm" names each clip before its frames, then comes the question. "mellow" is what Mellow (arXiv
            2503.08540) was trained on: two clips, each with a separator behind it, and the question in lower case, cut or
            filled up with "!" to 129 tokens; answers are in lower case too.
    """

    def __init__(
        self,
        feature_extractor=None,
        tokenizer=None,
        audio_token_id=3,
        audio_tokens=None,
        prompt_format="audiolm",
        chat_template=None,
        **kwargs,
    ):
        self.audio_token_id, self.audio_tokens, self.prompt_format = (
            audio_token_id,
            audio_tokens,
            prompt_format,
        )
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
            raise ValueError(
                f"audio_token_id {config.audio_token_id} is no spare special token of the tokenizer, but {word!r}"
            )
        with torch.device("meta"):
            encoder = build_encoder(config.encoder_config)
        extractor = AudioLMFeatureExtractor.of_encoder(encoder, config.max_audio_seconds)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return cls(
            extractor, tokenizer, config.audio_token_id, config.audio_tokens, config.prompt_format
        )

    def _ids(self, texts: list[str]) -> list[list[int]]:
        # a question that contains a special token's text must not inject one
        return (
            self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids
            if texts
            else []
        )

    def prompts(self, questions: list[str], frames: list[list[int]]) -> list[list[int]]:
        """Ids of prompts: each clip named and standing for its frames, then the question.

        Args:
            frames: for each question the frames of each of its clips.

        Raises:
            ValueError: if a question of Mellow's does not have two clips.
        """
        if self.prompt_format == "mellow":
            return self._mellow_prompts(questions, frames)
        end, *names = self._ids(
            ["\n", *(f"Audio {i + 1}: " for i in range(max(map(len, frames), default=0)))]
        )
        made = []
        for question, counts in zip(
            self._ids([f"{question.strip()}\nAnswer:" for question in questions]), frames
        ):
            prompt = []
            for name, count in zip(names, counts):
                prompt += [*name, *[self.audio_token_id] * (self.audio_tokens or count), *end]
            made.append(prompt + question)
        return made

    def _mellow_prompts(self, questions, frames):
        made, filler = [], self._ids(["!"])[0]
        for question, counts in zip(
            self._ids([question.strip().lower() for question in questions]), frames
        ):
            if len(counts) != 2:
                raise ValueError(
                    f"a question in Mellow's format is about two clips, not {len(counts)}; give one twice"
                )
            audio = [
                [*[self.audio_token_id] * (self.audio_tokens or count), MELLOW_SEPARATOR]
                for count in counts
            ]
            made.append(audio[0] + audio[1] + (question + filler * MELLOW_PROMPT)[:MELLOW_PROMPT])
        return made

    def prompt_ids(self, question: str, frames: list[int]) -> list[int]:
        """Ids of one prompt, as of [`prompts`]."""
        return self.prompts([question], [frames])[0]

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of an answer and its EOS."""
        return self.answers([answer])[0]

    def answers(self, answers: list[str]) -> list[list[int]]:
        """Ids of answers, each with its EOS."""
        mellow = self.prompt_format == "mellow"
        texts = [answer.strip().lower() if mellow else " " + answer.strip() for answer in answers]
        return [[*ids, self.tokenizer.eos_token_id] for ids in self._ids(texts)]

    def __call__(
        self, text=None, audio=None, answer=None, padding_side="left", return_tensors="pt", **kwargs
    ) -> BatchFeature:
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
        data = {
            name: np.full((len(prompts), size), value, dtype=np.int64)
            for name, value in filled.items()
        }
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
