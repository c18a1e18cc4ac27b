"""Writes a train.json of ReasonAQA's size, with its rows by subtype, clips and text lengths.

`python tests/support/full_size.py FILE [SHARE [AUDIO]]` writes this share of the rows. The folder
AUDIO gets a file for each clip: 10 s of noise in 16 bits, 100 different ones and links to them.
"""

import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import soundfile

# For each subtype of train.json: rows, and characters of a caption, a question and an answer.
ROWS = {
    "Clotho.json": (19195, 56, 19, 71),
    "AudioCaps.json": (48660, 50, 19, 71),
    "ClothoAQA.json": (14088, 0, 60, 2),
    "CLE.json": (11511, 328, 120, 25),
    "CLD-1.json": (19195, 60, 35, 164),
    "CLD-2.json": (19195, 50, 36, 331),
    "CLD-3.json": (19195, 60, 32, 870),
    "ACD-1.json": (48660, 50, 35, 164),
    "ACD-2.json": (48660, 50, 36, 331),
    "ACD-3.json": (48660, 50, 32, 870),
    "Clotho-MCQ.json": (95551, 55, 120, 18),
    "Clotho-Detail.json": (94838, 62, 50, 250),
    "AudioCaps-MCQ.json": (241531, 50, 120, 18),
    "AudioCaps-Detail.json": (239132, 50, 50, 250),
}
CLIPS = {"AudioCapsLarger": 48_659, "ClothoV21": 3_839, "ClothoAQA": 1_548}
FOLDERS = {"AudioCapsLarger": "train", "ClothoV21": "development", "ClothoAQA": "audio_files"}
# fmt: off
WORDS = ["a", "sound", "of", "water", "wind", "engine", "dog", "bird", "rain", "people", "metal",
         "low", "high", "pitch", "loud"]
# fmt: on


def text(rng: random.Random, length: int) -> str:
    return " ".join(rng.choices(WORDS, k=max(1, length // 5)))[: max(1, length)]


def source_of(subtype: str) -> str:
    if subtype.startswith("A"):
        return "AudioCapsLarger"
    return "ClothoAQA" if subtype == "ClothoAQA.json" else "ClothoV21"


def question_and_answer(rng: random.Random, subtype: str) -> tuple[str, str]:
    _, _, question_length, answer_length = ROWS[subtype]
    question = text(rng, question_length)
    answer = text(rng, answer_length)
    if "D-" in subtype:
        return "explain the difference in few words", answer
    if subtype == "CLE.json":
        options = "a) It is definitely true b) It is definitely false"
        question = f"what can be said about the hypothesis {question} {options}"
        return question, rng.choice(("a) It is definitely true", "b) It is definitely false"))
    if subtype.endswith("MCQ.json"):
        options = [text(rng, answer_length) for _ in range(4)]
        stem = text(rng, question_length - 4 * (answer_length + 4))
        question = " ".join([stem, *(f"{k}) {v}" for k, v in zip("ABCD", options))])
        # "b" is over-represented.
        correct = rng.choice((0, 1, 1, 2, 3))
        return question, f"{'ABCD'[correct]}) {options[correct]}"
    if subtype == "ClothoAQA.json":
        return f"{question}? Answer only using yes or no.", rng.choice(("yes", "no"))
    if subtype in ("Clotho.json", "AudioCaps.json"):
        return "caption first audio", answer
    return question, answer


def row(rng: random.Random, subtype: str) -> dict[str, str]:
    caption_length = ROWS[subtype][1]
    has_two_clips = "D-" in subtype
    question, answer = question_and_answer(rng, subtype)
    source = source_of(subtype)

    def clip() -> str:
        return f"{source}/{FOLDERS[source]}/Y{rng.randrange(CLIPS[source]):011d}.wav"

    return {
        "taskname": "audiocaption",
        "filepath1": clip(),
        "filepath2": clip() if has_two_clips else "",
        "caption1": text(rng, caption_length) if caption_length else "",
        "caption2": text(rng, caption_length) if has_two_clips else "",
        "input": question,
        "answer": answer,
        "subtype": subtype,
    }


def write_audio(folder: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(320_000).astype("float32") / 10
    for source, count in CLIPS.items():
        source_folder = folder / source / FOLDERS[source]
        source_folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            clip = source_folder / f"Y{number:011d}.wav"
            if number < 100:
                soundfile.write(clip, noise * (1 + number) / 100, 32_000, subtype="PCM_16")
            else:
                os.link(source_folder / f"Y{number % 100:011d}.wav", clip)


def main(file: str, share: str = "1", audio: str | None = None) -> None:
    rng = random.Random(0)
    subtypes = []
    for subtype, (count, *_) in ROWS.items():
        subtypes += [subtype] * int(count * float(share))
    rng.shuffle(subtypes)
    with open(file, "w", encoding="utf-8") as out:
        for number, subtype in enumerate(subtypes):
            out.write((",\n" if number else "[") + json.dumps(row(rng, subtype)))
        out.write("]\n")
    print(f"{len(subtypes):,} rows in {file}")
    if audio:
        write_audio(Path(audio))


if __name__ == "__main__":
    main(*sys.argv[1:])
