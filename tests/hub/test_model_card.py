"""The model card: parts, licences, how to load the model."""

import pytest
from huggingface_hub import ModelCard
from support.readability import LIMITS, measure_prose

from audiolm.hub.model_card import CardFacts, model_card
from audiolm.training.run_record import part_facts


@pytest.fixture
def facts():
    return CardFacts(
        encoder_type="mimi_full",
        no_audio=False,
        initialised_from=None,
        encoder={"name": "kyutai/mimi", "licence": "CC-BY-4.0"},
        text_model=part_facts("HuggingFaceTB/SmolLM2-135M-Instruct"),
        data={"name": "train.json", "sha256": "0" * 64, "rows": 968071, "clips": 54046},
        settings={"steps": 1, "rows a step": 16, "epochs": None},
        code={"audiolm": "0.1.0"},
        max_audio_seconds=10.0,
        parameters=2,
        trained_parameters=1,
    )


def test_card_of_published_parts_states_their_licences(facts):
    card = ModelCard(model_card(facts, "me/x"))
    assert "| encoder `kyutai/mimi` | CC-BY-4.0 |" in card.text
    assert "| language model `HuggingFaceTB/SmolLM2-135M-Instruct` | Apache-2.0 |" in card.text
    assert card.data.license_link == "https://huggingface.co/me/x#licence"
    assert card.data.base_model == ["kyutai/mimi", "HuggingFaceTB/SmolLM2-135M-Instruct"]


def test_card_shows_data_and_settings(facts):
    text = ModelCard(model_card(facts, "me/x")).text
    assert "968,071 rows" in text
    assert "| batch size | 16 |" in text
    assert "epochs" not in text


def test_card_of_a_text_only_model_says_so(facts):
    facts.no_audio = True
    assert "This is a text-only model" in model_card(facts, "me/x")
    assert "Training was at step 1,200" in model_card(facts, "me/x", step=1200)


def test_card_keeps_the_limits_of_prose(facts, tmp_path):
    facts.no_audio = True
    page = tmp_path / "README.md"
    page.write_text(ModelCard(model_card(facts, "me/x", step=1200)).text)
    figures = measure_prose(page)
    assert all(figures[name] <= limit for name, limit in LIMITS.items()), figures
