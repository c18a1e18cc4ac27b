"""Scoring and generation from one run of the prompt, against the baseline implementation."""

import pytest
import torch
from support.builders import clip

from audiolm.data.collator import ReasonAQACollator
from audiolm.data.features import encode_clips, pad_features
from audiolm.evaluation.answering import (
    answer_batch,
    build_scoring_batch,
    candidates,
    most_likely_option,
)


def rows_and_features(model, processor, count=6):
    rows, features = [], {}
    for i in range(count):
        encoded = encode_clips(
            model.encoder, processor.feature_extractor, [(clip(0.4 + i / 5, seed=i), 24000)]
        )
        features[f"{i}.wav"] = next(encoded)[1]
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


def test_answer_batch_equals_forward_and_generate_on_single_examples(parts):
    """Each option alone behind its prompt, unpadded, by `forward` with labels."""
    _, model, processor = parts
    rows, features = rows_and_features(model, processor)
    answers = answer_batch(model, processor, rows, features, ("likelihood", "generate"), 9)
    for row, answer in zip(rows, answers):
        for option, text in {**candidates(row), "": row["answer"]}.items():
            batch = ReasonAQACollator(processor, features=features)([{**row, "answer": text}])
            labels = int((batch["labels"] != -100).sum())
            with torch.no_grad():
                loss = float(model(**batch).loss) * labels
            total, count = (
                answer["scores"][option] if option else (-answer["loss"], answer["n_tokens"])
            )
            assert count == labels
            assert total == pytest.approx(-loss, abs=1e-4)
        padded, num_frames = pad_features([features[clip] for clip in row["audio"]])
        prompt = processor.encode_texts([row["input"]], [num_frames])
        prompt["input_features"] = padded
        is_frame = torch.arange(max(num_frames))[None] < torch.tensor(num_frames)[:, None]
        prompt["input_features_mask"] = is_frame
        tokens = model.generate(**prompt, do_sample=False, max_new_tokens=9)[
            0, prompt["input_ids"].shape[1] :
        ]
        assert (
            answer["text"] == processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        )
    assert list(answers[6]["scores"]) == ["yes", "no"]
    assert answers[7]["scores"] == {}


def test_answer_batch_of_one_row_equals_batch_of_many(parts):
    _, model, processor = parts
    rows, features = rows_and_features(model, processor)
    many = answer_batch(model, processor, rows, features, ("likelihood", "generate"), 9)
    for row, answer in zip(rows, many):
        alone = answer_batch(model, processor, [row], features, ("likelihood", "generate"), 9)[0]
        assert alone["text"] == answer["text"]
        assert alone["loss"] == pytest.approx(answer["loss"], abs=1e-4)
        for option, (total, count) in alone["scores"].items():
            assert answer["scores"][option] == (pytest.approx(total, abs=1e-4), count)


def test_build_scoring_batch_branch_sees_prompt_and_itself():
    batch = build_scoring_batch([[7, 8], [9]], [[[1], [2, 3]], [[4]]], pad=0)
    assert batch.input_ids.tolist() == [[7, 8, 1, 2, 3], [0, 9, 4, 0, 0]]
    assert batch.position_ids[0].tolist() == [0, 1, 2, 2, 3]
    assert batch.position_ids[1, 1:3].tolist() == [0, 1]
    assert batch.prompt_mask.tolist() == [[1, 1], [0, 1]]
    seen = [[int(j) for j in row.nonzero()[:, 0]] for row in batch.visible[0]]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4]]
    assert [int(j) for j in batch.visible[1, 2].nonzero()[:, 0]] == [1, 2]
    assert batch.targets.T.tolist() == [[0, 2], [0, 3], [0, 4], [1, 2]]
    assert batch.predictors.T.tolist() == [[0, 1], [0, 1], [0, 3], [1, 1]]


def test_most_likely_option_of_scores_or_of_means_and_none_for_a_tie():
    scores = {"a": (-3.0, 1), "b": (-4.0, 4), "c": (-9.0, 3)}
    assert most_likely_option(scores) == "a"
    assert most_likely_option(scores, normalised=True) == "b"
    assert most_likely_option({"a": (-3.0, 1), "b": (-3.0, 2)}) is None  # equally likely: no answer
    assert most_likely_option({}) is None


def test_candidates_are_written_as_in_training():
    row = {"question_type": "mcq", "input": "What? a) rain b) a dog, barking"}
    assert candidates(row) == {"a": "a) rain", "b": "b) a dog, barking"}
    assert candidates({"question_type": "caption", "input": "a) b)"}) == {}
