"""Draws ReasonAQA rows about synthetic scenes so that the text of a closed question says nothing about its answer.

Of all that a template could ask about a scene, that is asked whose right answer was right least often so far, measured by
chance, and about another scene if this one has only answers that were right too often. Wrong options are those that were
right too often, and the right one stands where it stood least. So each answer is right as often as chance has it, and by
letter too. What answer comes next can be told from the rows before it, but rows are shuffled in training.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from .questions import ENTAILMENT, TEMPLATES, Question, Template, caption
from .scenes import Scene

OPTIONS = 4  # of an mcq, if there is so much to choose from
TRIES = 80  # scenes looked at for one with the answer that is wanted
ALWAYS = TEMPLATES[0]  # can be asked about each scene, and again with other options
SUBTYPES = {
    "mcq": "Soundscapes-MCQ.json",
    "yes_no": "SoundscapesAQA.json",
    "entailment": "SoundscapesE.json",
    "caption": "Soundscapes.json",
    "detail": "Soundscapes-Detail.json",
}
DIFFERENCES = {
    "few words": "SoundscapesD-1.json",
    "a sentence": "SoundscapesD-2.json",
    "detail": "SoundscapesD-3.json",
}


class Balance:
    """How much more often than by chance each answer was right so far, and with which letter."""

    def __init__(self, random: np.random.Generator):
        self.random, self.excess, self.letters = random, Counter(), Counter()

    def _keys(self, question: Question) -> tuple[str, ...]:
        return question.keys or (question.text,)

    def of(self, question: Question, answer: str) -> float:
        return sum(self.excess[key, answer] for key in self._keys(question))

    def least(self, questions: Sequence[Question]) -> Question:
        """The question whose right answer was right least often; by lot among equals."""
        return min(questions, key=lambda q: (self.of(q, q.right), self.random.random()))

    def options(self, question: Question) -> list[str]:
        """The options of an mcq in their order, the right one where it stood least often."""
        wrong = list(self.random.permutation(np.array(question.wrong, dtype=object)))[: OPTIONS - 1]
        more = sorted(
            question.more_wrong, key=lambda a: self.of(question, a) + self.random.uniform(0, 0.5)
        )
        wrong += [more.pop() for _ in range(min(len(more), OPTIONS - 1 - len(wrong)))]
        options = [str(answer) for answer in self.random.permutation(np.array(wrong, dtype=object))]
        key = self._keys(question)[0], question.right, len(options)
        counts = [
            (self.letters[*key, p], self.letters[key[0], p], self.random.random())
            for p in range(len(options) + 1)
        ]
        place = counts.index(min(counts))
        self.letters[*key, place] += 1
        self.letters[key[0], place] += 1
        return [*options[:place], question.right, *options[place:]]

    def count(self, question: Question, options: Sequence[str]) -> None:
        for key in self._keys(question):
            self.excess[key, question.right] += 1
            for answer in options:
                self.excess[key, answer] -= 1 / len(options)


def draw_questions(
    scenes: Sequence[Scene], paths: Sequence[str], rows: int, random: np.random.Generator
) -> tuple[list[dict[str, str]], list[str]]:
    """ReasonAQA rows about the scenes, each scene's next to each other as far as balance allows, and their categories.

    Args:
        paths: audio file of each scene.
    """
    balance, made, categories, seen = Balance(random), [], [], set()
    schedule: list[Template] = []
    while len(made) < rows:
        if not schedule:
            every = [template for template in TEMPLATES for _ in range(template.rows)]
            schedule = [every[i] for i in random.permutation(len(every))]
        template = schedule.pop()
        scene = len(made) * len(scenes) // rows
        found = _ask(template, scenes, scene, balance, seen, paths) or _ask(
            ALWAYS, scenes, scene, balance, seen, paths
        )
        if found is None:
            raise ValueError(f"{len(scenes)} scenes do not give {rows} different questions")
        made.append(found[1])
        categories.append(found[0].category)
    return made, categories


def _ask(template, scenes, scene, balance, seen, paths) -> tuple[Template, dict[str, str]] | None:
    """A new row, about `scene` if it has the answer that is wanted; None if no scene lends itself."""
    random, best = balance.random, None
    for attempt in range(TRIES):
        clips = [
            scene
            if attempt < (1 if template.clips == 1 else TRIES // 4)
            else int(random.integers(len(scenes)))
        ]
        if template.clips == 2:
            clips.append((clips[0] + int(random.integers(1, len(scenes)))) % len(scenes))
        chosen = [scenes[i] for i in clips]
        if template.question_type in ("difference", "caption", "detail"):
            text, answer = template.ask(*chosen, random)
            if (text, *clips) not in seen:
                seen.add((text, *clips))
                return template, _row(template, text, answer, clips, scenes, paths)
            continue
        questions = [
            q for q in template.ask(*chosen) if template is ALWAYS or (q.text, *clips) not in seen
        ]
        if not questions:
            continue
        question = balance.least(questions)
        excess = balance.of(question, question.right)
        if best is None or excess < best[0]:
            best = excess, question, clips
        if excess <= 0:
            break
    if best is None:
        return None
    _, question, clips = best
    seen.add((question.text, *clips))
    if template.question_type == "mcq":
        options = balance.options(question)
        listed = [f"{'ABCD'[i]}) {option}" for i, option in enumerate(options)]
        text, answer = f"{question.text} {' '.join(listed)}", listed[options.index(question.right)]
    elif template.question_type == "yes_no":
        options, text, answer = (
            ("yes", "no"),
            f"{question.text} Answer only using yes or no.",
            question.right,
        )
    else:
        options, listed = (
            ENTAILMENT,
            [f"{'abcd'[i]}) {option}" for i, option in enumerate(ENTAILMENT)],
        )
        text = f'Based on the audio, what can be said about the hypothesis - "{question.text}"? {" ".join(listed)}'
        answer = listed[options.index(question.right)]
    balance.count(question, options)
    return template, _row(template, text, answer, clips, scenes, paths)


def _row(template, text, answer, clips, scenes, paths) -> dict[str, str]:
    two = len(clips) == 2
    kind = template.question_type
    return {
        "taskname": "soundscapes",
        "filepath1": paths[clips[0]],
        "filepath2": paths[clips[1]] if two else "",
        "caption1": caption(scenes[clips[0]]),
        "caption2": caption(scenes[clips[1]]) if two else "",
        "input": text,
        "answer": answer,
        "subtype": SUBTYPES[kind]
        if kind in SUBTYPES
        else next(s for words, s in DIFFERENCES.items() if text.endswith(words)),
    }
