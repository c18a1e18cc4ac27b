"""Turns clips and a question into model inputs: resampled audio, and ids with a token per frame.

The module also reads audio files, since each further module would be pushed with every model.
"""

import errno
import io
import math
import os
import wave
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoProcessor,
    BatchFeature,
    GenerationConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

from .configuration_audiolm import AudioLMConfig, build_config, save_encoder_code
from .encoders_audiolm import AudioEncoder, build_encoder, check_rate, resample

soundfile: Any
try:
    import soundfile
except ImportError:  # Arrays and WAV files are read without it.
    soundfile = None

MELLOW_QUESTION_LENGTH = 129  # In tokens.
MELLOW_SEPARATOR_ID = 0
# libsndfile's own scaling of larger files takes three times as long, but less memory.
MAX_SAMPLES_SCALED_HERE = 2**24
# Keywords of other processors, with the values that change nothing here.
STOCK_OPTIONS: dict[str, tuple] = {
    "images": (None,),
    "videos": (None,),
    "padding": (True, "longest"),
    "truncation": (None, False),
    "add_special_tokens": (False,),
    "sanitize_control_tokens": (True, False),  # The texts of special tokens are always split.
    "return_tensors": ("pt",),
}
FULL_SCALE = {"int16": 2**15, "int32": 2**31}
MP3_TAGS = (b"Xing", b"Info", b"VBRI")
# Matroska and WebM, WMA, AAC, AMR: formats that FFmpeg reads and libsndfile does not.
MEDIA_SIGNATURES = (b"\x1aE\xdf\xa3", b"0&\xb2u", b"\xff\xf1", b"\xff\xf9", b"#!AMR")
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}"
)


class AudioLMFeatureExtractor(SequenceFeatureExtractor):
    """Converts clips of any sampling rate and channel count to mono float32 at the encoder's rate.

    Args:
        sampling_rate: The encoder's sampling rate in Hz.
        max_audio_seconds: Longer clips are truncated to this length.
        encoder_config: Dict of the encoder's configuration. Counting frames needs it.
    """

    model_input_names = ["input_values", "input_values_mask"]

    def __init__(
        self,
        sampling_rate: int = 24000,
        max_audio_seconds: float = 10.0,
        encoder_config: dict | None = None,
        **kwargs: Any,
    ):
        fields = {"feature_size": 1, "padding_value": 0.0, **kwargs}
        super().__init__(sampling_rate=sampling_rate, **fields)
        self.max_audio_seconds = max_audio_seconds
        self.encoder_config = encoder_config
        self._encoder: AudioEncoder | None = None

    @classmethod
    def from_encoder(
        cls, encoder: AudioEncoder, max_audio_seconds: float
    ) -> "AudioLMFeatureExtractor":
        """Makes the feature extractor of an encoder."""
        return cls(encoder.sample_rate, max_audio_seconds, encoder.config.to_dict())

    def to_dict(self) -> dict:
        """Returns what is saved: all but the encoder that counts frames."""
        values = super().to_dict()
        del values["_encoder"]
        return values

    def num_frames(self, num_samples: int) -> int:
        """Returns how many frames the encoder makes of a clip of `num_samples` samples.

        Raises:
            ValueError: If the extractor has no `encoder_config`.
        """
        if self._encoder is None:
            if self.encoder_config is None:
                raise ValueError("the feature extractor has no encoder_config to count frames with")
            with torch.device("meta"):  # It has sizes, but no weights.
                self._encoder = build_encoder(build_config("encoder_config", self.encoder_config))
        return self._encoder.num_frames(num_samples)

    def load(self, clip: Any, sampling_rate: int | None = None) -> torch.Tensor:
        """Loads one clip as mono audio at `sampling_rate`, shape `(samples,)`.

        Args:
            clip: A path, an array, `(array, rate)`, `(rate, array)`, or what `datasets` makes of
                audio: a dict with `array` and `sampling_rate`, `bytes` or `path`, or a decoder. The
                shorter axis of an array holds the channels. Integers of 16 or 32 bits are scaled.
            sampling_rate: Rate of an array that comes without one, in Hz. Default: the encoder's.

        Raises:
            ValueError: If the clip is empty, not finite, or has no valid shape or sampling rate, or
                if it has another rate than `sampling_rate`.
        """
        name, samples, rate = self._read(clip, sampling_rate)
        if sampling_rate not in (None, rate):
            raise ValueError(f"{name} has {rate} Hz, not sampling_rate={sampling_rate}")
        audio = torch.as_tensor(samples, dtype=torch.float32)
        if audio.ndim not in (1, 2) or not audio.numel():
            raise ValueError(
                f"{name} has shape {tuple(audio.shape)}: expected a sample or more, "
                "as (samples,) or (samples, channels)"
            )
        if audio.ndim == 2 and audio.shape[1] == 2:
            audio = (audio[:, 0] + audio[:, 1]) / 2  # Equal to the mean, and six times as fast.
        elif audio.ndim == 2:
            audio = audio.mean(1)
        check_rate(name, rate)
        audio = audio[: math.ceil(self.max_audio_seconds * rate)]
        audio = resample(audio, rate, self.sampling_rate)
        # The sum is fast to check, but may overflow where all samples are finite.
        if not torch.isfinite(audio.sum()) and not torch.isfinite(audio).all():
            raise ValueError(f"{name} holds NaN or infinite samples")
        return audio[: round(self.max_audio_seconds * self.sampling_rate)]

    def _read(self, clip: Any, rate: int | None) -> tuple[str, np.ndarray, int]:
        """Returns a clip's name for messages, its samples (channels last) and its rate in Hz."""
        if isinstance(clip, dict):
            content, path = clip.get("bytes"), clip.get("path")
            if "array" in clip:
                clip = (clip["array"], clip.get("sampling_rate", rate))
            elif content is None and path is None:
                raise ValueError("a clip's dict needs `array` and `sampling_rate`, or a file")
            else:
                clip = path if content is None else io.BytesIO(content)
        if isinstance(clip, (str, bytes, os.PathLike, io.BytesIO)):
            read = read_wav if soundfile is None else read_file
            samples, rate = read(clip, self.max_audio_seconds)
            return str(clip), samples, rate
        get_all_samples = getattr(clip, "get_all_samples", None)
        if get_all_samples is not None:  # a decoder of torchcodec
            decoded = get_all_samples()
            clip = (decoded.data, decoded.sample_rate)
        array, rate = clip if isinstance(clip, tuple) else (clip, rate)
        if np.ndim(array) == 0 and np.ndim(rate):  # gradio puts the rate first
            array, rate = rate, array
        samples = np.asarray(array)
        if samples.dtype.kind in "iub":
            if samples.dtype.name not in FULL_SCALE:
                raise ValueError(f"the clip holds {samples.dtype}: expected float, int16 or int32")
            samples = samples / np.float32(FULL_SCALE[samples.dtype.name])
        if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
            samples = samples.T
        return "the clip", samples, self.sampling_rate if rate is None else rate

    def __call__(
        self, audio: list, sampling_rate: int | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Loads clips as a batch, padded to the longest. See [`load`] and [`STOCK_OPTIONS`].

        Returns:
            `input_values` and `input_values_mask`, shape `(clips, samples)`.
        """
        check_options(kwargs)
        clips = [self.load(clip, sampling_rate) for clip in audio]
        values = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        lengths = torch.tensor([len(clip) for clip in clips])
        mask = torch.arange(values.shape[1])[None] < lengths[:, None]
        return BatchFeature({"input_values": values, "input_values_mask": mask}, tensor_type="pt")


def check_options(options: dict[str, Any]) -> None:
    """Raises TypeError for keywords, and ValueError for values, that a processor would ignore."""
    # A pipeline also passes its processor the options of `generate`.
    options = {name: options[name] for name in options.keys() - vars(GenerationConfig()).keys()}
    for name, value in options.items():
        if name not in STOCK_OPTIONS:
            raise TypeError(f"unexpected keyword {name!r}: expected text, audio, sampling_rate")
        if not isinstance(value, (str, bool, type(None))) or value not in STOCK_OPTIONS[name]:
            raise ValueError(f"{name}={value!r}: expected {STOCK_OPTIONS[name][0]!r}")


def check_file(path) -> None:
    """Raises FileNotFoundError if no regular file has this path.

    Opening a pipe would block, and libraries read a name only up to its first NUL.
    """
    if isinstance(path, (str, bytes, os.PathLike)) and not os.path.isfile(path):
        raise FileNotFoundError(errno.ENOENT, "file not found", path)


def open_file(path, seconds: float = math.inf) -> Any:
    """Opens a path or file object as audio of any format, as a `soundfile.SoundFile`.

    A file whose header does not state its length is decoded into memory, up to `seconds`.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If soundfile is not installed.
        ValueError: If the header has no format of samples, or a rate that no recording has, or if
            the format needs FFmpeg.
    """
    if soundfile is None:
        raise ImportError("install soundfile to read audio files")
    check_file(path)
    with nullcontext(path) if hasattr(path, "read") else open(path, "rb") as raw:
        header = read_at(raw, 0, 16)
        tag = find_mp3_tag(raw)
        if is_media(header):
            return _to_sound_file(*_decode_media(raw, path, seconds))
        if tag is not None and not tag.is_trusted:
            return _to_sound_file(*_decode_mp3(raw, path, tag, seconds))
        # An unfinished WAV states no samples. With this size, libsndfile counts them.
        states_nothing = header[:4] == b"RIFF" and header[4:8] in (b"\0\0\0\0", b"\x24\0\0\0")
        if states_nothing:
            path = io.BytesIO(header[:4] + b"\x08\0\0\0" + read_at(raw, 8, -1))
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


def read_at(file, position: int, size: int) -> bytes:
    """Reads bytes of an open file, and goes back to its start."""
    file.seek(position)
    content = file.read(size)
    file.seek(0)
    return content


def is_media(header: bytes) -> bool:
    """Returns whether a file that begins like this is MP4, WebM, WMA, AAC or AMR."""
    return header[4:8] == b"ftyp" or header.startswith(MEDIA_SIGNATURES)


class MP3Tag(NamedTuple):
    """What the first frame of an MP3 file says of its length."""

    position: int | None  # of the tag Xing, Info or VBRI, which a file may lack
    end: int | None  # of the stream in bytes, as stated
    is_trusted: bool  # whether a tag states the length, and no second stream follows


def find_mp3_tag(file) -> MP3Tag | None:
    """Returns what an open file states as MP3, or None for another format."""
    header = read_at(file, 0, 10)
    first_frame = 0
    if header[:3] == b"ID3" and len(header) == 10:
        size = 0
        for byte in header[6:]:  # 7 bits each
            size = size << 7 | byte
        first_frame = 10 + size
    frame = read_at(file, first_frame, 80)
    if not _is_mp3_frame(frame):
        return None
    offset = next((i for name in MP3_TAGS if (i := frame.find(name)) >= 0), None)
    if offset is None or len(frame) < offset + 16:
        return MP3Tag(None, None, False)
    tag = frame[offset:]
    is_vbri = tag.startswith(b"VBRI")
    has_frames, has_size = (True, True) if is_vbri else (tag[7] & 1, tag[7] & 2)
    size_at = 10 if is_vbri else 8 + 4 * bool(has_frames)
    end = first_frame + int.from_bytes(tag[size_at : size_at + 4], "big") if has_size else None
    follows = read_at(file, end, 10) if end else b""
    is_joined = _is_mp3_frame(follows) or follows[:3] == b"ID3"
    return MP3Tag(first_frame + offset, end, bool(has_frames) and not is_joined)


def _is_mp3_frame(content: bytes) -> bool:
    """Returns whether a frame of MPEG layer 3 begins here."""
    return len(content) > 1 and content[0] == 0xFF and content[1] & 0xE6 == 0xE2


class _EndlessFile:
    """MP3 content of unknown length, of which libsndfile decodes all and estimates nothing."""

    SIZE = 2**40

    def __init__(self, content: bytes, name: object):
        self.content = content
        self.name = name
        self.position = 0

    def __repr__(self) -> str:  # for soundfile's messages
        return repr(self.name)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + (0, self.position, self.SIZE)[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        if self.position == self.SIZE - 128:
            return bytes(128)  # in place of an ID3v1 tag
        content = self.content[self.position : self.position + size]
        self.position += len(content)
        return content


def _decode_mp3(raw, path, tag: MP3Tag, seconds: float) -> tuple[np.ndarray, int]:
    content = bytearray(read_at(raw, 0, -1))
    if tag.position is not None:
        content[tag.position : tag.position + 4] = bytes(4)  # A frame of silence takes its place.
    with soundfile.SoundFile(_EndlessFile(bytes(content), path)) as file:
        blocks = [np.zeros((0, file.channels), "float32")]
        left = seconds * file.samplerate
        while left > 0 and (len(blocks) == 1 or len(blocks[-1])):
            blocks.append(file.read(math.ceil(min(2**20, left)), "float32", always_2d=True))
            left -= len(blocks[-1])
        return np.concatenate(blocks), file.samplerate


def _decode_media(raw, path, seconds: float) -> tuple[np.ndarray, int]:
    try:
        import av
    except ImportError as error:
        raise ValueError(f"{path} needs FFmpeg: `pip install av` (extra `media`)") from error
    blocks, length = [], 0
    try:
        with av.open(raw) as container:
            stream = next(iter(container.streams.audio), None)
            if stream is None:
                raise ValueError(f"{path} holds no audio")
            resampler = av.AudioResampler("fltp")
            for frame in container.decode(stream):
                blocks += [part.to_ndarray() for part in resampler.resample(frame)]
                length += frame.samples
                if length >= seconds * stream.rate:
                    break
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be decoded by FFmpeg ({error.strerror})") from error
    if not blocks:
        raise ValueError(f"{path} holds no samples")
    return np.concatenate(blocks, 1).T, stream.rate


def _to_sound_file(samples: np.ndarray, rate: int) -> Any:
    content = io.BytesIO()
    soundfile.write(content, samples, rate, "FLOAT", format="WAV")
    content.seek(0)
    return soundfile.SoundFile(content)


def read_file(path, seconds: float) -> tuple[np.ndarray, int]:
    """Reads the first `seconds` of an audio file of any format.

    Returns:
        Samples in float32, shape `(samples, channels)`, and the sampling rate in Hz.
    """
    with open_file(path, seconds) as file:
        rate = file.samplerate
        frames = math.ceil(seconds * rate)
        if file.subtype == "PCM_16" and frames * file.channels <= MAX_SAMPLES_SCALED_HERE:
            samples = file.read(frames, dtype="int16", always_2d=True) * np.float32(2**-15)
        else:
            samples = file.read(frames, dtype="float32", always_2d=True)
    return samples, rate


def read_wav(path, seconds: float) -> tuple[np.ndarray, int]:
    """Reads a WAV file of 16 or 32 bits without soundfile, as [`read_file`] does.

    Raises:
        ImportError: If the file has another format.
    """
    check_file(path)
    try:
        with wave.open(path if hasattr(path, "read") else str(path)) as file:
            rate, channels = file.getframerate(), file.getnchannels()
            bits = 8 * file.getsampwidth()
            check_rate(path, rate, channels)
            content = file.readframes(math.ceil(seconds * rate))
        frame_bytes = channels * bits // 8
        complete = content[: len(content) // frame_bytes * frame_bytes]
        samples = np.frombuffer(complete, {16: "<i2", 32: "<i4"}[bits]).reshape(-1, channels)
    except (wave.Error, KeyError, EOFError) as error:
        raise ImportError(f"{path}: install soundfile to read it, or pass (array, rate)") from error
    return samples.astype("float32") / 2 ** (bits - 1), rate


class AudioLMProcessor(ProcessorMixin):
    """Prepares questions about one or two clips each.

    Args:
        feature_extractor: Reads the clips.
        tokenizer: The language model's tokenizer.
        audio_token_id: Id that stands for one audio token.
        audio_tokens: Tokens of each clip, or None for one per frame.
        prompt_format: `audiolm` names each clip before its tokens, then asks the question. `mellow`
            is what Mellow (arXiv 2503.08540) was trained on: two clips, each with a separator after
            it, and the question in lower case, truncated to 129 tokens or filled up with "!".
        chat_template: Template of the pipeline. Default: the texts of all messages.
    """

    def __init__(
        self,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        audio_token_id: int = 3,
        audio_tokens: int | None = None,
        prompt_format: str = "audiolm",
        chat_template: str | None = None,
        **kwargs: Any,
    ):
        self.audio_token_id = audio_token_id
        self.audio_tokens = audio_tokens
        self.prompt_format = prompt_format
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    def to_json_file(self, json_file_path: Any) -> None:
        """Saves the processor's configuration, and an encoder's own file with it."""
        super().to_json_file(json_file_path)
        config = self.feature_extractor.encoder_config
        save_encoder_code(config or {}, Path(json_file_path).parent)

    @classmethod
    def from_config(
        cls, config: AudioLMConfig, tokenizer: PreTrainedTokenizerBase
    ) -> "AudioLMProcessor":
        """Makes a model's processor.

        Raises:
            ValueError: If the configuration's `audio_token_id` is no special token.
        """
        placeholder = tokenizer.added_tokens_decoder.get(config.audio_token_id)
        if placeholder is None or not placeholder.special:
            word = tokenizer.convert_ids_to_tokens(config.audio_token_id)
            raise ValueError(
                f"audio_token_id {config.audio_token_id} is {word!r}: expected a special token"
            )
        with torch.device("meta"):
            encoder = build_encoder(config.encoder_config)
        extractor = AudioLMFeatureExtractor.from_encoder(encoder, config.max_audio_seconds)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return cls(
            extractor, tokenizer, config.audio_token_id, config.audio_tokens, config.prompt_format
        )

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        # A question that contains the text of a special token must not inject one.
        options = {"add_special_tokens": False, "split_special_tokens": True}
        return self.tokenizer(texts, **options).input_ids

    def encode_prompts(self, questions: list[str], frames: list[list[int]]) -> list[list[int]]:
        """Returns the ids of prompts, given the frames of each clip for each question.

        Raises:
            ValueError: If a question in Mellow's format does not have two clips.
        """
        if self.prompt_format == "mellow":
            return self._mellow_prompts(questions, frames)
        num_names = max(map(len, frames), default=0)
        names = [f"Audio {number}: " for number in range(1, num_names + 1)]
        line_end, *name_ids = self._tokenize(["\n", *names])
        question_ids = self._tokenize([f"{text.strip()}\nAnswer:" for text in questions])
        prompts = []
        for ids, counts in zip(question_ids, frames):
            prompt: list[int] = []
            for name, count in zip(name_ids, counts):
                prompt += [*name, *self._audio_ids(count), *line_end]
            prompts.append(prompt + ids)
        return prompts

    def _mellow_prompts(self, questions: list[str], frames: list[list[int]]) -> list[list[int]]:
        question_ids = self._tokenize([text.strip().lower() for text in questions])
        filler = self._tokenize(["!"])[0] * MELLOW_QUESTION_LENGTH
        prompts = []
        for ids, counts in zip(question_ids, frames):
            if len(counts) != 2:
                raise ValueError(
                    f"Mellow's prompts are about two clips, not {len(counts)}. Pass one clip twice"
                )
            prompt: list[int] = []
            for count in counts:
                prompt += [*self._audio_ids(count), MELLOW_SEPARATOR_ID]
            prompts.append(prompt + (ids + filler)[:MELLOW_QUESTION_LENGTH])
        return prompts

    def _audio_ids(self, frames: int) -> list[int]:
        return [self.audio_token_id] * (self.audio_tokens or frames)

    def encode_answers(self, answers: list[str]) -> list[list[int]]:
        """Returns the ids of answers, each with its EOS."""
        if self.prompt_format == "mellow":
            texts = [answer.strip().lower() for answer in answers]
        else:
            texts = [" " + answer.strip() for answer in answers]
        return [[*ids, self.tokenizer.eos_token_id] for ids in self._tokenize(texts)]

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: Any = None,
        answer: str | list[str] | None = None,
        padding_side: str = "left",
        sampling_rate: int | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Makes model inputs.

        Args:
            text: A question, or a list of questions.
            audio: For one question, a clip or a list of clips. For several, a list of these. For
                what a clip can be, see [`AudioLMFeatureExtractor.load`].
            answer: The answers, for training. `labels` are set on them and their EOS alone.
            padding_side: `left` for generation, `right` for training.
            sampling_rate: Rate of arrays that come without one, in Hz. Default: the encoder's.
            kwargs: Keywords of other processors, with values that change nothing here.

        Raises:
            TypeError: If a keyword is unknown.
            ValueError: If a keyword has a value that this processor does not fulfil.
        """
        check_options(kwargs)
        if isinstance(text, str) and isinstance(audio, list) and len(audio) == 1:
            audio = audio[0]  # a clip, or the list of the clips
        texts: list[str] = [text] if isinstance(text, str) else list(text or ())
        examples = [audio] if isinstance(text, str) else list(audio or [None] * len(texts))
        clips_by_text = [_as_list(clips) for clips in examples]
        if len(clips_by_text) != len(texts):
            raise ValueError(f"got {len(texts)} texts, but audio for {len(clips_by_text)}")
        answers = [answer] if isinstance(answer, str) else answer
        clips = list(chain.from_iterable(clips_by_text))
        data = dict(self.feature_extractor(clips, sampling_rate)) if clips else {}
        lengths = data["input_values_mask"].sum(1).tolist() if clips else []
        counts = iter([self.feature_extractor.num_frames(length) for length in lengths])
        frames = [[next(counts) for _ in example] for example in clips_by_text]
        return BatchFeature(data | self.encode_texts(texts, frames, answers, padding_side))

    def _multimodal_inputs_from_conversations(
        self, conversations: list, *args: Any, **kwargs: Any
    ) -> tuple[list, list, list, dict]:
        """Reads the clips of chats with this processor's reader, as lists by conversation.

        The stock method uses another reader, whose samples differ, and mixes the conversations.
        """
        clips = [
            [self.feature_extractor.load(clip) for clip in _clips_of_chat(conversation)]
            for conversation in conversations
        ]
        return [[None]], [[None]], clips if any(clips) else [], {}

    def encode_texts(
        self,
        texts: list[str],
        frames: list[list[int]],
        answers: list[str] | None = None,
        padding_side: str = "left",
        pad_to_multiple_of: int = 1,
    ) -> dict[str, torch.Tensor]:
        """Tokenizes questions, and answers if any.

        Args:
            texts: The questions.
            frames: Frames of each clip, for each question.
            answers: With their answers, there are `labels`.
            padding_side: `left` for generation, `right` for training.
            pad_to_multiple_of: Pads the longest sequence to a multiple of this.

        Returns:
            `input_ids`, `attention_mask` and, with answers, `labels`, shape `(batch, sequence)`.
        """
        prompts = self.encode_prompts(texts, frames)
        endings = self.encode_answers(answers) if answers else [[] for _ in prompts]
        longest = max(len(prompt) + len(ending) for prompt, ending in zip(prompts, endings))
        shape = (len(prompts), -(-longest // pad_to_multiple_of) * pad_to_multiple_of)
        input_ids = np.full(shape, self.tokenizer.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        labels = np.full(shape, -100, dtype=np.int64)
        for row, (prompt, ending) in enumerate(zip(prompts, endings)):
            length = len(prompt) + len(ending)
            first = shape[1] - length if padding_side == "left" else 0
            input_ids[row, first : first + length] = prompt + ending
            attention_mask[row, first : first + length] = 1
            labels[row, first + len(prompt) : first + length] = ending
        arrays = {"input_ids": input_ids, "attention_mask": attention_mask}
        if answers:
            arrays["labels"] = labels
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _clips_of_chat(conversation: list[dict]) -> list:
    """Returns the clips that the messages of a conversation name, in their order."""
    contents = [message["content"] for message in conversation]
    blocks = chain.from_iterable(content for content in contents if isinstance(content, list))
    clips = [block for block in blocks if block["type"] == "audio"]
    keys = ("audio", "url", "path")
    return [next(clip[key] for key in keys if key in clip) for clip in clips]


def _as_list(clips) -> list:
    if clips is None:
        return []
    return list(clips) if isinstance(clips, list) else [clips]


if not __name__.startswith("transformers_modules."):
    # The installed classes read a folder, so that its code need not be trusted.
    AutoConfig.register("audiolm", AudioLMConfig, exist_ok=True)
    AutoFeatureExtractor.register(AudioLMConfig, AudioLMFeatureExtractor, exist_ok=True)
    AutoProcessor.register(AudioLMConfig, AudioLMProcessor, exist_ok=True)
AudioLMFeatureExtractor.register_for_auto_class()
AudioLMProcessor.register_for_auto_class()
