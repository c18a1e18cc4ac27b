"""Build the model to train and its processor."""

from transformers import AutoTokenizer

from ..checkpoints.encoders import load_encoder, with_overrides
from ..checkpoints.load import load_model
from ..modeling_audiolm import TEXT_MODEL, AudioLMForConditionalGeneration, text_model_source
from ..processing_audiolm import AudioLMProcessor
from .arguments import DataArguments, ModelArguments

MODEL_CONFIG_FIELDS = (
    "audio_tokens",
    "learn_code_embeddings",
    "mapper_type",
    "prompt_format",
)  # fields of its configuration


def build_model(
    model_args: ModelArguments, data_args: DataArguments
) -> tuple[AudioLMForConditionalGeneration, AudioLMProcessor]:
    """The model to train and its processor: from its parts, or from an AudioLM that was trained before.

    Raises:
        ValueError: if a part does not fit, or the earlier model is of another arm.
    """
    fields = {
        "freeze_lm": model_args.freeze_lm,
        "no_audio": model_args.no_audio,
        "max_audio_seconds": data_args.max_audio_seconds,
        **{name: getattr(model_args, name) for name in MODEL_CONFIG_FIELDS},
    }
    if name := model_args.model_name_or_path:
        model, tokenizer = load_model(name)
        if model.config.encoder_type != model_args.encoder_type:
            raise ValueError(
                f"--model_name_or_path {name} is of the arm {model.config.encoder_type}, but --encoder_type is "
                f"{model_args.encoder_type}"
            )
        for field in ("no_audio", "max_audio_seconds", *MODEL_CONFIG_FIELDS):
            if (earlier := getattr(model.config, field)) != fields[field]:
                raise ValueError(
                    f"--model_name_or_path {name} was trained with --{field} {str(earlier).lower()}: give the same"
                )
        model.config.freeze_lm = model_args.freeze_lm
        model.train(False)  # frozen as the new configuration says
    else:
        encoder = load_encoder(model_args.encoder_type, model_args.encoder_name_or_path)
        if model_args.band_limit or model_args.window_seconds:
            encoder = with_overrides(encoder, model_args.band_limit, model_args.window_seconds)
        text_model = model_args.text_model_name_or_path or TEXT_MODEL
        model = AudioLMForConditionalGeneration.from_pretrained_parts(
            model_args.encoder_type, encoder, text_model, **fields
        )
        tokenizer = AutoTokenizer.from_pretrained(**text_model_source(text_model))
    return model, AudioLMProcessor.from_config(model.config, tokenizer)
