"""Options' log-likelihoods and greedy text from one run of the prompt, against the model asked the textbook's way."""

import pytest
import torch
from support.builders import clip

from audiolm.data import ReasonAQACollator, encode_clips
from audiolm.evaluation.answering import (
    answer_batch,
    build_scoring_batch,
    candidates,
    most_likely_option,
)


def rows_and_features(model, processor, count=6):
    rows, features = [], {}
    for i in range(count):
        made = encode_clips(
            model.encoder, processor.feature_extractor, [(clip(0.4 + i / 5, seed=i), 24000)]
        )
        features[f"{i}.wav"] = next(made)[1]
        rows.append(
            {
                "audio": [f"{i}.wav"],
                "question_type": "mcq",
                "input": f"Which? A) low B) high {'y' * i} (c) none at all",
                "answer": "A) low",
            }
        )
    rows.append(
        {
            **rows[2],
            "question_type": "yes_no",
            "input": "Is it low?",
            "answer": "yes",
            "audio": ["2.wav", "4.wav"],
        }
    )
    rows.append(
        {
            **rows[3],
            "question_type": "caption",
            "input": "caption it",
            "answer": "a tone of some kind",
        }
    )
    return rows, features


def test_scores_and_text_are_those_of_the_textbook(parts):
    """Each option alone behind its prompt, unpadded, by `forward` with labels; greedy text of `generate` on one row."""
    _, model, processor = parts
    rows, features = rows_and_features(model, processor)
    found = answer_batch(model, processor, rows, features, ("likelihood", "generate"), 9)
    for row, said in zip(rows, found):
        for option, text in {**candidates(row), "": row["answer"]}.items():
            batch = ReasonAQACollator(processor, features=features)([{**row, "answer": text}])
            labels = int((batch["labels"] != -100).sum())
            with torch.no_grad():
                loss = float(model(**batch).loss) * labels
            total, count = said["scores"][option] if option else (-said["loss"], said["n_tokens"])
            assert count == labels and total == pytest.approx(-loss, abs=1e-4)
        asked = ReasonAQACollator(processor, generate=True, features=features)([row])
        made = model.generate(**asked, do_sample=False, max_new_tokens=9)[
            0, asked["input_ids"].shape[1] :
        ]
        assert said["text"] == processor.tokenizer.decode(made, skip_special_tokens=True).strip()
    assert list(found[6]["scores"]) == ["yes", "no"] and found[7]["scores"] == {}


def test_one_row_or_many_at_once(parts):
    _, model, processor = parts
    rows, features = rows_and_features(model, processor)
    many = answer_batch(model, processor, rows, features, ("likelihood", "generate"), 9)
    for row, said in zip(rows, many):
        alone = answer_batch(model, processor, [row], features, ("likelihood", "generate"), 9)[0]
        assert alone["text"] == said["text"] and alone["loss"] == pytest.approx(
            said["loss"], abs=1e-4
        )
        for option, (total, count) in alone["scores"].items():
            assert said["scores"][option] == (pytest.approx(total, abs=1e-4), count)


def test_a_branch_sees_its_prompt_and_itself_by_hand():
    made = build_scoring_batch([[7, 8], [9]], [[[1], [2, 3]], [[4]]], pad=0)
    assert made["input_ids"].tolist() == [[7, 8, 1, 2, 3], [0, 9, 4, 0, 0]]
    assert made["position_ids"][0].tolist() == [0, 1, 2, 2, 3] and made["position_ids"][
        1, 1:3
    ].tolist() == [0, 1]
    assert made["prompt"].tolist() == [[1, 1], [0, 1]]
    seen = [[int(j) for j in row.nonzero()[:, 0]] for row in made["sees"][0]]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4]]
    assert [int(j) for j in made["sees"][1, 2].nonzero()[:, 0]] == [1, 2]
    assert made["at"].T.tolist() == [[0, 2], [0, 3], [0, 4], [1, 2]] and made[
        "before"
    ].T.tolist() == [
        [0, 1],
        [0, 1],
        [0, 3],
        [1, 1],
    ]


def test_likeliest_option():
    scores = {"a": (-3.0, 1), "b": (-4.0, 4), "c": (-9.0, 3)}
    assert most_likely_option(scores) == "a" and most_likely_option(scores, normalised=True) == "b"
    assert most_likely_option({"a": (-3.0, 1), "b": (-3.0, 2)}) is None  # equally likely: no answer
    assert most_likely_option({}) is None


def test_options_are_written_as_training_writes_answers():
    row = {"question_type": "mcq", "input": "What? a) rain b) a dog, barking"}
    assert candidates(row) == {"a": "a) rain", "b": "b) a dog, barking"}
    assert candidates({"question_type": "caption", "input": "a) b)"}) == {}
