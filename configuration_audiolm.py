"""Configuration of AudioLM: the encoder, the language model and the mapper between them.

The module is long because it also holds the table of encoder types and imports encoders from files.
"""

import re
import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig


class EncoderType(NamedTuple):
    """The encoder and its options that an `encoder_type` names."""

    model_type: str  # Of the encoder's configuration.
    options: dict[str, Any] = {}  # Fields that the type sets in this configuration.
    numbered_option: str | None = None  # Field that NUMBER sets in `NAME=NUMBER`.
    numbers: range = range(0)  # Valid values of NUMBER.

    @property
    def needs_number(self) -> bool:
        """Whether only `NAME=NUMBER` is valid."""
        return self.numbered_option is not None and self.numbered_option not in self.options


# The first three are those of the experiment. docs/encoders.md describes all of them.
ENCODER_TYPES: dict[str, EncoderType] = {
    "htsat": EncoderType("clap_audio_model"),
    "mimi_semantic": EncoderType("mimi", {"num_levels": 1}),
    "mimi_full": EncoderType("mimi", {"num_levels": 8}),
    "mimi_acoustic": EncoderType("mimi", {"num_levels": 8, "first_level": 1}),
    "mimi_continuous": EncoderType("mimi", {"num_levels": 0}),
    "htsat_posteriors": EncoderType("clap_audio_model", {"posteriors": True}),
    "encodec": EncoderType("encodec", {"num_levels": 8}),
    "dac": EncoderType("dac", {"num_levels": 9, "n_codebooks": 9, "sampling_rate": 44100}),
    "mimi_levels": EncoderType("mimi", {}, "num_levels", range(1, 33)),
    "mimi_transformer_layer": EncoderType(
        "mimi", {"num_levels": 0}, "transformer_layer", range(1, 9)
    ),
    "htsat_layer": EncoderType("clap_audio_model", {}, "layer", range(1, 4)),
    "silence": EncoderType("audiolm_silence", {"num_tokens": 125}, "num_tokens", range(1, 1000)),
    "mellow": EncoderType(
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
# Options that no encoder's own configuration has.
ENCODER_OPTION_FIELDS = (
    "num_levels",
    "first_level",
    "transformer_layer",
    "layer",
    "posteriors",
    "posterior_repeats",
    "whole_windows",
    "num_tokens",
    "encoder_class",
)
# Options that select a part of an encoder: what they count, and fields that hold the number.
DEPTH_FIELDS = {
    "num_levels": ("codebooks", ("num_quantizers", "n_codebooks")),
    "transformer_layer": ("layers", ("num_hidden_layers",)),
    "layer": ("stages", ("depths",)),
}
# MS-CLAP 2023 reads 44.1 kHz audio through the mel filters of a 32 kHz bank, in windows of 7 s.
MSCLAP_FRONT_END = {
    "sampling_rate": 44100,
    "mel_sampling_rate": 32000,
    "n_fft": 1024,
    "hop_length": 320,
    "frequency_min": 50.0,
    "frequency_max": 14000.0,
    "window_seconds": 7.0,
}
# SmolLM2-135M.
DEFAULT_TEXT_CONFIG = {
    "model_type": "llama",
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
# The modules that a pushed model holds, which an encoder's own file may import.
SHARED_IMPORT = re.compile(r"^(\s*)from audiolm\.(\w+_audiolm) import", re.M)
MISSING_IMPORT = re.compile(r"^\s*((import|from) audiolm\b|from \.(?!\w+_audiolm import)).*", re.M)
MODEL_CLASS = "modeling_audiolm.AudioLMForConditionalGeneration"
# A pushed model can be loaded with each of these auto classes.
AUTO_MAP = {
    "AutoConfig": "configuration_audiolm.AudioLMConfig",
    "AutoModel": MODEL_CLASS,
    "AutoModelForCausalLM": MODEL_CLASS,
    "AutoModelForMultimodalLM": MODEL_CLASS,
}
CHOICES = {"mapper_type": ("mlp", "mellow"), "prompt_format": ("audiolm", "mellow")}
# What defines an arm beside its weights: options of run_train.py, and fields of configurations.
ARM_FIELDS = (
    "encoder_type",
    "no_audio",
    "audio_tokens",
    "band_limit",
    "window_seconds",
    "learn_code_embeddings",
)


class SilenceConfig(PreTrainedConfig):
    """Configuration of `SilenceEncoder`, the no-audio baseline."""

    model_type = "audiolm_silence"
    num_tokens: int = 125  # Learned embeddings that replace the audio tokens of every clip.
    hidden_size: int = 512
    sampling_rate: int = 24000  # Hz


class PairConfig(PreTrainedConfig):
    """Configuration of `PairEncoder`: two encoders, `first` and `second`, given as dicts or not."""

    model_type = "audiolm_pair"
    sub_configs = {"first": AutoConfig, "second": AutoConfig}

    def __init__(self, first: Any = None, second: Any = None, **kwargs):
        self.first = build_config("first", first) if isinstance(first, dict) else first
        self.second = build_config("second", second) if isinstance(second, dict) else second
        super().__init__(**kwargs)


class FileEncoderConfig(PreTrainedConfig):
    """Configuration of an encoder from its author's file, if its class names no `config_class`."""

    model_type = "audiolm_file_encoder"


OWN_CONFIGS = {"audiolm_silence": SilenceConfig, "audiolm_pair": PairConfig}


class AudioLMConfig(PreTrainedConfig):
    """Configuration of [`AudioLMForConditionalGeneration`].

    Args:
        encoder_type: `htsat`, `mimi_semantic`, `mimi_full`, or another of [`list_encoder_types`].
            `my_encoders.py:MyEncoder` is a class in a file.
        encoder_config: Configuration of the encoder, or its dict. Default: the encoder type's.
        text_config: Configuration of the language model, or its dict. Default: SmolLM2-135M's.
        mapper_hidden_size: Width of the mapper's hidden layer.
        audio_token_id: Id that stands for one audio token in `input_ids`.
        max_audio_seconds: Longer clips are truncated to this length, in s.
        freeze_lm: Whether the language model is frozen in training.
        no_audio: Whether features are replaced by their mean over the training clips. This
            text-only model has the question, the clip's length, and as many tokens and weights.
        audio_tokens: Tokens per clip, to which frames are averaged or repeated. None: one a frame.
        learn_code_embeddings: Whether the mapper learns an embedding table for each codebook, in
            place of the codec's own vectors. Always true for `silence`.
        mapper_type: `mlp`, or `mellow` for Mellow's projection of a clip's latent and posteriors.
        prompt_format: `audiolm`, or `mellow` for the prompts that Mellow was trained on.

    Raises:
        ValueError: If a value is unknown, out of range, or does not fit the encoder.
    """

    model_type = "audiolm"
    sub_configs = {"encoder_config": AutoConfig, "text_config": AutoConfig}

    def __init__(  # noqa: PLR0913 (a configuration has a parameter for each field)
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
        self.encoder_type = encoder_type_name(encoder_type)
        self.encoder_config = default_encoder_config(encoder_type, encoder_config)
        if text_config is None:
            text_config = DEFAULT_TEXT_CONFIG
        if isinstance(text_config, dict):
            text_config = build_config("text_config", {"model_type": "llama", **text_config})
        text_config._name_or_path = ""  # It may be a folder of somebody's machine.
        self.text_config = text_config
        self.mapper_hidden_size = mapper_hidden_size
        self.audio_token_id = audio_token_id
        self.max_audio_seconds = max_audio_seconds
        self.freeze_lm = freeze_lm
        self.no_audio = no_audio
        self.audio_tokens = audio_tokens
        has_no_encoder = self.encoder_config.model_type == "audiolm_silence"
        self.learn_code_embeddings = learn_code_embeddings or has_no_encoder
        self.mapper_type = mapper_type
        self.prompt_format = prompt_format
        self._check_values()
        self._check_fits_encoder(parse_encoder_type(encoder_type))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            kwargs.setdefault(name, getattr(text_config, name, None))
        is_tied = bool(getattr(text_config, "tie_word_embeddings", False))
        kwargs.setdefault("tie_word_embeddings", is_tied)
        fields: dict[str, Any] = {"auto_map": dict(AUTO_MAP), **kwargs}
        super().__init__(**fields)

    def to_json_file(self, json_file_path: Any, use_diff: bool = True) -> None:
        """Saves the configuration, and an encoder's own file with it.

        Args:
            json_file_path: Path of the JSON file.
            use_diff: See `PreTrainedConfig.to_json_file`.
        """
        super().to_json_file(json_file_path, use_diff)
        save_encoder_code(self.encoder_config.to_dict(), Path(json_file_path).parent)

    def _check_values(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} {value!r}: expected one of {', '.join(choices)}")
        for name in ("mapper_hidden_size", "max_audio_seconds", "audio_tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} {value}: expected a number above 0")
        if not 0 <= self.audio_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"audio_token_id {self.audio_token_id}: expected an id from 0 to "
                f"{self.text_config.vocab_size - 1}, the vocabulary of the language model"
            )

    def _check_fits_encoder(self, encoder_type: EncoderType) -> None:
        name = self.encoder_type
        has_posteriors = bool(encoder_type.options.get("posteriors"))
        has_codes = encoder_type.options.get("num_levels") or "num_tokens" in encoder_type.options
        problem = None
        if self.learn_code_embeddings and not has_codes:
            problem = f"learn_code_embeddings: {name} has no codes"
        elif self.no_audio and self.learn_code_embeddings:
            problem = "no_audio needs mean features. learn_code_embeddings and silence have none"
        elif self.no_audio and (has_posteriors or encoder_type.model_type == "audiolm_pair"):
            problem = f"no_audio: {name} has two kinds of frames. Use an encoder_type with one kind"
        elif self.mapper_type == "mellow" and not has_posteriors:
            problem = (
                f"mapper_type mellow: {name} has no posteriors. Use mellow or htsat_posteriors"
            )
        if problem is not None:
            raise ValueError(problem)


def list_encoder_types() -> list[str]:
    """Lists all valid values of `encoder_type`, numbered ones as `NAME=1..32`."""
    names = [name for name, entry in ENCODER_TYPES.items() if not entry.needs_number]
    for name, entry in ENCODER_TYPES.items():
        if entry.numbered_option is not None:
            names.append(f"{name}={entry.numbers[0]}..{entry.numbers[-1]}")
    return [*names, "ARM+ARM", "FILE.py:CLASS"]


def parse_encoder_type(encoder_type: str) -> EncoderType:
    """Returns the `model_type` of an encoder and all options that its type sets.

    Raises:
        ValueError: If there is no such type.
    """
    if str(encoder_type).count("+") == 1:
        _check_pair(encoder_type)
        return EncoderType("audiolm_pair")
    if ":" in str(encoder_type):
        encoder_class = find_encoder_class(encoder_type)
        options = {"encoder_class": encoder_type_name(encoder_type)}
        if getattr(encoder_class, "num_levels", None):
            options["num_levels"] = encoder_class.num_levels
        return EncoderType(encoder_class.config_class.model_type, options)
    name, equals, number = str(encoder_type).partition("=")
    entry = ENCODER_TYPES.get(name)
    if entry and not equals and not entry.needs_number:
        return EncoderType(entry.model_type, entry.options)
    if entry and entry.numbered_option and number in map(str, entry.numbers):
        return EncoderType(entry.model_type, {**entry.options, entry.numbered_option: int(number)})
    raise ValueError(
        f"encoder_type {encoder_type!r:.60}: expected one of {', '.join(list_encoder_types())}"
    )


def _check_pair(encoder_type: str) -> None:
    names = encoder_type.split("+")
    types = [parse_encoder_type(name) for name in names]
    if names[0] == names[1] or "audiolm_silence" in [part.model_type for part in types]:
        raise ValueError(f"encoder_type {encoder_type!r}: a pair needs two encoders of audio")
    if any(part.options.get("posteriors") for part in types):
        raise ValueError(
            f"encoder_type {encoder_type!r}: an encoder with posteriors cannot be part of a pair"
        )


def encoder_type_name(encoder_type: str) -> str:
    """Returns `my_encoders.py:MyEncoder` for a path or module, whose folders are somebody's own."""
    names = []
    for part in str(encoder_type).split("+"):
        source, colon, class_name = part.rpartition(":")
        stem = Path(source).stem if source.endswith(".py") else source.rpartition(".")[2]
        names.append(f"{stem}.py:{class_name}" if colon else part)
    return "+".join(names)


def import_encoders(encoder_type: str) -> str:
    """Imports the encoders that `FILE.py:CLASS` or `MODULE:CLASS` names. Their code runs.

    The file becomes a module beside this one, as it is in a pushed model.

    Returns:
        The encoder type by [`encoder_type_name`]. Other types are returned as they are.

    Raises:
        ValueError: If there is no such type, file or class, or if a pushed model could not import
            what the file imports.
    """
    for part in encoder_type.split("+"):
        source, colon, _ = part.rpartition(":")
        if not colon:
            continue
        # Without its folder, it may name a file that was imported before.
        is_imported = f"{__package__}.{Path(source).stem}" in sys.modules
        if Path(source).is_file() or encoder_type_name(part) != part or not is_imported:
            import_encoder_source(source)
    parse_encoder_type(encoder_type)
    return encoder_type_name(encoder_type)


def import_encoder_source(source: str) -> None:
    """Imports a file, or a module of the Python path, as a module beside this one.

    Raises:
        ValueError: As [`import_encoders`]. The same code is imported once.
    """
    is_file = source.endswith(".py")
    name = f"{__package__}.{encoder_type_name(f'{source}:').removesuffix('.py:')}"
    if is_file and not Path(source).is_file():
        raise ValueError(f"encoder_type: {source}: file not found")
    module: Any = sys.modules.get(name)
    if module is None and find_spec(name) is not None:
        raise ValueError(f"encoder_type: {source}: {name} is a module of its own. Rename the file")
    try:
        path: Any = source if is_file else import_module(source).__file__
    except ModuleNotFoundError as error:
        raise ValueError(f"encoder_type: {source}: {error}") from error
    code = portable_code(path)
    if module is not None and portable_code(module.__file__) != code:
        raise ValueError(f"encoder_type: {source}: {module.__file__} has other code of this name")
    if module is None and is_file:
        spec: Any = spec_from_file_location(name, path)
        module = sys.modules[name] = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    elif module is None:
        sys.modules[name] = sys.modules[source]


def find_encoder_class(encoder_type: str) -> Any:
    """Returns the class `FILE.py:CLASS` of a file that [`import_encoders`] has imported.

    Raises:
        ValueError: If it is not imported, or has no such class.
    """
    file, _, class_name = encoder_type_name(encoder_type).partition(":")
    module = sys.modules.get(f"{__package__}.{Path(file).stem}")
    if module is None:
        raise ValueError(
            f"encoder_type {encoder_type!r}: {file} is not imported. Give its path to train, or "
            "--trust_remote_code to use a trained model with the code in its folder"
        )
    encoder_class = getattr(module, class_name, None)
    if not hasattr(encoder_class, "load_weights"):
        raise ValueError(f"encoder_type {encoder_type!r}: {file} has no AudioEncoder {class_name}")
    return encoder_class


def portable_code(path: str) -> str:
    """Returns an encoder's file with imports from the modules beside it, not from the package.

    Raises:
        ValueError: If it imports anything else of the package, which a pushed model lacks.
    """
    code = SHARED_IMPORT.sub(r"\1from .\2 import", Path(path).read_text(encoding="utf-8"))
    missing = MISSING_IMPORT.search(code)
    if missing:
        raise ValueError(
            f"{path}: {missing[0].strip()!r}: a pushed model has this file and not the package. "
            "Import from audiolm.encoders_audiolm and other packages only"
        )
    return code


def save_encoder_code(encoder_config: dict, folder: Path) -> None:
    """Saves an encoder's own file to the folder of a model, whose code then imports it.

    Args:
        encoder_config: Dict of the encoder's configuration.
        folder: Folder with the saved copy of this module.
    """
    copy = folder / Path(__file__).name
    for part in (encoder_config, encoder_config.get("first"), encoder_config.get("second")):
        name = (part or {}).get("encoder_class")
        if not name or not copy.is_file():
            continue
        file, _, class_name = name.partition(":")
        module: Any = sys.modules[f"{__package__}.{Path(file).stem}"]
        (folder / file).write_text(portable_code(module.__file__), encoding="utf-8")
        line = f"from .{Path(file).stem} import {class_name}  # noqa: E402, F401\n"
        text = copy.read_text(encoding="utf-8")
        if line not in text:
            copy.write_text(f"{text}\n\n{line}", encoding="utf-8")


def default_encoder_config(
    encoder_type: str, config: PreTrainedConfig | dict | None = None
) -> PreTrainedConfig:
    """Returns an encoder's configuration with the options of its type, and those of `config`.

    Raises:
        ValueError: If `config` belongs to another encoder type.
    """
    entry = parse_encoder_type(encoder_type)
    fields: dict[str, Any]
    fields = config.to_dict() if isinstance(config, PreTrainedConfig) else dict(config or {})
    _check_agreement(encoder_type, entry, fields)
    fields = {**entry.options, **fields, "model_type": entry.model_type, "_name_or_path": ""}
    if entry.model_type == "clap_audio_model":
        fields = MSCLAP_FRONT_END | fields
    elif entry.model_type == "mimi":
        fields["decoder_config"] = None  # Only the encoding half is used.
    elif entry.model_type == "audiolm_pair":
        for part, name in zip(("first", "second"), encoder_type.split("+")):
            part_config = default_encoder_config(name, fields.get(part))
            # transformers would build the encoder in the dtype of the file that it was read from.
            part_config.dtype = None
            fields[part] = part_config
    encoder_config = build_config("encoder_config", fields)
    _check_depth(encoder_type, entry.options, encoder_config)
    check_band_limit(encoder_config)
    return encoder_config


def build_config(field: str, values: dict) -> PreTrainedConfig:
    """Builds the configuration of transformers or of this module whose `model_type` is in a dict.

    Raises:
        ValueError: If transformers does not know it. The message names the `field`.
    """
    values = dict(values)
    model_type = values.pop("model_type", None)
    if values.get("encoder_class"):
        return find_encoder_class(values["encoder_class"]).config_class(**values)
    if model_type in OWN_CONFIGS:
        return OWN_CONFIGS[model_type](**values)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"{field}: transformers does not know the model_type {model_type!r}")
    return CONFIG_MAPPING[model_type](**values)


def check_band_limit(config: PreTrainedConfig) -> None:
    """Raises ValueError if `band_limit`, a rate in Hz, looks like one in kHz."""
    band_limit = getattr(config, "band_limit", None)
    if band_limit is not None and not band_limit >= 1000:
        raise ValueError(f"band_limit {band_limit}: expected a sampling rate of 1,000 Hz or more")


def _check_agreement(encoder_type: str, entry: EncoderType, fields: dict) -> None:
    model_type = fields.get("model_type", entry.model_type)
    if model_type != entry.model_type:
        raise ValueError(
            f"encoder_type {encoder_type} needs a {entry.model_type!r} encoder_config, "
            f"not {model_type!r}"
        )
    for option in ENCODER_OPTION_FIELDS:
        value = fields.get(option)
        expected = entry.options.get(option)
        if value is not None and value != expected:
            raise ValueError(
                f"encoder_type {encoder_type} has {option} {expected}, "
                f"but encoder_config has {value!r}"
            )


def _check_depth(encoder_type: str, options: dict, config: PreTrainedConfig) -> None:
    for option, (unit, names) in DEPTH_FIELDS.items():
        depth = next((getattr(config, name) for name in names if hasattr(config, name)), None)
        if option not in options or depth is None:
            continue
        available = len(depth) if isinstance(depth, (list, tuple)) else depth
        if options[option] > available:
            raise ValueError(
                f"encoder_type {encoder_type} needs {options[option]} {unit}, "
                f"but encoder_config has {available}"
            )
