"""Configuration of AudioLM: which encoder, which language model, and the mapper between them."""

from collections.abc import Mapping

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

# Every arm: the configuration class of its encoder (`model_type`) and what the arm adds to that configuration. The first three
# are those of the experiment.
ENCODER_TYPES: dict[str, tuple[str, dict]] = {
    "htsat": ("clap_audio_model", {}),
    "mimi_semantic": ("mimi", {"num_levels": 1}),
    "mimi_full": ("mimi", {"num_levels": 8}),
    "mimi_acoustic": ("mimi", {"num_levels": 8, "first_level": 1}),
    "mimi_continuous": ("mimi", {"num_levels": 0}),
    "htsat_posteriors": ("clap_audio_model", {"posteriors": True}),
    "encodec": ("encodec", {"num_levels": 8}),
    "dac": ("dac", {"num_levels": 9, "n_codebooks": 9, "sampling_rate": 44100}),
    "silence": ("audiolm_silence", {"num_tokens": 125}),
    "mellow": (
        "clap_audio_model",
        {
            "posteriors": True,
            "posterior_repeats": 4,
            "whole_windows": True,
            "sampling_rate": 32000,
            "window_seconds": 10.0,
        },
    ),
}
# and arms "NAME=NUMBER": `model_type`, what else is set, the field that the number goes to, the least and the most of it
NUMBERED = {
    "mimi_levels": ("mimi", {}, "num_levels", 1, 32),
    "mimi_transformer_layer": ("mimi", {"num_levels": 0}, "transformer_layer", 1, 8),
    "htsat_layer": ("clap_audio_model", {}, "layer", 1, 3),
    "silence": ("audiolm_silence", {}, "num_tokens", 1, 999),
}
# fields that no encoder's own configuration has
ENCODER_OPTION_FIELDS = (
    "num_levels",
    "first_level",
    "transformer_layer",
    "layer",
    "posteriors",
    "posterior_repeats",
    "whole_windows",
    "num_tokens",
)
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
# The most of each size that anything here needs; more is a slip, or meant to fill the memory of whoever makes a model of it.
MOST_OF_TEXT = {
    "hidden_size": 2**15,
    "intermediate_size": 2**18,
    "vocab_size": 2**22,
    "num_hidden_layers": 2**10,
    "num_attention_heads": 2**10,
    "num_key_value_heads": 2**10,
    "head_dim": 2**12,
    "max_position_embeddings": 2**24,
}
MOST_PARAMETERS = 10**11  # of the language model, by a rough count
MOST_OF_ENCODER = 4  # times the arm's default
MOST_OF_MAPPER = {"mapper_hidden_size": 2**15, "max_audio_seconds": 3600.0, "audio_tokens": 2**15}


class SilenceConfig(PreTrainedConfig):
    """Of learnt tokens in place of an encoder: `num_tokens` of width `hidden_size` for every clip."""

    model_type = "audiolm_silence"

    def __init__(
        self, num_tokens: int = 125, hidden_size: int = 512, sampling_rate: int = 24000, **kwargs
    ):
        self.num_tokens, self.hidden_size, self.sampling_rate = (
            num_tokens,
            hidden_size,
            sampling_rate,
        )
        super().__init__(**kwargs)


class PairConfig(PreTrainedConfig):
    """Of two encoders whose frames stand one after the other."""

    model_type = "audiolm_pair"
    sub_configs = {"first": AutoConfig, "second": AutoConfig}
    has_no_defaults_at_init = True

    def __init__(
        self,
        first: PreTrainedConfig | None = None,
        second: PreTrainedConfig | None = None,
        **kwargs,
    ):
        self.first, self.second = first, second
        super().__init__(**kwargs)


CHOICES = {"mapper_type": ("mlp", "mellow"), "prompt_format": ("audiolm", "mellow")}
OWN = {kind.model_type: kind for kind in (SilenceConfig, PairConfig)}


class AudioLMConfig(PreTrainedConfig):
    """Configuration of [`AudioLMForConditionalGeneration`].

    Args:
        encoder_type: the arm: "htsat", "mimi_semantic", "mimi_full", or another of [`list_encoder_types`].
        encoder_config: configuration (or its dict) of the encoder: `ClapAudioConfig` with the fields of
            `MSCLAP_FRONT_END`, or `MimiConfig` with `num_levels`. Defaults to the arm's.
        text_config: configuration (or its dict) of the language model. Defaults to SmolLM2-135M's.
        mapper_hidden_size: width of the mapper's hidden layer.
        audio_token_id: id that stands for one audio frame in `input_ids`.
        max_audio_seconds: longest clip that is used, in s.
        freeze_lm: whether the language model's weights stay as they are in training.
        audio_tokens: tokens that each clip comes to, whatever its length: its frames are averaged, or repeated, to so many.
            None: one for each frame.
        learn_code_embeddings: whether the mapper learns a table of embeddings for each level of a codec's codes, whose sum
            takes the place of the codec's own; always so for "silence".
        mapper_type: "mlp", or "mellow": Mellow's residual projection of a clip's latent and its posteriors.
        prompt_format: "audiolm", or "mellow", as Mellow is asked.
        no_audio: every frame is the mean of the training clips' features: the model that has the text and the clip's
            length alone, but as many tokens and weights.

    Raises:
        ValueError: if `encoder_type` or the language model's type is unknown, `encoder_config` is another encoder's, or a size
            is none, or so large that a model of it would fill any memory.
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
        audio_tokens: int | None = None,
        learn_code_embeddings: bool = False,
        mapper_type: str = "mlp",
        prompt_format: str = "audiolm",
        **kwargs,
    ):
        kind, of_arm = parse_encoder_type(encoder_type)
        self.encoder_type = encoder_type
        self.encoder_config = default_encoder_config(encoder_type, encoder_config)
        if text_config is None:
            text_config = {
                "model_type": "llama",
                "vocab_size": 49152,
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "head_dim": 64,
                "max_position_embeddings": 8192,
                "rms_norm_eps": 1e-5,
                "tie_word_embeddings": True,
                "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": 2,
            }
        if isinstance(text_config, dict):
            text_config = dict(text_config)
            text_config = _made("text_config", text_config.pop("model_type", "llama"), text_config)
        self.text_config = text_config
        check_text_config(text_config)
        own = {"mapper_hidden_size": mapper_hidden_size, "max_audio_seconds": max_audio_seconds}
        own |= {} if audio_tokens is None else {"audio_tokens": audio_tokens}
        check_sizes("config", own, MOST_OF_MAPPER)
        if not isinstance(audio_token_id, int) or not 0 <= audio_token_id < text_config.vocab_size:
            raise ValueError(
                f"audio_token_id is {audio_token_id!r:.60}, not one of the {text_config.vocab_size} tokens"
            )
        flags = {
            "freeze_lm": freeze_lm,
            "no_audio": no_audio,
            "learn_code_embeddings": learn_code_embeddings,
        }
        for name, value in flags.items():
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r:.60}; true or false is wanted")
        learn_code_embeddings = learn_code_embeddings or kind == "audiolm_silence"
        if learn_code_embeddings and not (of_arm.get("num_levels") or kind == "audiolm_silence"):
            raise ValueError(f"learn_code_embeddings: {encoder_type} has no codes")
        if learn_code_embeddings and no_audio:
            raise ValueError(
                "no_audio hears the mean of the encoder's features; with learn_code_embeddings or silence there is none"
            )
        if no_audio and (kind == "audiolm_pair" or of_arm.get("posteriors")):
            raise ValueError(
                f"no_audio: {encoder_type} has two kinds of frames; take an arm of one kind for the control"
            )
        for name, value in (("mapper_type", mapper_type), ("prompt_format", prompt_format)):
            if value not in CHOICES[name]:
                raise ValueError(
                    f"{name} is {value!r:.60}, which is none of {', '.join(CHOICES[name])}"
                )
        if mapper_type == "mellow" and not of_arm.get("posteriors"):
            raise ValueError(
                f"mapper_type mellow: {encoder_type} has no posteriors; mellow and htsat_posteriors have"
            )
        for part in (self.encoder_config, self.text_config):
            part._name_or_path = ""  # it may be a folder of somebody's machine
        self.mapper_hidden_size = mapper_hidden_size
        self.audio_token_id = audio_token_id
        self.max_audio_seconds = max_audio_seconds
        self.freeze_lm = freeze_lm
        self.no_audio = no_audio
        self.audio_tokens = audio_tokens
        self.learn_code_embeddings = learn_code_embeddings
        self.mapper_type = mapper_type
        self.prompt_format = prompt_format
        # a pushed model answers to each of these
        model = "modeling_audiolm.AudioLMForConditionalGeneration"
        kwargs.setdefault(
            "auto_map",
            {
                "AutoConfig": "configuration_audiolm.AudioLMConfig",
                "AutoModel": model,
                "AutoModelForCausalLM": model,
                "AutoModelForMultimodalLM": model,
            },
        )
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            kwargs.setdefault(token, getattr(text_config, token, None))
        kwargs.setdefault(
            "tie_word_embeddings", bool(getattr(text_config, "tie_word_embeddings", False))
        )
        super().__init__(**kwargs)


def list_encoder_types() -> list[str]:
    """The name of every arm; those of numbers as "NAME=1..32", and last what any two make."""
    return [
        *ENCODER_TYPES,
        *(f"{name}={least}..{most}" for name, (*_, least, most) in NUMBERED.items()),
        "ARM+ARM",
    ]


def parse_encoder_type(encoder_type: str) -> tuple[str, dict]:
    """The `model_type` of an arm's encoder, and what the arm adds to its configuration.

    Raises:
        ValueError: if there is no such arm.
    """
    if isinstance(encoder_type, str) and encoder_type in ENCODER_TYPES:
        return ENCODER_TYPES[encoder_type]
    if isinstance(encoder_type, str) and encoder_type.count("+") == 1:
        kinds = [parse_encoder_type(name)[0] for name in encoder_type.split("+")]
        if encoder_type.split("+")[0] == encoder_type.split("+")[1] or "audiolm_silence" in kinds:
            raise ValueError(
                f"encoder_type {encoder_type!r:.60}: a pair is of two arms that hear, and not the same one twice"
            )
        if any(
            of.get("posteriors")
            for of in (parse_encoder_type(name)[1] for name in encoder_type.split("+"))
        ):
            raise ValueError(
                f"encoder_type {encoder_type!r:.60}: posteriors and their latent are a pair already"
            )
        return "audiolm_pair", {}
    name, _, number = encoder_type.partition("=") if isinstance(encoder_type, str) else ("", "", "")
    if name in NUMBERED and number.isascii() and number.isdecimal() and len(number) <= 3:
        model_type, fields, field, least, most = NUMBERED[name]
        if least <= int(number) <= most and str(int(number)) == number:  # one name for each
            return model_type, {**fields, field: int(number)}
    raise ValueError(
        f"encoder_type {encoder_type!r:.60} is none of {', '.join(list_encoder_types())}"
    )


def default_encoder_config(
    encoder_type: str, config: PreTrainedConfig | dict | None = None
) -> PreTrainedConfig:
    """The encoder's configuration with every field of its arm set; fields that `config` has are kept.

    Raises:
        ValueError: if `config` belongs to another encoder, or has a size far from the arm's.
    """
    model_type, of_arm = parse_encoder_type(encoder_type)
    if model_type == "audiolm_pair":
        return default_pair_config(encoder_type, config)
    fields = {**(MSCLAP_FRONT_END if model_type == "clap_audio_model" else {}), **of_arm}
    if config is not None and not isinstance(config, (PreTrainedConfig, dict)):
        raise ValueError(f"encoder_config is {config!r:.60}, not a configuration")
    given = config.to_dict() if isinstance(config, PreTrainedConfig) else dict(config or {})
    found = given.pop("model_type", model_type)
    if found != model_type:
        raise ValueError(
            f"encoder_type {encoder_type!r} needs a {model_type!r} encoder_config, but it is {found!r:.60}"
        )
    for field in ENCODER_OPTION_FIELDS:
        if given.get(field) is not None and given[field] != of_arm.get(field):
            wanted = of_arm.get(field, "none")
            raise ValueError(
                f"encoder_type {encoder_type!r} has {field} {wanted}, but encoder_config {given[field]!r:.60}"
            )
    if model_type == "mimi":
        given["decoder_config"] = None  # no decoder: only the encoding half is used
    made = _made("encoder_config", model_type, {**fields, **given})
    depths = getattr(made, "depths", ())
    for field, what, there in (
        (
            "num_levels",
            "levels",
            getattr(made, "num_quantizers", getattr(made, "n_codebooks", None)),
        ),
        ("transformer_layer", "layers", getattr(made, "num_hidden_layers", None)),
        ("layer", "stages", len(depths) if isinstance(depths, (list, tuple)) else 0),
    ):
        if field in of_arm and isinstance(there, int) and of_arm[field] > there:
            raise ValueError(
                f"encoder_type {encoder_type!r} has {of_arm[field]} {what}, but encoder_config {there}"
            )
    check_band(made)
    default = {**(OWN.get(model_type) or CONFIG_MAPPING[model_type])().to_dict(), **fields}
    most = {}
    for field, value in default.items():
        largest = max(value) if isinstance(value, list) else value
        if isinstance(largest, (int, float)) and not isinstance(largest, bool) and largest >= 1:
            most[field] = MOST_OF_ENCODER * largest
            found = getattr(made, field)
            if isinstance(value, list) and not (
                isinstance(found, (list, tuple)) and 0 < len(found) <= len(value)
            ):
                raise ValueError(
                    f"encoder_config has {field} {found!r:.60}, not a list of 1 to {len(value)}"
                )
    check_sizes(
        "encoder_config",
        {field: size for field in most if (size := getattr(made, field)) is not None},
        most,
    )
    return made


def default_pair_config(
    encoder_type: str, config: PreTrainedConfig | dict | None = None
) -> PairConfig:
    """As [`default_encoder_config`], for two encoders: `config` holds theirs as `first` and `second`."""
    given = config.to_dict() if isinstance(config, PreTrainedConfig) else config or {}
    if not isinstance(given, dict) or given.get("model_type", "audiolm_pair") != "audiolm_pair":
        raise ValueError(
            f"encoder_type {encoder_type!r} needs an encoder_config with first and second, not {given!r:.60}"
        )
    made = [
        default_encoder_config(name, given.get(part))
        for name, part in zip(encoder_type.split("+"), ("first", "second"))
    ]
    for part in made:
        part.dtype = None  # of the file that it was read from; transformers would build it in that, this far down
    pair = PairConfig(*made)
    if given.get("band_limit") is not None:
        pair.band_limit = given["band_limit"]
        check_band(pair)
    return pair


def check_band(config: PreTrainedConfig) -> None:
    """ValueError if `band_limit`, samples a second, is set to what no recording has."""
    if (limit := getattr(config, "band_limit", None)) is not None:
        if not isinstance(limit, int):
            raise ValueError(
                f"encoder_config has band_limit {limit!r:.60}, not a number of samples a second"
            )
        check_sizes("encoder_config", {"band_limit": limit}, {"band_limit": 768_000})
        if limit < 1000:
            raise ValueError(
                f"encoder_config has band_limit {limit}, fewer than 1,000 samples a second"
            )


def _made(name: str, kind, fields: dict) -> PreTrainedConfig:
    if not isinstance(kind, str) or kind not in {*CONFIG_MAPPING, *OWN}:
        raise ValueError(f"{name} has model_type {kind!r:.60}, which transformers does not know")
    try:
        return (OWN.get(kind) or CONFIG_MAPPING[kind])(**fields)
    except Exception as error:  # each class of transformers has its own for what it does not like
        raise ValueError(
            f"{name} is no configuration of {kind!r} ({' '.join(str(error).split())[:300]})"
        ) from error


def check_sizes(name: str, sizes: Mapping, most: Mapping[str, int | float]) -> None:
    """ValueError if a size is no number from 1 (of whole ones) or 0 to the most that it may be."""
    for field, given in sizes.items():
        limit, whole = most[field], isinstance(most[field], int)
        for size in given if isinstance(given, (list, tuple)) else [given]:
            number = isinstance(size, int if whole else (int, float)) and not isinstance(size, bool)
            if not (number and whole <= size <= limit):
                raise ValueError(
                    f"{name} has {field} {size!r:.60}, not a number from {int(whole)} to {limit:,}"
                )


def check_text_config(config: PreTrainedConfig) -> None:
    """ValueError if it is no language model's, or one of more than `MOST_PARAMETERS` parameters."""
    sizes = {field: getattr(config, field, None) for field in MOST_OF_TEXT}
    check_sizes(
        "text_config",
        {field: size for field, size in sizes.items() if size is not None},
        MOST_OF_TEXT,
    )
    hidden, vocabulary, layers = found = [
        sizes[field] for field in ("hidden_size", "vocab_size", "num_hidden_layers")
    ]
    if not all(isinstance(size, int) for size in found):
        given = type(config).__name__ if isinstance(config, PreTrainedConfig) else f"{config!r:.60}"
        raise ValueError(f"text_config is {given}, not the configuration of a language model")
    experts = [
        getattr(config, field, None) or 1
        for field in ("num_experts", "num_local_experts", "n_routed_experts")
    ]
    check_sizes("text_config", {"experts": experts}, {"experts": 2**12})
    # some models have a size of their own for each layer
    heads, head, inner = (
        max(sizes[field] or [0]) if isinstance(sizes[field], (list, tuple)) else sizes[field] or 0
        for field in ("num_attention_heads", "head_dim", "intermediate_size")
    )
    width, inner = max(hidden, heads * head), max(experts) * (inner or 4 * hidden)
    if (
        count := vocabulary * hidden + layers * (2 * hidden * width + 3 * hidden * inner)
    ) > MOST_PARAMETERS:
        raise ValueError(
            f"text_config asks for some {count:.1e} parameters, more than {MOST_PARAMETERS:.0e}"
        )


# what makes an arm, beside its weights; of run_train.py's options, and of a model's configuration
ARM_FIELDS = (
    "encoder_type",
    "no_audio",
    "audio_tokens",
    "band_limit",
    "window_seconds",
    "learn_code_embeddings",
)
