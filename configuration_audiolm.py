"""Configuration of AudioLM: which encoder, which language model, and the mapper between them."""

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

# Every arm of the experiment: the configuration class of its encoder and what the arm adds to that configuration.
ENCODER_TYPES = {
    "htsat": ("clap_audio_model", {}),
    "mimi_semantic": ("mimi", {"num_levels": 1}),
    "mimi_full": ("mimi", {"num_levels": 8}),
}
# How MS-CLAP 2023 hears: 44.1 kHz audio through the mel filters of a 32 kHz bank, windows of 7 s.
MSCLAP_FRONT_END = {
    "sampling_rate": 44100,
    "mel_sampling_rate": 32000,
    "n_fft": 1024,
    "hop_length": 320,
    "frequency_min": 50.0,
    "frequency_max": 14000.0,
    "window_seconds": 7.0,
}


class AudioLMConfig(PreTrainedConfig):
    """Configuration of [`AudioLMForConditionalGeneration`].

    Args:
        encoder_type: the arm: "htsat", "mimi_semantic" or "mimi_full".
        encoder_config: configuration (or its dict) of the encoder: `ClapAudioConfig` with the fields of
            `MSCLAP_FRONT_END`, or `MimiConfig` with `num_levels`. Defaults to the arm's.
        text_config: configuration (or its dict) of the language model. Defaults to SmolLM2-135M's.
        mapper_hidden_size: width of the mapper's hidden layer.
        audio_token_id: id that stands for one audio frame in `input_ids`.
        max_audio_seconds: longest clip that is used, in s.
        freeze_lm: whether the language model's weights stay as they are in training.
        no_audio: every frame is the mean of the training clips' features: the model that has the text and the clip's
            length alone, but as many tokens and weights.

    Raises:
        ValueError: if `encoder_type` or the language model's type is unknown, or `encoder_config` is another encoder's.
    """

    model_type = "audiolm"
    sub_configs = {"encoder_config": AutoConfig, "text_config": AutoConfig}
    has_no_defaults_at_init = False

    def __init__(
        self,
        encoder_type: str = "htsat",
        encoder_config: PreTrainedConfig | dict | None = None,
        text_config: PreTrainedConfig | dict | None = None,
        mapper_hidden_size: int = 576,
        audio_token_id: int = 3,
        max_audio_seconds: float = 10.0,
        freeze_lm: bool = True,
        no_audio: bool = False,
        **kwargs,
    ):
        if encoder_type not in ENCODER_TYPES:
            raise ValueError(f"encoder_type {encoder_type!r} is none of {', '.join(ENCODER_TYPES)}")
        self.encoder_type = encoder_type
        self.encoder_config = default_encoder_config(encoder_type, encoder_config)
        if text_config is None:
            text_config = {
                "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
                "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
                "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
                "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
                "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
            }  # fmt: skip
        if isinstance(text_config, dict):
            text_config = dict(text_config)
            kind = text_config.pop("model_type", "llama")
            if kind not in CONFIG_MAPPING:
                raise ValueError(f"text_config has model_type {kind!r}, which transformers does not know")
            text_config = CONFIG_MAPPING[kind](**text_config)
        self.text_config = text_config
        for part in (self.encoder_config, self.text_config):
            part._name_or_path = ""  # it may be a folder of somebody's machine
        self.mapper_hidden_size = mapper_hidden_size
        self.audio_token_id = audio_token_id
        self.max_audio_seconds = max_audio_seconds
        self.freeze_lm = freeze_lm
        self.no_audio = no_audio
        # a pushed model answers to each of these
        model = "modeling_audiolm.AudioLMForConditionalGeneration"
        kwargs.setdefault("auto_map", {
            "AutoConfig": "configuration_audiolm.AudioLMConfig",
            "AutoModel": model, "AutoModelForCausalLM": model, "AutoModelForMultimodalLM": model,
        })  # fmt: skip
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            kwargs.setdefault(token, getattr(text_config, token, None))
        kwargs.setdefault("tie_word_embeddings", bool(getattr(text_config, "tie_word_embeddings", False)))
        super().__init__(**kwargs)


def default_encoder_config(encoder_type: str, config: PreTrainedConfig | dict | None = None) -> PreTrainedConfig:
    """The encoder's configuration with every field of its arm set; fields that `config` has are kept.

    Raises:
        ValueError: if `config` belongs to another encoder.
    """
    model_type, fields = ENCODER_TYPES[encoder_type]
    fields = {**(MSCLAP_FRONT_END if model_type == "clap_audio_model" else {}), **fields}
    given = config.to_dict() if isinstance(config, PreTrainedConfig) else dict(config or {})
    found = given.pop("model_type", model_type)
    if found != model_type:
        raise ValueError(f"encoder_type {encoder_type!r} needs a {model_type!r} encoder_config, but it is {found!r}")
    if "num_levels" in fields and given.get("num_levels", fields["num_levels"]) != fields["num_levels"]:
        raise ValueError(
            f"encoder_type {encoder_type!r} has {fields['num_levels']} levels, but encoder_config {given['num_levels']}"
        )
    if model_type == "mimi":
        given["decoder_config"] = None  # no decoder: only the encoding half is used
    return CONFIG_MAPPING[model_type](**{**fields, **given})
