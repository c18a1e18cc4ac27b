"""Asking a trained model: clips and a question in, text and the options' probabilities out (command, page, notebook)."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import TextIteratorStreamer

from ..checkpoints.load import load_model
from ..data.answer_parsing import question_kind
from ..data.audio_files import Clip, open_clip
from ..data.features import encode_clips
from ..demo import models as demo_models
from ..evaluation.answering import answer_batch, most_likely_option
from ..evaluation.controls import mean_audio_features
from ..evaluation.scores import probabilities
from ..processing_audiolm import AudioLMProcessor, open_file


@dataclass
class Heard:
    """A clip as one model hears it.

    Attributes:
        features: codes or features of its frames, on the CPU. whole, used: seconds of the clip, and of what was heard of it.
    """

    features: torch.Tensor
    whole: float
    used: float


@dataclass
class Answer:
    """What one model answered.

    Attributes:
        text: greedy. options: the probability of each option of a closed question among them, by letter or "yes" and "no".
        choice: the likeliest one, None of an open question or where two are equal. seconds: what it took.
    """

    text: str
    options: dict[str, float] = field(default_factory=dict)
    choice: str | None = None
    seconds: float = 0.0


class LoadedModel:
    """A trained AudioLM and its processor, in eval mode on the device.

    Args:
        name_or_path: a folder, a name on the Hub, or one of the demo's (`audiolm.demo.models()`), by its arm.
        revision: of a model on the Hub. device: by default an accelerator, if there is one.

    Raises:
        ValueError: in one line, if there is no such model.
    """

    def __init__(
        self,
        name_or_path: str,
        revision: str | None = None,
        device: str | torch.device | None = None,
    ):
        self.name = name_or_path
        self.is_demo = (
            name_or_path in demo_models() and not Path(name_or_path, "config.json").is_file()
        )
        model, tokenizer = load_model(
            str(demo_models()[name_or_path] if self.is_demo else name_or_path), revision
        )
        device = device or (
            torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        )
        self.model = model.to(device).eval()
        self.processor = AudioLMProcessor.from_config(model.config, tokenizer)

    @property
    def max_audio_seconds(self) -> float:
        return self.model.config.max_audio_seconds

    def listen(self, clips: list[Clip]) -> list[Heard]:
        """Each of the clips, encoded.

        Raises:
            BadClip: naming the first that cannot be decoded.
        """
        made = dict(
            encode_clips(
                self.model.encoder, self.processor.feature_extractor, list(dict.fromkeys(clips))
            )
        )
        whole = {clip: seconds_of(clip) for clip in made}
        return [
            Heard(made[clip], whole[clip], min(whole[clip], self.max_audio_seconds))
            for clip in clips
        ]

    def ask(
        self,
        questions: list[str],
        heard: list[list[Heard]],
        muted: bool = False,
        max_new_tokens: int = 64,
        streamer=None,
    ) -> list[Answer]:
        """Answers to questions together, each about clips of its own.

        Args:
            muted: every frame is the mean of training's, and the same number of them: what the model says without listening.
            streamer: of transformers, is given the text's tokens as they come; for one question alone.

        Raises:
            ValueError: if clips and question come to more tokens than the language model takes.
        """
        start = time.perf_counter()
        if self.processor.prompt_format == "mellow":  # is always asked about two
            heard = [clips * 2 if len(clips) == 1 else clips for clips in heard]
        every = {id(clip): clip.features for clips in heard for clip in clips}
        frames = {
            key: len(of) if of.is_floating_point() else of.shape[-1] for key, of in every.items()
        }
        if muted and not self.model.mapper.feature_mean.any():
            raise ValueError(
                f"{self.name} does not hold the mean of its training's features, and cannot be asked without audio"
            )
        if muted or self.model.config.no_audio:
            every = {key: mean_audio_features(self.model, of) for key, of in every.items()}
        most = self.model.config.text_config.max_position_embeddings
        for question, clips in zip(questions, heard):
            prompt = self.processor.prompt_ids(question, [frames[id(clip)] for clip in clips])
            if (count := len(prompt) + max_new_tokens) > most:
                raise ValueError(
                    f"clips, question and answer come to {count:,} tokens; {self.name} takes {most:,}"
                )
        rows = [
            {
                "input": question,
                "answer": "yes",
                "question_type": question_kind(question),
                "audio": [id(c) for c in clips],
            }
            for question, clips in zip(questions, heard)
        ]
        made = answer_batch(
            self.model,
            self.processor,
            rows,
            every,
            ("likelihood", "generate"),
            max_new_tokens,
            streamer=streamer,
        )
        seconds = time.perf_counter() - start
        return [
            Answer(
                of["text"], probabilities(of["scores"]), most_likely_option(of["scores"]), seconds
            )
            for of in made
        ]

    def stream(
        self, question: str, heard: list[Heard], muted: bool = False, max_new_tokens: int = 64
    ) -> Iterator[str | Answer]:
        """The text of an answer as far as it is written, again and again, and last the whole [`Answer`]."""
        streamer, text = (
            TextIteratorStreamer(
                self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True
            ),
            "",
        )
        with ThreadPoolExecutor(1) as pool:
            made = pool.submit(self.ask, [question], [heard], muted, max_new_tokens, streamer)
            made.add_done_callback(
                lambda _: streamer.end()
            )  # also where it has failed, or the loop would wait for ever
            for piece in streamer:
                text += piece
                yield text.strip()
            yield made.result()[0]


def seconds_of(clip: Clip) -> float:
    """Length of a clip, all of it."""
    with open_file(open_clip(clip)) as file:
        return file.frames / file.samplerate
