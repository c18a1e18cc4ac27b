"""Lists all questions about a scene or a pair of them, with the answers, by template.

Entailment ("the sound of the bell is near") is definitely true for a near sound, definitely false
for a far one, plausible in between, and undetermined without the sound. "Far away" swaps true and
false.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

from .events import Event
from .scenes import CONDITIONS, Scene, labels

NUMBERS = ("one", "two", "three", "four")
PLACES = ("outdoors", "small room", "large room")
AUDIOS = ("audio 1", "audio 2", "both audios", "neither")
ENTAILMENT = (
    "It is definitely true",
    "It is definitely false",
    "It is plausible",
    "I cannot determine",
)
# Properties of events, the most telling first, and the values to ask about. A steady pitch or a
# middle distance is in no question.
PROPERTY_VALUES = {
    "glide": ("rising", "falling"),
    "tempo_word": ("fast", "slow"),
    "pitch_word": ("high", "low"),
    "distance": ("near", "far"),
}
NOUNS = {"pitch_word": "pitch", "tempo_word": "tempo", "glide": "pitch"}


@dataclass(frozen=True)
class Question:
    """A closed question. Its answers are balanced for each of `keys`, by default for its text."""

    text: str  # without options
    right: str
    wrong: tuple[str, ...] = ()
    more_wrong: tuple[str, ...] = ()  # used where `wrong` has too few
    keys: tuple[str, ...] = ()


def place_phrase(scene: Scene) -> str:
    """Returns "outdoors", or a phrase such as "in a large room"."""
    return "outdoors" if scene.place == "outdoors" else f"in a {scene.room} room"


def event_words(event: Event) -> str:
    """Describes an event, such as "near high rising siren"."""
    properties = (event.distance, event.pitch_word, event.tempo_word, event.glide, event.name)
    return " ".join(word for word in properties if word)


def _event_sequence(scene: Scene) -> str:
    return ", then ".join(map(event_words, scene.events))


def _event_names(scene: Scene) -> str:
    *names, last = (event.name for event in scene.events)
    return f"{', '.join(names)} and {last}" if names else last


def caption(scene: Scene) -> str:
    """Describes a scene in one line that holds the answer to every question."""
    plural = "s" if len(scene.events) > 1 else ""
    return (
        f"{NUMBERS[len(scene.events) - 1]} sound{plural}: {_event_sequence(scene)}, "
        f"{place_phrase(scene)}. The recording is {scene.condition} and {scene.level_word}."
    )


# Closed questions. Each function yields all that its template can ask.


def _choice(text: str, right: str, answers: Iterable[str]) -> Question:
    return Question(text, right, tuple(answer for answer in answers if answer != right))


def _yes_no(text: str, truth: bool, *keys: str) -> Question:
    right, wrong = ("yes", "no") if truth else ("no", "yes")
    return Question(text, right, (wrong,), keys=keys)


def _order(text: str, relation: str, pair: tuple[Event, Event], truth: bool) -> Question:
    first, second = pair
    keys = (f"{first.name} {relation}", f"{relation} {second.name}", relation)
    return _yes_no(text, truth, *keys)


def _absent(scene: Scene) -> tuple[str, ...]:
    return tuple(name for name in scene.classes if name not in labels(scene))


def _event_choice(text: str, right: Event, scene: Scene, excluded: Event | None = None) -> Question:
    # The scene's other sounds come first, so that naming its sounds is not enough.
    others = [event.name for event in scene.events if event not in (right, excluded)]
    key = text.split(" the ")[0]
    return Question(text, right.name, tuple(others), _absent(scene), keys=(key,))


def _present(scene: Scene) -> Iterator[Question]:
    for event in scene.events:
        yield Question("Which sound can be heard?", event.name, more_wrong=_absent(scene))


def _is_present(scene: Scene) -> Iterator[Question]:
    for name in scene.classes:
        yield _yes_no(f"Can the {name} be heard?", name in labels(scene))


def _two_properties(scene: Scene) -> Iterator[Question]:
    for event in scene.events:
        properties = [name for name in PROPERTY_VALUES if getattr(event, name)][:2]
        values = [getattr(event, name) for name in properties]
        choices = [PROPERTY_VALUES[name] for name in properties]
        if len(values) == 2 and values[0] in choices[0] and values[1] in choices[1]:
            answers = [" and ".join(pair) for pair in product(choices[1], choices[0])]
            right = f"{values[1]} and {values[0]}"
            yield _choice(f"How does the {event.name} sound?", right, answers)


def _has_property(scene: Scene) -> Iterator[Question]:
    for event in scene.events:
        for name, noun in NOUNS.items():
            value = getattr(event, name)
            if value:
                for word in PROPERTY_VALUES[name]:
                    yield _yes_no(f"Is the {noun} of the {event.name} {word}?", value == word)


def _loudest(scene: Scene) -> Iterator[Question]:
    # A band-limited drum keeps little of its level.
    near = [event for event in scene.events if event.distance == "near"]
    if len(near) == 1 and len(scene.events) > 1 and scene.quality != "band-limited":
        yield _event_choice("Which sound is the loudest?", near[0], scene)


def _louder(scene: Scene) -> Iterator[Question]:
    if scene.quality == "band-limited":
        return
    for pair in permutations(scene.events, 2):
        if {event.distance for event in pair} == {"near", "far"}:
            text = f"Is the {pair[0].name} louder than the {pair[1].name}?"
            yield _order(text, "louder", pair, pair[0].distance == "near")


def _where(scene: Scene) -> Iterator[Question]:
    place = "outdoors" if scene.place == "outdoors" else f"{scene.room} room"
    yield _choice("Where was it recorded?", place, PLACES)


def _is_where(scene: Scene) -> Iterator[Question]:
    for place in ("indoors", "outdoors"):
        yield _yes_no(f"Was it recorded {place}?", scene.place == place)
    for room in ("small", "large"):
        yield _yes_no(f"Was it recorded in a {room} room?", scene.room == room)


def _quality(scene: Scene) -> Iterator[Question]:
    yield _choice("How is the recording quality?", scene.condition, CONDITIONS)


def _has_quality(scene: Scene) -> Iterator[Question]:
    for condition in CONDITIONS:
        yield _yes_no(f"Is the recording {condition}?", scene.condition == condition)


def _first_or_last(scene: Scene) -> Iterator[Question]:
    if len(scene.events) > 1:
        yield _event_choice("Which sound comes first?", scene.events[0], scene)
        yield _event_choice("Which sound comes last?", scene.events[-1], scene)


def _next_event(scene: Scene) -> Iterator[Question]:
    if len(scene.events) > 2:
        for earlier, later in zip(scene.events, scene.events[1:]):
            text = f"Which sound comes right after the {earlier.name}?"
            yield _event_choice(text, later, scene, earlier)


def _before(scene: Scene) -> Iterator[Question]:
    for pair in permutations(scene.events, 2):
        text = f"Can the {pair[0].name} be heard before the {pair[1].name}?"
        yield _order(text, "before", pair, pair[0].onset < pair[1].onset)


def _count(scene: Scene) -> Iterator[Question]:
    yield _choice("How many sounds can be heard?", NUMBERS[len(scene.events) - 1], NUMBERS)


def _more_than(scene: Scene) -> Iterator[Question]:
    for number, sounds in enumerate(("one sound", "two sounds", "three sounds"), 1):
        yield _yes_no(f"Are there more than {sounds}?", len(scene.events) > number)


def _which_has(first: Scene, second: Scene) -> Iterator[Question]:
    right = {(True, False): 0, (False, True): 1, (True, True): 2, (False, False): 3}
    for name in first.classes:
        presence = (name in labels(first), name in labels(second))
        yield _choice(f"Which audio has the {name}?", AUDIOS[right[presence]], AUDIOS)


def _which_has_more(first: Scene, second: Scene) -> Iterator[Question]:
    answers = ("neither", "audio 1", "audio 2")
    sign = int(np.sign(len(first.events) - len(second.events)))
    yield _choice("Which audio has more sounds?", answers[sign], ("audio 1", "audio 2", "neither"))


def _louder_audio(first: Scene, second: Scene) -> Iterator[Question]:
    if first.level_word != second.level_word:
        for comparative, level in (("louder", "loud"), ("quieter", "quiet")):
            text = f"Is audio 1 {comparative} than audio 2?"
            yield _yes_no(text, first.level_word == level)


def _same_event(first: Scene, second: Scene) -> Iterator[Question]:
    for a, b in product(first.events, second.events):
        if a.name != b.name:
            continue
        start = f"Is the {a.name}"
        if a.pitch_word != b.pitch_word:
            yield _yes_no(f"{start} higher in audio 1 than in audio 2?", a.pitch_word == "high")
        if a.tempo_word != b.tempo_word:
            yield _yes_no(f"{start} faster in audio 1 than in audio 2?", a.tempo_word == "fast")
        if {a.distance, b.distance} == {"near", "far"}:
            yield _yes_no(f"{start} nearer in audio 1 than in audio 2?", a.distance == "near")


def _same_place(first: Scene, second: Scene) -> Iterator[Question]:
    for place in ("indoors", "outdoors"):
        truth = first.place == second.place == place
        yield _yes_no(f"Were both audios recorded {place}?", truth)


def _entailment(scene: Scene) -> Iterator[Question]:
    distances = {event.name: event.distance for event in scene.events}
    true, false, plausible, undetermined = ENTAILMENT
    for name in scene.classes:
        for hypothesis, phrase in (("near", "near"), ("far", "far away")):
            distance = distances.get(name)
            right = {None: undetermined, "middle": plausible, hypothesis: true}.get(distance, false)
            yield _choice(f"The sound of the {name} is {phrase}.", right, ENTAILMENT)


# Open questions. Each function returns a question and its answer.


def _caption(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    return "caption first audio", f"The audio 1 is {caption(scene)}"


def _detail(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    event = scene.events[rng.integers(len(scene.events))]
    environment = f"The recording was made {place_phrase(scene)}, and is {scene.condition}."
    details = (
        ("What is happening in the clip?", f"There is {_event_sequence(scene)}."),
        (f"Describe the {event.name}.", f"It is {event_words(event)}."),
        ("What can you infer about the environment?", environment),
    )
    return details[rng.integers(3)]


DIFFERENCES = (
    ("few words", _event_names, "Audio 1 is {}, while Audio 2 is {}."),
    ("a sentence", _event_sequence, "Audio 1 features {}, whereas Audio 2 features {}."),
    ("detail", caption, "Audio 1 has {} In contrast, Audio 2 has {}"),
)


def _difference(first: Scene, second: Scene, rng: np.random.Generator) -> tuple[str, str]:
    length, describe, answer = DIFFERENCES[rng.integers(3)]
    question = f"explain the difference in {length}"
    return question, answer.format(describe(first), describe(second))


@dataclass(frozen=True)
class Template:
    """A kind of question. Its function takes the scenes, for an open question also a generator."""

    question_type: str
    category: str
    rows: int  # of each 40
    ask: Callable
    clips: int = 1


TEMPLATES = (
    Template("mcq", "sound event", 6, _present),
    Template("yes_no", "sound event", 4, _is_present),
    Template("mcq", "acoustic property", 2, _two_properties),
    Template("mcq", "acoustic property", 1, _loudest),
    Template("yes_no", "acoustic property", 2, _has_property),
    Template("yes_no", "acoustic property", 1, _louder),
    Template("mcq", "environment", 2, _where),
    Template("yes_no", "environment", 1, _is_where),
    Template("mcq", "recording quality", 2, _quality),
    Template("yes_no", "recording quality", 1, _has_quality),
    Template("mcq", "time order", 1, _first_or_last),
    Template("mcq", "time order", 1, _next_event),
    Template("yes_no", "time order", 2, _before),
    Template("mcq", "count", 2, _count),
    Template("yes_no", "count", 1, _more_than),
    Template("mcq", "comparison", 1, _which_has, clips=2),
    Template("mcq", "comparison", 1, _which_has_more, clips=2),
    Template("yes_no", "comparison", 1, _louder_audio, clips=2),
    Template("yes_no", "comparison", 1, _same_event, clips=2),
    Template("yes_no", "comparison", 1, _same_place, clips=2),
    Template("entailment", "acoustic property", 2, _entailment),
    Template("difference", "comparison", 2, _difference, clips=2),
    Template("caption", "other", 1, _caption),
    Template("detail", "other", 1, _detail),
)
