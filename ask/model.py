"""A loaded model that answers: clips and a question in, text and the options' probabilities out."""

import time
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch

from ..checkpoints.load import import_saved_encoders, load_model
from ..data.answer_parsing import infer_answer_format, option_texts
from ..data.audio_files import Clip, open_clip
from ..data.features import count_frames, encode_clips
from ..demo import FOLDER, MODEL_NAMES
from ..evaluation.answering import answer_batch, most_likely_option
from ..evaluation.controls import mean_audio_features
from ..evaluation.scores import softmax_scores
from ..evaluation.tables import training_notes
from ..processing_audiolm import AudioLMProcessor, open_file
from ..runtime import UserError


@dataclass
class EncodedClip:
    """A clip as one model receives it.

    Attributes:
        features: Codes or features of its frames, on the CPU.
        duration: Seconds of the whole clip.
        used: Seconds that the model uses.
    """

    features: torch.Tensor
    duration: float
    used: float

    @property
    def is_truncated(self) -> bool:
        """Whether the model uses the beginning only."""
        return self.duration > self.used + 0.05


@dataclass
class Answer:
    """What one model answers.

    Attributes:
        text: Generated greedily.
        options: Probability of each option of a closed question, by letter or "yes" and "no".
        choice: The most likely option. None for an open question and for an exact tie.
        seconds: Time that it took.
        option_texts: The text of each lettered option, by its letter.
    """

    text: str
    options: dict[str, float] = field(default_factory=dict)
    choice: str | None = None
    seconds: float = 0.0
    option_texts: dict[str, str] = field(default_factory=dict)

    @property
    def reply(self) -> str:
        """The chosen option in words, or the text where no option is chosen."""
        return self.text if self.choice is None else self.option_texts.get(self.choice, self.choice)

    @property
    def facts(self) -> dict[str, str | float | None]:
        """The answer as the command prints it: chosen, with its probability, and generated."""
        return {
            "answer": self.reply,
            "choice": self.choice,
            "probability": self.probability,
            "text": self.text,
        }

    @property
    def probability(self) -> float | None:
        """Probability of the chosen option."""
        return None if self.choice is None else self.options[self.choice]

    @property
    def probabilities(self) -> dict[str, float]:
        """Probability of each option, as it is written in the question."""
        names = {name: f"{name.upper()}) {text}" for name, text in self.option_texts.items()}
        return {names.get(name, name): share for name, share in self.options.items()}


class LoadedModel:
    """A trained AudioLM and its processor, in eval mode on the device.

    Args:
        name_or_path: A folder, a Hub name, or a model of the demo (`audiolm.demo.MODEL_NAMES`).
        revision: Branch, tag or commit of a model on the Hub.
        trust_remote_code: Whether to run the file of an encoder in the model's folder.

    Raises:
        UserError: If there is no such model.
    """

    def __init__(
        self, name_or_path: str, revision: str | None = None, trust_remote_code: bool = False
    ):
        self.name = name_or_path
        is_folder = Path(name_or_path, "config.json").is_file()
        self.is_demo = name_or_path in MODEL_NAMES and not is_folder
        source = FOLDER / name_or_path if self.is_demo else name_or_path
        try:
            if trust_remote_code:
                import_saved_encoders([str(source)], revision)
            model, tokenizer = load_model(str(source), revision)
        except UserError as error:  # the option has another name here
            raise UserError(str(error).replace("--model_name_or_path", "--model")) from error
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
        self.model = model.to(device).eval()
        self.processor = AudioLMProcessor.from_config(model.config, tokenizer)

    @property
    def max_audio_seconds(self) -> float:
        """Longest part of a clip that the model uses, in s."""
        return self.model.config.max_audio_seconds

    @property
    def notes(self) -> list[str]:
        """What limits its answers."""
        return training_notes(getattr(self.model.config, "training", None))

    def encode(self, clips: list[Clip]) -> list[EncodedClip]:
        """Encodes clips.

        Raises:
            BadClip: If one cannot be decoded. It names the first.
        """
        unique = list(dict.fromkeys(clips))
        features = dict(encode_clips(self.model.encoder, self.processor.feature_extractor, unique))
        encoded = {}
        for clip in unique:
            with open_file(open_clip(clip)) as file:
                duration = file.frames / file.samplerate
            used = min(duration, self.max_audio_seconds)
            encoded[clip] = EncodedClip(features[clip], duration, used)
        return [encoded[clip] for clip in clips]

    def ask(
        self,
        questions: list[str],
        clips: list[list[EncodedClip]],
        no_audio: bool = False,
        max_new_tokens: int = 64,
    ) -> list[Answer]:
        """Answers questions in one batch, each about clips of its own.

        Args:
            questions: With their options, as `add_options` writes them.
            clips: The clips of each question.
            no_audio: Replace each frame by the mean of the training clips' features.
            max_new_tokens: Longest answer.

        Raises:
            UserError: If a question and its clips are longer than the language model's context, or
                if the model cannot be asked without audio.
        """
        start = time.perf_counter()
        if no_audio and not self.model.mapper.feature_mean.any():
            raise UserError(
                f"{self.name} does not hold the mean features of its training clips, so it cannot "
                "be asked without audio"
            )
        if self.processor.prompt_format == "mellow":  # its prompt always has two clips
            clips = [pair * 2 if len(pair) == 1 else pair for pair in clips]
        rows = []
        for question, own_clips in zip(questions, clips):
            self._check_length(question, own_clips, max_new_tokens)
            row = {"input": question, "answer": "yes", "audio": [id(clip) for clip in own_clips]}
            rows.append(row | {"question_type": infer_answer_format(question)})
        # By the identity of their clip.
        features = {id(clip): clip.features for clip in chain.from_iterable(clips)}
        if no_audio or self.model.config.no_audio:
            features = {key: mean_audio_features(self.model, features[key]) for key in features}
        protocols = ("likelihood", "generate")
        results = answer_batch(
            self.model, self.processor, rows, features, protocols, max_new_tokens
        )
        seconds = time.perf_counter() - start
        answers = []
        for question, result in zip(questions, results):
            scores = result["scores"]
            shares, choice = softmax_scores(scores), most_likely_option(scores)
            texts = option_texts(question)
            answers.append(Answer(result["text"], shares, choice, seconds, texts))
        return answers

    def _check_length(self, question: str, clips: list[EncodedClip], max_new_tokens: int) -> None:
        limit = self.model.config.text_config.max_position_embeddings
        frames = [count_frames(clip.features) for clip in clips]
        (prompt,) = self.processor.encode_prompts([question], [frames])
        length = len(prompt) + max_new_tokens
        if length > limit:
            raise UserError(
                f"clips, question and answer have {length:,} tokens; {self.name} takes up to "
                f"{limit:,}"
            )
