"""The configuration: names of encoder types, defaults, and values that do not fit together."""

import re
import sys

import pytest
from support.builders import ARMS, SMALL_HTSAT, SMALL_MIMI, TEXT
from support.small_encoders import PAIR

from audiolm import AudioLMConfig
from audiolm.configuration_audiolm import (
    ENCODER_TYPES,
    find_encoder_class,
    import_encoders,
    list_encoder_types,
    parse_encoder_type,
)

FIXED_TYPES = [name for name, entry in ENCODER_TYPES.items() if not entry.needs_number]
NUMBERED_TYPES = [
    f"{name}={number}"
    for name, entry in ENCODER_TYPES.items()
    for number in entry.numbers[:: max(1, len(entry.numbers) - 1)]
]


def test_config_without_arguments_is_htsat():
    assert AudioLMConfig().encoder_type == "htsat"


def test_list_encoder_types_begins_with_those_of_the_experiment():
    assert list_encoder_types()[:3] == ["htsat", "mimi_semantic", "mimi_full"]


@pytest.mark.parametrize("name", ["mimi_levels=1..32", "silence=1..999", "silence", "ARM+ARM"])
def test_list_encoder_types_names_families(name):
    assert name in list_encoder_types()


@pytest.mark.parametrize(
    ("name", "other"), [("mimi_levels=8", "mimi_full"), ("mimi_levels=1", "mimi_semantic")]
)
def test_parse_encoder_type_of_numbered_name_equals_fixed_name(name, other):
    assert parse_encoder_type(name) == parse_encoder_type(other)


@pytest.mark.parametrize("name", [*FIXED_TYPES, *NUMBERED_TYPES, PAIR, "dac+mimi_levels=3"])
def test_config_accepts_every_encoder_type(name):
    assert AudioLMConfig(name).encoder_type == name


@pytest.mark.parametrize(
    "name",
    [
        "mimi_levels",
        "mimi_levels=",
        "mimi_levels=0",
        "mimi_levels=33",
        "mimi_levels=08",
        "mimi_levels=1.0",
        "mimi_levels=٣",
        "htsat_layer=4",
        "htsat=1",
        "",
        "mimi",
        "whisper",
        None,
        8,
        ["htsat"],
        "silence=1000",
        "htsat+",
        "+htsat",
        "htsat+mimi",
        "htsat+dac+encodec",
    ],
)
def test_parse_encoder_type_of_unknown_name_lists_all(name):
    expected = r"expected one of htsat, mimi_semantic, mimi_full, .*mimi_levels=1\.\.32"
    with pytest.raises(ValueError, match=expected):
        parse_encoder_type(name)


@pytest.mark.parametrize("name", ["htsat+htsat", "htsat+silence", "mellow+mimi_full"])
def test_parse_encoder_type_of_pair_needs_two_encoders(name):
    with pytest.raises(ValueError, match="pair"):
        parse_encoder_type(name)


@pytest.mark.parametrize(
    ("encoder_type", "encoder_config", "message"),
    [
        (
            "mimi_full",
            {**SMALL_MIMI, "num_levels": 1},
            "has num_levels 8, but encoder_config has 1",
        ),
        (
            "mimi_full",
            {**SMALL_MIMI, "first_level": 1},
            "has first_level None, but encoder_config has 1",
        ),
        ("mimi_levels=9", SMALL_MIMI, "needs 9 codebooks, but encoder_config has 8"),
        ("mimi_acoustic", {"model_type": "dac"}, "needs a 'mimi' encoder_config, not 'dac'"),
        (
            "mimi_full",
            {"model_type": "clap_audio_model"},
            "needs a 'mimi' encoder_config, not 'clap_audio_model'",
        ),
        (
            PAIR,
            {"first": SMALL_HTSAT, "second": {**SMALL_MIMI, "num_levels": 1}},
            "has num_levels 8, but encoder_config has 1",
        ),
        (
            "mimi_transformer_layer=2",
            SMALL_MIMI,
            "needs 2 layers, but encoder_config has 1",
        ),
        (
            "htsat_layer=3",
            {**SMALL_HTSAT, "depths": [1, 1]},
            "needs 3 stages, but encoder_config has 2",
        ),
        ("dac", {"n_codebooks": 4}, "needs 9 codebooks, but encoder_config has 4"),
        ("htsat", {"band_limit": 10}, "band_limit 10: expected a sampling rate of 1,000 Hz"),
    ],
)
def test_config_of_another_encoder_is_refused(encoder_type, encoder_config, message):
    with pytest.raises(ValueError, match=message):
        AudioLMConfig(encoder_type, encoder_config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learn_code_embeddings": True}, "htsat has no codes"),
        ({"mapper_type": "mellow"}, "has no posteriors"),
        ({"mapper_type": "mpl"}, "mapper_type 'mpl': expected one of mlp, mellow"),
        ({"prompt_format": "chat"}, "expected one of audiolm, mellow"),
        ({"encoder_type": PAIR, "no_audio": True}, "two kinds of frames"),
        ({"encoder_type": "htsat_posteriors", "no_audio": True}, "two kinds of frames"),
        ({"encoder_type": "silence", "no_audio": True}, "silence have none"),
        ({"audio_token_id": 49152}, "audio_token_id 49152: expected an id from 0 to 49151"),
        ({"audio_token_id": -1}, "audio_token_id -1: expected an id from 0 to 49151"),
        ({"audio_tokens": 0}, "audio_tokens 0: expected a number above 0"),
        ({"max_audio_seconds": -1.0}, "max_audio_seconds -1.0: expected a number above 0"),
        ({"text_config": {"model_type": "lama"}}, "text_config: .* model_type 'lama'"),
    ],
)
def test_config_with_values_that_do_not_fit_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AudioLMConfig(**{"encoder_type": "htsat", **fields})


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("is_small", [True, False])
def test_config_reloads_unchanged(arm, is_small, tmp_path):
    fields = {}
    if is_small:
        encoder_config = SMALL_HTSAT if arm == "htsat" else SMALL_MIMI
        fields = {"encoder_config": dict(encoder_config), "text_config": dict(TEXT)}
        fields |= {"mapper_hidden_size": 32, "max_audio_seconds": 30, "no_audio": True}
    config = AudioLMConfig(arm, **fields)
    config.save_pretrained(tmp_path)
    expected = config.to_dict() | {"architectures": None}
    assert AudioLMConfig.from_pretrained(tmp_path).to_dict() == expected


@pytest.mark.parametrize(
    "model_type", ["gpt2", "qwen2", "qwen3", "smollm3", "gemma", "mistral", "gpt_neox", "phi"]
)
def test_config_accepts_language_models_of_transformers(model_type):
    config = AudioLMConfig("htsat", text_config={"model_type": model_type})
    assert config.text_config.model_type == model_type


ENCODER_FILE = """
from audiolm.encoders_audiolm import FramedEncoder


class Codec(FramedEncoder):
    num_levels = 4


class Other:
    pass
"""


@pytest.fixture
def encoder_file(tmp_path):
    """An encoder's own file, which is forgotten after the test."""
    file = tmp_path / "config_test_encoder.py"
    file.write_text(ENCODER_FILE)
    yield file
    sys.modules.pop("audiolm.config_test_encoder", None)


def test_encoder_type_of_an_imported_file_has_no_folder(encoder_file):
    name = import_encoders(f"{encoder_file}:Codec")
    assert name == "config_test_encoder.py:Codec"
    assert parse_encoder_type(name).options == {"encoder_class": name, "num_levels": 4}
    assert AudioLMConfig(f"{encoder_file}:Codec").encoder_type == name
    assert import_encoders(f"{name}+mimi_full") == f"{name}+mimi_full"


def test_import_encoders_takes_a_module_of_the_python_path(encoder_file, monkeypatch):
    monkeypatch.syspath_prepend(encoder_file.parent)
    name = import_encoders("config_test_encoder:Codec")
    assert name == "config_test_encoder.py:Codec"
    assert find_encoder_class(name) is sys.modules["config_test_encoder"].Codec
    del sys.modules["config_test_encoder"]


def test_configuration_imports_no_file_by_itself(encoder_file, monkeypatch):
    monkeypatch.chdir(encoder_file.parent)
    for name in ("config_test_encoder.py:Codec", f"{encoder_file}:Codec"):
        with pytest.raises(ValueError, match="not imported"):
            AudioLMConfig(name)


@pytest.mark.parametrize(
    ("encoder_type", "message"),
    [
        ("missing.py:Codec", "missing.py: file not found"),
        ("folder/missing.py:Codec", "file not found"),
        ("no_such_module:Codec", "No module named"),
        ("config_test_encoder.py:Missing", "no AudioEncoder Missing"),
        ("config_test_encoder.py:Other", "no AudioEncoder Other"),
    ],
)
def test_import_encoders_refuses_what_is_no_encoder(
    encoder_type, message, encoder_file, monkeypatch
):
    monkeypatch.chdir(encoder_file.parent)
    with pytest.raises(ValueError, match=message):
        import_encoders(encoder_type)


@pytest.mark.parametrize(
    "line",
    [
        "import audiolm",
        "from audiolm import load_encoder",
        "from audiolm.runtime import UserError",
        "from .blocks import Block",
    ],
)
def test_import_encoders_refuses_imports_that_a_pushed_model_lacks(line, encoder_file):
    encoder_file.write_text(f"{line}\n{ENCODER_FILE}")
    with pytest.raises(ValueError, match=re.escape(line)):
        import_encoders(f"{encoder_file}:Codec")


def test_import_encoders_refuses_a_second_file_of_the_same_name(encoder_file, tmp_path):
    import_encoders(f"{encoder_file}:Codec")
    copy = tmp_path / "copy" / encoder_file.name
    copy.parent.mkdir()
    copy.write_text(ENCODER_FILE)
    import_encoders(f"{copy}:Codec")
    copy.write_text(f"{ENCODER_FILE}\nVALUE = 1\n")
    with pytest.raises(ValueError, match="other code of this name"):
        import_encoders(f"{copy}:Codec")


def test_import_encoders_refuses_names_of_the_packages_own_modules(tmp_path):
    (tmp_path / "benchmark.py").write_text(ENCODER_FILE)
    with pytest.raises(ValueError, match=r"Rename the file|other code of this name"):
        import_encoders(f"{tmp_path}/benchmark.py:Codec")
