"""Chooses questions so that the text of a closed question says nothing about its answer.

Of all questions that a template allows, it asks the one whose right answer was right least often so
far, compared with chance. If a scene has only answers that were right too often, it asks about
another scene. Wrong options are those that were right too often, and the right one takes the letter
that it had least. The next answer can be predicted from earlier rows, but training shuffles rows.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from ...runtime import UserError
from .questions import ENTAILMENT, TEMPLATES, Question, Template, caption
from .scenes import Scene

NUM_OPTIONS = 4  # of a multiple-choice question, if there are enough answers
MAX_TRIES = 80  # scenes to look at for an answer that is not too frequent
FALLBACK = TEMPLATES[0]  # can be asked about each scene, and again with other options
SUBTYPES = {
    "mcq": "Soundscapes-MCQ.json",
    "yes_no": "SoundscapesAQA.json",
    "entailment": "SoundscapesE.json",
    "caption": "Soundscapes.json",
    "detail": "Soundscapes-Detail.json",
    "explain the difference in few words": "SoundscapesD-1.json",
    "explain the difference in a sentence": "SoundscapesD-2.json",
    "explain the difference in detail": "SoundscapesD-3.json",
}
OPEN_TYPES = ("difference", "caption", "detail")


class Balance:
    """Counts how much more often than by chance each answer was right, and with which letter."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.excesses: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.letters = Counter()

    def excess(self, question: Question, answer: str) -> float:
        """Returns how much more often than by chance an answer was right."""
        return sum(self.excesses[key, answer] for key in question.keys or (question.text,))

    def choose(self, questions: Sequence[Question]) -> Question:
        """Returns the question whose right answer was right least often, a random one of equals."""
        return min(questions, key=lambda q: (self.excess(q, q.right), self.rng.random()))

    def options(self, question: Question) -> list[str]:
        """Returns a question's options in order, the right one where it stood least often."""
        rng = self.rng
        wrong = list(rng.permutation(np.array(question.wrong, dtype=object)))[: NUM_OPTIONS - 1]
        more = sorted(
            question.more_wrong, key=lambda a: self.excess(question, a) + rng.uniform(0, 0.5)
        )
        num_missing = min(len(more), NUM_OPTIONS - 1 - len(wrong))
        wrong += [more.pop() for _ in range(num_missing)]
        options = [str(answer) for answer in rng.permutation(np.array(wrong, dtype=object))]
        key = (question.keys or (question.text,))[0]
        detailed_key = (key, question.right, len(wrong) + 1)
        letter = min(
            range(len(wrong) + 1),
            key=lambda n: (self.letters[*detailed_key, n], self.letters[key, n], rng.random()),
        )
        self.letters[*detailed_key, letter] += 1
        self.letters[key, letter] += 1
        options.insert(letter, question.right)
        return options

    def count(self, question: Question, options: Sequence[str]) -> None:
        """Counts the right answer of a question with these options."""
        for key in question.keys or (question.text,):
            self.excesses[key, question.right] += 1
            for answer in options:
                self.excesses[key, answer] -= 1 / len(options)


class QuestionWriter:
    """Writes ReasonAQA rows about scenes. No question about the same clips comes twice."""

    def __init__(self, scenes: Sequence[Scene], paths: Sequence[str], rng: np.random.Generator):
        self.scenes = scenes
        self.paths = paths
        self.rng = rng
        self.balance = Balance(rng)
        self.written = set()  # text and clips

    def write(self, template: Template, scene: int) -> dict[str, str] | None:
        """Returns a new row, about this scene if it suits, or None if no scene does."""
        if template.question_type in OPEN_TYPES:
            return self._write_open(template, scene)
        return self._write_closed(template, scene)

    def _choose_clips(self, template: Template, scene: int, attempt: int) -> list[int]:
        count = len(self.scenes)
        tries_with_scene = 1 if template.clips == 1 else MAX_TRIES // 4
        clips = [scene if attempt < tries_with_scene else int(self.rng.integers(count))]
        if template.clips == 2:
            clips.append((clips[0] + int(self.rng.integers(1, count))) % count)
        return clips

    def _write_open(self, template: Template, scene: int) -> dict[str, str] | None:
        for attempt in range(MAX_TRIES):
            clips = self._choose_clips(template, scene, attempt)
            text, answer = template.ask(*(self.scenes[clip] for clip in clips), self.rng)
            if (text, *clips) not in self.written:
                self.written.add((text, *clips))
                key = text if template.question_type == "difference" else template.question_type
                return self._row(SUBTYPES[key], text, answer, clips)
        return None

    def _write_closed(self, template: Template, scene: int) -> dict[str, str] | None:
        candidates = []
        for attempt in range(MAX_TRIES):
            clips = self._choose_clips(template, scene, attempt)
            questions = list(template.ask(*(self.scenes[clip] for clip in clips)))
            if template is not FALLBACK:
                questions = [q for q in questions if (q.text, *clips) not in self.written]
            if not questions:
                continue
            if self.scenes[scene].has_recordings:
                # With many classes a text comes once or twice. Answers are balanced together too.
                key = f"template {TEMPLATES.index(template)}"
                questions = [replace(q, keys=(*(q.keys or (q.text,)), key)) for q in questions]
            question = self.balance.choose(questions)
            excess = self.balance.excess(question, question.right)
            candidates.append((excess, attempt, question, clips))
            if excess <= 0:
                break
        if not candidates:
            return None
        *_, question, clips = min(candidates, key=lambda c: c[:2])
        self.written.add((question.text, *clips))
        text, answer = self._add_options(template.question_type, question)
        return self._row(SUBTYPES[template.question_type], text, answer, clips)

    def _add_options(self, question_type: str, question: Question) -> tuple[str, str]:
        """Returns the question with its options, and the answer as the option reads."""
        if question_type == "yes_no":
            self.balance.count(question, ("yes", "no"))
            return f"{question.text} Answer only using yes or no.", question.right
        if question_type == "mcq":
            options, letters = self.balance.options(question), "ABCD"
            text = question.text
        else:
            options, letters = ENTAILMENT, "abcd"
            text = f'Based on the audio, what can be said about the hypothesis - "{question.text}"?'
        self.balance.count(question, options)
        lines = [f"{letter}) {option}" for letter, option in zip(letters, options)]
        return f"{text} {' '.join(lines)}", lines[options.index(question.right)]

    def _row(self, subtype: str, text: str, answer: str, clips: list[int]) -> dict[str, str]:
        is_pair = len(clips) == 2
        return {
            "taskname": "soundscapes",
            "filepath1": self.paths[clips[0]],
            "filepath2": self.paths[clips[1]] if is_pair else "",
            "caption1": caption(self.scenes[clips[0]]),
            "caption2": caption(self.scenes[clips[1]]) if is_pair else "",
            "input": text,
            "answer": answer,
            "subtype": subtype,
        }


def draw_questions(
    scenes: Sequence[Scene], paths: Sequence[str], rows: int, rng: np.random.Generator
) -> tuple[list[dict[str, str]], list[str]]:
    """Draws rows about scenes, and the category of each row.

    Rows about one scene are neighbours as far as balance allows.
    """
    writer = QuestionWriter(scenes, paths, rng)
    drawn, categories = [], []
    schedule: list[Template] = []
    while len(drawn) < rows:
        if not schedule:
            templates = list(chain.from_iterable([t] * t.rows for t in TEMPLATES))
            schedule = [templates[i] for i in rng.permutation(len(templates))]
        scene = len(drawn) * len(scenes) // rows
        for template in (schedule.pop(), FALLBACK):
            row = writer.write(template, scene)
            if row is not None:
                drawn.append(row)
                categories.append(template.category)
                break
        else:
            raise UserError(f"{len(scenes)} scenes do not give {rows} different questions")
    return drawn, categories
