"""Writes a train.json of ReasonAQA's real size: its rows by subtype, its clips, and texts of the lengths of its records.

`python tests/support/full_size.py FILE [SHARE [AUDIO]]`; docs/data.md says what reading it takes. The folder AUDIO gets a file for
each clip, 10 s of noise in 16 bits: 100 different ones, and links to them.
"""

import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import soundfile

# rows of each subtype of the real train.json, the clips that they are about, and the characters of caption, question and answer
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
CLIPS = {"AudioCapsLarger": 48_659, "ClothoV21": 3_839, "ClothoAQA": 1_548}  # 54,046 in all
FOLDERS = {"AudioCapsLarger": "train", "ClothoV21": "development", "ClothoAQA": "audio_files"}
WORDS = [
    "a",
    "sound",
    "of",
    "water",
    "wind",
    "engine",
    "dog",
    "bird",
    "rain",
    "people",
    "metal",
    "low",
    "high",
    "pitch",
    "loud",
]


def text(draw: random.Random, length: int) -> str:
    return " ".join(draw.choices(WORDS, k=max(1, length // 5)))[: max(1, length)]


def row(draw: random.Random, subtype: str) -> dict[str, str]:
    _, caption, question, answer = ROWS[subtype]
    source = (
        "AudioCapsLarger"
        if subtype.startswith("A")
        else "ClothoAQA"
        if subtype == "ClothoAQA.json"
        else "ClothoV21"
    )

    def clip():
        return f"{source}/{FOLDERS[source]}/Y{draw.randrange(CLIPS[source]):011d}.wav"

    two, asked, said = "D-" in subtype, text(draw, question), text(draw, answer)
    if two:
        asked = "explain the difference in few words"
    elif subtype == "CLE.json":
        asked = f"what can be said about the hypothesis {asked} a) It is definitely true b) It is definitely false"
        said = draw.choice(("a) It is definitely true", "b) It is definitely false"))
    elif subtype.endswith("MCQ.json"):
        options = [text(draw, answer) for _ in range(4)]
        asked = " ".join(
            [
                text(draw, question - 4 * (answer + 4)),
                *(f"{k}) {v}" for k, v in zip("ABCD", options)),
            ]
        )
        right = draw.choice((0, 1, 1, 2, 3))  # b is over-represented
        said = f"{'ABCD'[right]}) {options[right]}"
    elif subtype == "ClothoAQA.json":
        asked, said = f"{asked}? Answer only using yes or no.", draw.choice(("yes", "no"))
    elif subtype in ("Clotho.json", "AudioCaps.json"):
        asked = "caption first audio"
    return {
        "taskname": "audiocaption",
        "filepath1": clip(),
        "filepath2": clip() if two else "",
        "caption1": text(draw, caption) if caption else "",
        "caption2": text(draw, caption) if two else "",
        "input": asked,
        "answer": said,
        "subtype": subtype,
    }


def sounds(folder: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(320_000).astype("float32") / 10
    for source, count in CLIPS.items():
        place = folder / source / FOLDERS[source]
        place.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            clip = place / f"Y{number:011d}.wav"
            if number < 100:
                soundfile.write(clip, noise * (1 + number) / 100, 32_000, subtype="PCM_16")
            else:
                os.link(place / f"Y{number % 100:011d}.wav", clip)


def main(file: str, share: str = "1", audio: str | None = None) -> None:
    draw = random.Random(0)
    kinds = [
        subtype for subtype, (count, *_) in ROWS.items() for _ in range(int(count * float(share)))
    ]
    draw.shuffle(kinds)
    with open(file, "w", encoding="utf-8") as out:
        for number, subtype in enumerate(kinds):
            out.write(("[" if not number else ",\n") + json.dumps(row(draw, subtype)))
        out.write("]\n")
    print(f"{len(kinds):,} rows in {file}")
    if audio:
        sounds(Path(audio))


if __name__ == "__main__":
    main(*sys.argv[1:])
