"""The steps that run_benchmark.py compares: rows of ReasonAQA's lengths, the loss of a batch of ours, and the textbook's."""

import math
import random
import wave
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import nn

from ..configuration_audiolm import AudioLMConfig, parse_encoder_type
from ..modeling_audiolm import AudioLMForConditionalGeneration
from ..processing_audiolm import AudioLMProcessor

# ReasonAQA's training rows by kind: how many, their clips, and mean tokens of question and answer, by SmolLM2's tokenizer
KINDS = {
    "multiple choice": (337_082, 1, 30, 5),
    "detail": (333_970, 1, 11, 54),
    "caption": (67_855, 1, 3, 16),
    "yes or no": (14_088, 1, 14, 1),
    "entailment": (11_511, 1, 50, 6),
    "difference, tier 1": (67_855, 2, 7, 39),
    "difference, tier 2": (67_855, 2, 7, 64),
    "difference, tier 3": (67_855, 2, 6, 181),
}
SPREAD = 0.25  # standard deviation of a length's logarithm
POOL = 288 if torch.cuda.is_available() else 24  # clips that are made
SMALL = {
    "clap_audio_model": {
        "patch_embeds_hidden_size": 8,
        "hidden_size": 64,
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "window_seconds": 1.0,
    },
    "mimi": {
        "hidden_size": 32,
        "num_filters": 4,
        "num_hidden_layers": 1,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "codebook_dim": 16,
        "codebook_size": 64,
        "upsample_groups": 32,
        "vector_quantization_hidden_dimension": 16,
        "num_quantizers": 8,
    },
    "encodec": {
        "hidden_size": 16,
        "num_filters": 2,
        "codebook_size": 64,
        "codebook_dim": 16,
        "target_bandwidths": [3.6],
    },
    "dac": {
        "encoder_hidden_size": 2,
        "decoder_hidden_size": 32,
        "codebook_size": 64,
        "codebook_dim": 4,
    },
    "text": {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "max_position_embeddings": 2048,
    },
}


def clip_files(folder: str | Path) -> list[str]:
    return [str(Path(folder, f"{number}.wav")) for number in range(POOL)]


def write_clips(folder: str | Path, rate: int, seconds: float, seed: int) -> None:
    """`POOL` files of noise, 16 bits, mono.

    Raises:
        ValueError: if so many seconds hold no sample.
    """
    samples, noise = round(seconds * rate), torch.Generator().manual_seed(seed)
    if not samples:
        raise ValueError(f"--seconds {seconds:g}: at {rate} Hz that is no sample")
    for path in clip_files(folder):
        with wave.open(path, "wb") as file:
            file.setparams((1, 2, rate, 0, "NONE", ""))
            file.writeframes(
                (3000 * torch.randn(samples, generator=noise)).to(torch.int16).numpy().tobytes()
            )


def draw_rows(
    count: int, seed: int, words: int, clips: list[str], one_clip: bool = False
) -> list[dict]:
    """Rows as the data set has them, of numbered words, about one or two of the clips; the same for every arm."""
    draw = random.Random(seed)

    def text(mean):
        size = max(1, round(mean * math.exp(SPREAD * draw.gauss(0, 1) - SPREAD**2 / 2)))
        return "".join(f"w{draw.randrange(4, words)}" for _ in range(size))

    rows = []
    kinds = [kind for kind in KINDS.values() if kind[1] == 1 or not one_clip]
    for _, heard, asked, said in draw.choices(kinds, [kind[0] for kind in kinds], k=count):
        rows.append(
            {"audio": draw.sample(clips, heard), "input": text(asked), "answer": text(said)}
        )
    return rows


def word_tokenizer(words: int) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of `words` numbered words, made here; the prompt's own words come to as many tokens as by SmolLM2's."""
    vocabulary = ["<unk>", "<bos>", "<eos>", "<audio>", *(f"w{i}" for i in range(4, words))]
    raw = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    raw.normalizer = normalizers.Replace(Regex("^ "), "")
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"w\d+|\w+|\W"), "isolated")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<eos>",
        pad_token="<eos>",
        additional_special_tokens=["<audio>"],
    )


def build(options) -> tuple[AudioLMForConditionalGeneration, AudioLMProcessor]:
    """The model and its processor; the same weights in every process."""
    parts = {}
    if options.small:
        small = [SMALL.get(parse_encoder_type(arm)[0]) for arm in options.encoder_type.split("+")]
        encoder = small[0] if len(small) == 1 else dict(zip(("first", "second"), small))
        parts = {"encoder_config": encoder, "text_config": SMALL["text"], "mapper_hidden_size": 32}
    config = AudioLMConfig(
        options.encoder_type,
        max_audio_seconds=options.seconds,
        freeze_lm=options.freeze_lm,
        audio_tokens=options.audio_tokens,
        **parts,
    )
    torch.manual_seed(options.seed)
    model = AudioLMForConditionalGeneration(config)
    for name, buffer in model.encoder.named_buffers():
        if name.endswith(
            ("embed_sum", "codebook.embed")
        ):  # Mimi's and EnCodec's begin as zeros, and so would all features
            buffer.normal_()
    return model, AudioLMProcessor.from_config(
        config, word_tokenizer(config.text_config.vocab_size)
    )


def packed(batch: dict, lengths: list[int], audio_token_id: int) -> dict:
    """A batch of [`ReasonAQACollator`] with its rows, of so many tokens each, one behind the other as a single row.

    Positions begin anew with each, in which transformers sees what belongs together, if keys and values are not kept.
    """
    real = torch.arange(batch["input_ids"].shape[1])[None] < torch.tensor(lengths)[:, None]
    ids, labels = batch["input_ids"][real][None], batch["labels"][real][None]
    return {
        **batch,
        "input_ids": ids,
        "labels": labels,
        "use_cache": False,
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "label_index": (labels[0] != -100).nonzero()[:, 0],
        "audio_index": (ids[0] == audio_token_id).nonzero()[:, 0],
    }


def naive_batch(rows: list[dict], processor: AudioLMProcessor) -> dict:
    """The textbook's: each row's clips as waveforms, an attention mask, padded to the longest row."""
    made = processor(
        [row["input"] for row in rows],
        [row["audio"] for row in rows],
        [row["answer"] for row in rows],
        padding_side="right",
    )
    return {name: made[name] for name in ("input_ids", "attention_mask", "labels", "input_values")}


def encode(model: AudioLMForConditionalGeneration, batch: dict) -> None:
    """Puts features in the place of a batch's waveforms or codes, as the model's forward would."""
    if "input_values" in batch:
        values, lengths = batch.pop("input_values"), batch.pop("num_samples", None)
        batch["input_features"] = model.encoder.encode(values, lengths)
        batch["num_frames"] = [
            model.encoder.num_frames(length)
            for length in lengths or [values.shape[1]] * len(values)
        ]
    elif not batch["input_features"].is_floating_point():
        batch["input_features"] = model.encoder.decode_codes(batch["input_features"])


def our_loss(model: AudioLMForConditionalGeneration, batch: dict) -> torch.Tensor:
    return model(**batch).loss


def naive_loss(model: AudioLMForConditionalGeneration, batch: dict) -> torch.Tensor:
    """Logits of every position in float32, and the shifted cross-entropy over them."""
    ids, language_model = batch["input_ids"], model.language_model
    embeds, audio = (
        language_model.get_input_embeddings()(ids),
        model.mapper(batch["input_features"].flatten(0, 1)),
    )
    embeds = embeds.masked_scatter((ids == model.config.audio_token_id)[..., None], audio)
    logits = language_model(
        inputs_embeds=embeds, attention_mask=batch["attention_mask"]
    ).logits.float()
    wanted = nn.functional.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
    return nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())


def step_flops(
    config: AudioLMConfig, dim: int, lengths: list[int], labels: int, frames: int
) -> int:
    """FLOPs that a training step needs, whoever computes it; norms, embeddings, softmax and the encoder are not counted.

    A matrix of m x n costs a token 2mn forward, 2mn for its input's gradient and, if it trains, 2mn for its own: the
    language model's at every real token, its head's where a label follows, the mapper's at every frame (whose own
    gradient nobody needs). Causal attention costs a row of T tokens 2T² x (heads x head size) a layer, and twice that backward.

    Args:
        dim: channels of the encoder's features. lengths: tokens of each row, without padding.
    """
    text, times = config.text_config, 4 if config.freeze_lm else 6
    width = text.num_attention_heads * text.head_dim
    layer = text.hidden_size * (
        2 * width + 2 * text.num_key_value_heads * text.head_dim + 3 * text.intermediate_size
    )
    attention = 6 * text.num_hidden_layers * width * sum(length**2 for length in lengths)
    mapper = frames * config.mapper_hidden_size * (4 * dim + 6 * text.hidden_size)
    return (
        times
        * (
            text.num_hidden_layers * layer * sum(lengths)
            + text.hidden_size * text.vocab_size * labels
        )
        + attention
        + mapper
    )
