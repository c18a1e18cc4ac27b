"""What `audiolm benchmark` runs: noise clips, examples of ReasonAQA's lengths, a baseline step."""

import math
import random
import wave
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import nn

from ..configuration_audiolm import AudioLMConfig
from ..modeling_audiolm import AudioLMForConditionalGeneration
from ..processing_audiolm import AudioLMProcessor
from ..runtime import UserError


class ExampleKind(NamedTuple):
    """A kind of ReasonAQA's training examples. Token counts are means with SmolLM2's tokenizer."""

    frequency: int
    clips: int
    question_tokens: int
    answer_tokens: int


KINDS = {
    "multiple choice": ExampleKind(337_082, 1, 30, 5),
    "detail": ExampleKind(333_970, 1, 11, 54),
    "caption": ExampleKind(67_855, 1, 3, 16),
    "yes or no": ExampleKind(14_088, 1, 14, 1),
    "entailment": ExampleKind(11_511, 1, 50, 6),
    "difference, tier 1": ExampleKind(67_855, 2, 7, 39),
    "difference, tier 2": ExampleKind(67_855, 2, 7, 64),
    "difference, tier 3": ExampleKind(67_855, 2, 6, 181),
}
LENGTH_SPREAD = 0.25  # standard deviation of the logarithm of a length
FIRST_WORD_ID = 4  # after <unk>, <bos>, <eos> and <audio>
# Mimi's and EnCodec's codebooks are initialised with zeros, which would make all features zeros.
CODEBOOKS = ("embed_sum", "codebook.embed")


def clip_files(folder: str | Path) -> list[str]:
    """Returns the paths of the clips: 288 for a GPU, 24 for a CPU."""
    num_clips = 288 if torch.cuda.is_available() else 24
    return [str(Path(folder, f"{number}.wav")) for number in range(num_clips)]


def write_clips(folder: str | Path, sampling_rate: int, seconds: float) -> None:
    """Writes the clips of `clip_files` as 16-bit mono files of noise."""
    num_samples = round(seconds * sampling_rate)
    if not num_samples:
        raise UserError(f"--seconds {seconds:g}: shorter than a sample at {sampling_rate} Hz")
    generator = torch.Generator().manual_seed(0)
    for path in clip_files(folder):
        noise = 3000 * torch.randn(num_samples, generator=generator)
        with wave.open(path, "wb") as file:
            file.setparams((1, 2, sampling_rate, 0, "NONE", ""))
            file.writeframes(noise.to(torch.int16).numpy().tobytes())


def draw_examples(
    count: int, vocab_size: int, clips: list[str], one_clip: bool = False
) -> list[dict]:
    """Draws examples with ReasonAQA's lengths, of words that `word_tokenizer` knows.

    They are the same for every encoder.
    """
    rng = random.Random(0)

    def draw_text(mean_tokens: int) -> str:
        factor = math.exp(LENGTH_SPREAD * rng.gauss(0, 1) - LENGTH_SPREAD**2 / 2)
        num_tokens = max(1, round(mean_tokens * factor))
        return "".join(f"w{rng.randrange(FIRST_WORD_ID, vocab_size)}" for _ in range(num_tokens))

    kinds = [kind for kind in KINDS.values() if kind.clips == 1 or not one_clip]
    return [
        {
            "audio": rng.sample(clips, kind.clips),
            "input": draw_text(kind.question_tokens),
            "answer": draw_text(kind.answer_tokens),
        }
        for kind in rng.choices(kinds, [kind.frequency for kind in kinds], k=count)
    ]


def word_tokenizer(vocab_size: int) -> transformers.PreTrainedTokenizerFast:
    """Builds a tokenizer of numbered words that splits a prompt's template as SmolLM2's does."""
    numbered = [f"w{number}" for number in range(FIRST_WORD_ID, vocab_size)]
    vocabulary = ["<unk>", "<bos>", "<eos>", "<audio>", *numbered]
    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(Regex("^ "), "")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"w\d+|\w+|\W"), "isolated")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<eos>",
        pad_token="<eos>",
        additional_special_tokens=["<audio>"],
    )


def build_model(options: Namespace) -> tuple[AudioLMForConditionalGeneration, AudioLMProcessor]:
    """Builds the model and its processor, with the same random weights in every process."""
    config = AudioLMConfig(
        options.encoder_type,
        max_audio_seconds=options.seconds,
        **options.config_overrides,
    )
    torch.manual_seed(0)
    model = AudioLMForConditionalGeneration(config)
    for name, buffer in model.named_buffers():
        if name.endswith(CODEBOOKS):
            buffer.normal_()
    tokenizer = word_tokenizer(config.text_config.vocab_size)
    return model, AudioLMProcessor.from_config(config, tokenizer)


def encode_batch(model: AudioLMForConditionalGeneration, batch: dict) -> None:
    """Replaces a batch's waveforms or codes by features, in place, as the model's forward would."""
    encoder: Any = model.encoder
    if "input_values" in batch:
        values = batch.pop("input_values")
        lengths = batch.pop("num_samples", None)
        batch["input_features"] = encoder.encode(values, lengths)
        lengths = lengths or [values.shape[1]] * len(values)
        batch["num_frames"] = [encoder.num_frames(length) for length in lengths]
    elif not batch["input_features"].is_floating_point():
        batch["input_features"] = encoder.decode_codes(batch["input_features"])


def model_loss(model: AudioLMForConditionalGeneration, batch: dict) -> torch.Tensor:
    """Returns the loss that `run_train.py` minimises."""
    return model(**batch).loss


def collate_baseline(examples: list[dict], processor: AudioLMProcessor) -> dict:
    """Returns a batch of waveforms with an attention mask, padded to the longest example."""
    batch = processor(
        [example["input"] for example in examples],
        [example["audio"] for example in examples],
        [example["answer"] for example in examples],
        padding_side="right",
    )
    return {name: batch[name] for name in ("input_ids", "attention_mask", "labels", "input_values")}


def baseline_loss(model: AudioLMForConditionalGeneration, batch: dict) -> torch.Tensor:
    """Returns the cross-entropy from float32 logits of every position."""
    ids = batch["input_ids"]
    embeddings = model.get_input_embeddings()(ids)
    audio = model.mapper(batch["input_features"].flatten(0, 1))
    is_audio = (ids == model.config.audio_token_id)[..., None]
    logits = model.language_model(
        inputs_embeds=embeddings.masked_scatter(is_audio, audio),
        attention_mask=batch["attention_mask"],
    ).logits.float()
    targets = nn.functional.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
