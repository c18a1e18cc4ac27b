"""Small comparisons: corpora with their configs, and evaluations with chosen outcomes."""

import json
from pathlib import Path

import soundfile
import yaml
from support.builders import EMPTY, MCQ, YES_NO, clip, save_parts

from audiolm.comparison.runs import Run
from audiolm.data.audio_check import ClipFacts
from audiolm.evaluation.scores import predicted_rows, score

DIFFERENCE = {**EMPTY, "input": "explain the difference in detail", "subtype": "TD-1.json"}
ANSWERS = {"mcq": ("A) low", "B) high"), "yes_no": ("yes", "no")}
ENTAILMENT = {
    "question_type": "entailment",
    "input": "the hypothesis is definitely true or not? A) low B) high",
    "subtype": "TE.json",
}
TRAINING = {"learning rate": 1e-4, "steps": 20000, "seed": 0, "data": {"sha256": "x", "rows": 5}}


def write_corpus(folder: Path, tokenizer, with_pairs: bool) -> dict:
    """Writes 8 closed rows, 4 open ones about two clips if asked, and checkpoints.

    Returns options that all arms of a small comparison share: `train` and `eval`.
    """
    rows = []
    for i in range(12 if with_pairs else 8):
        soundfile.write(folder / f"{i}.flac", clip(0.5 + i / 20, seed=i % 2 * 9), 24000)
        question, name = ((MCQ, "mcq"), (YES_NO, "yes_no"), (DIFFERENCE, None))[i // 4]
        answer = ANSWERS[name][i % 2] if name else "the first is lower"
        rows.append({**question, "filepath1": f"{i}.flac", "answer": answer})
        if question is DIFFERENCE:
            rows[-1]["filepath2"] = f"{i - 8}.flac"
    (folder / "rows.json").write_text(json.dumps(rows))
    save_parts(folder, tokenizer)
    data = str(folder / "rows.json")
    audio = str(folder)
    return {
        "train": {
            "train_file": data,
            "validation_file": data,
            "audio_dir": audio,
            "max_steps": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "text_model_name_or_path": str(folder / "text"),
            "freeze_lm": False,
            "learning_rate": 0.01,
            "dataloader_num_workers": 0,
        },
        "eval": {"test_file": data, "audio_dir": audio},
    }


def write_config(path: Path, config: dict, **changes) -> str:
    """Writes a config as YAML, with some sections replaced, and returns its path."""
    path.write_text(yaml.safe_dump({**config, **changes}, sort_keys=False))
    return str(path)


def write_two_arms(folder: Path, tokenizer) -> dict:
    """Writes 8 rows and checkpoints. Returns a config of two arms, two seeds and 2 steps."""
    shared = write_corpus(folder, tokenizer, with_pairs=False)
    shared["train"]["eval_steps"] = 2
    shared["eval"] |= {"protocol": ["likelihood"], "controls": ["no_audio"]}
    arms = {}
    for arm in ("mimi_semantic", "mimi_full"):
        arms[arm] = {"encoder_type": arm, "encoder_name_or_path": str(folder / "mimi")}
    return {"seeds": [0, 1], "arms": arms, **shared}


def command_line(folder: Path, config: dict, output: str, **changes) -> list[str]:
    """The command line of a comparison in a folder's subfolder, with some sections replaced."""
    path = folder / f"{output}.yaml"
    return ["--config", write_config(path, config, output_dir=str(folder / output), **changes)]


def read_comparison(folder: Path) -> dict:
    """`comparison.json` without the command that made it."""
    comparison = json.loads((folder / "comparison.json").read_text())
    return {name: value for name, value in comparison.items() if name != "command"}


def make_run(right, name="x", clips=None, no_audio=False, model=None, **settings) -> Run:
    """An evaluation of one-clip questions of three types in turn.

    Args:
        right: Whether each question is answered correctly.
        name: Name of its folder.
        clips: Number of each row's clip. Default: one clip for each row.
        no_audio: Whether the model is text-only.
        model: Facts of the model that differ from the defaults.
        settings: Settings of the evaluation that differ from the defaults.
    """
    types = (
        {**MCQ, "question_type": "mcq", "answer": "A) low"},
        {**YES_NO, "question_type": "yes_no", "answer": "yes"},
        {**MCQ, **ENTAILMENT, "answer": "A) low"},
    )
    rows = []
    answers = []
    for i, is_right in enumerate(right):
        clip_name = f"{i if clips is None else clips[i]}.wav"
        rows.append({**types[i % 3], "filepath1": clip_name, "audio": [clip_name]})
        options = ("yes", "no") if rows[-1]["question_type"] == "yes_no" else ("a", "b")
        best = options[0] if is_right else options[1]
        scores = {option: (-1.0 if option == best else -2.0, 1) for option in options}
        answers.append({"audio": {"loss": 1.0, "n_tokens": 1, "scores": scores}})
    names = [row["audio"][0] for row in rows]
    facts = {name: ClipFacts(None, 5.0, 0.5, digest=name) for name in names}
    predictions = predicted_rows(rows, answers, facts)
    facts = {
        "encoder_type": "htsat",
        "no_audio": no_audio,
        "training": TRAINING,
        "weights_sha256": name,
        "step": 20000,
        **(model or {}),
    }
    settings = {"model": facts, "rows_sha256": "r", "precision": "fp32", **settings}
    metrics = {**score(predictions, "likelihood", 10.0), "settings": settings}
    return Run(Path(name), metrics, predictions)


def make_seeds(*outcomes, **options) -> list[Run]:
    """Evaluations of one arm with the seeds 0, 1, ..., one for each list of outcomes."""
    runs = []
    for seed, right in enumerate(outcomes):
        model = {**options.get("model", {}), "training": {**TRAINING, "seed": seed}}
        runs.append(make_run(right, f"s{seed}", **{**options, "model": model}))
    return runs
