"""All that can be asked about a synthetic scene or a pair of them, with the answers, in ReasonAQA's question types.

The rule of entailment ("the sound of the bell is near"): near, it is definitely true; far, definitely false; in between,
plausible; not to be heard at all, cannot be determined. For "is far away", true and false change places.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from .events import CLASSES, Event
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


@dataclass(frozen=True)
class Question:
    """Text without options, the right answer, the other ones, and more wrong ones to fill up with.

    Answers are to be balanced for each of `keys`, by default for the text.
    """

    text: str
    right: str
    wrong: tuple[str, ...] = ()
    more_wrong: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


# Words of scenes


def place_words(scene: Scene) -> str:
    return "outdoors" if scene.place == "outdoors" else f"{scene.room} room"


def event_words(event: Event) -> str:
    """Such as "near high rising siren"."""
    words = (event.distance, event.pitch_word, event.tempo_word, event.glide, event.name)
    return " ".join(word for word in words if word)


def names_of(scene: Scene) -> str:
    names = [event.name for event in scene.events]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def caption(scene: Scene) -> str:
    """The whole truth in one line: it holds the answer to every question."""
    sounds = ", then ".join(map(event_words, scene.events))
    number = f"{NUMBERS[len(scene.events) - 1]} sound{'s' if len(scene.events) > 1 else ''}"
    place = "outdoors" if scene.place == "outdoors" else f"in a {scene.room} room"
    return (
        f"{number}: {sounds}, {place}. The recording is {scene.condition} and {scene.level_word}."
    )


# Closed questions: all that can be asked about a scene, or a pair of them.


def _choice(text: str, right: str, answers: Iterable[str]) -> Question:
    return Question(text, right, tuple(a for a in answers if a != right))


def _yes_no(text: str, truth: bool, *keys: str) -> Question:
    return Question(text, "yes" if truth else "no", ("no" if truth else "yes",), keys=keys)


def _absent(scene: Scene) -> tuple[str, ...]:
    return tuple(name for name in CLASSES if name not in labels(scene))


def _present(scene):
    for event in scene.events:
        yield Question("Which sound can be heard?", event.name, more_wrong=_absent(scene))


def _is_present(scene):
    for name in CLASSES:
        yield _yes_no(f"Can the {name} be heard?", name in labels(scene))


def _how(scene):
    distance, pitch, tempo, glide = (
        ("near", "far"),
        ("high", "low"),
        ("fast", "slow"),
        ("rising", "falling"),
    )
    for event in scene.events:
        # The two most telling properties that the class has; what is neither, a steady pitch say, is not asked about.
        words = [
            (event.glide, glide),
            (event.tempo_word, tempo),
            (event.pitch_word, pitch),
            (event.distance, distance),
        ]
        (one, ones), (two, twos) = ([w for w in words if w[0]] + words)[:2]
        if one in ones and two in twos:
            yield _choice(
                f"How does the {event.name} sound?",
                f"{two} and {one}",
                [f"{b} and {a}" for b in twos for a in ones],
            )


def _property(scene):
    for event in scene.events:
        if event.pitch:
            yield from (
                _yes_no(f"Is the pitch of the {event.name} {w}?", event.pitch_word == w)
                for w in ("high", "low")
            )
        if event.tempo:
            yield from (
                _yes_no(f"Is the tempo of the {event.name} {w}?", event.tempo_word == w)
                for w in ("fast", "slow")
            )
        if event.glide:
            yield from (
                _yes_no(f"Is the pitch of the {event.name} {w}?", event.glide == w)
                for w in ("rising", "falling")
            )


def _loudest(scene):
    # What a telephone's band leaves of a drum is not the level that it had.
    near = [event for event in scene.events if event.distance == "near"]
    if len(near) == 1 and len(scene.events) > 1 and scene.quality != "band-limited":
        yield _of_the_scene("Which sound is the loudest?", near[0], scene)


def _louder(scene):
    if scene.quality != "band-limited":
        for a, b in _pairs(scene.events):
            if {a.distance, b.distance} == {"near", "far"}:
                yield _ordered(
                    f"Is the {a.name} louder than the {b.name}?",
                    "louder",
                    a,
                    b,
                    a.distance == "near",
                )


def _pairs(events: Sequence[Event]) -> Iterator[tuple[Event, Event]]:
    return ((a, b) for a in events for b in events if a is not b)


def _ordered(text: str, relation: str, a: Event, b: Event, truth: bool) -> Question:
    return _yes_no(text, truth, f"{a.name} {relation}", f"{relation} {b.name}", relation)


def _of_the_scene(text: str, right: Event, scene: Scene, asked: Event | None = None) -> Question:
    """Options are the scene's other sounds first, so that hearing which sounds there are is not enough."""
    others = tuple(
        event.name for event in scene.events if event is not right and event is not asked
    )
    return Question(text, right.name, others, _absent(scene), keys=(text.split(" the ")[0],))


def _where(scene):
    yield _choice("Where was it recorded?", place_words(scene), PLACES)


def _is_where(scene):
    for place in ("indoors", "outdoors"):
        yield _yes_no(f"Was it recorded {place}?", scene.place == place)
    for room in ("small", "large"):
        yield _yes_no(f"Was it recorded in a {room} room?", scene.room == room)


def _quality(scene):
    yield _choice("How is the recording quality?", scene.condition, CONDITIONS)


def _is_quality(scene):
    yield from (
        _yes_no(f"Is the recording {condition}?", scene.condition == condition)
        for condition in CONDITIONS
    )


def _first_or_last(scene):
    if len(scene.events) > 1:
        yield _of_the_scene("Which sound comes first?", scene.events[0], scene)
        yield _of_the_scene("Which sound comes last?", scene.events[-1], scene)


def _after(scene):
    if len(scene.events) > 2:
        for earlier, later in zip(scene.events, scene.events[1:]):
            yield _of_the_scene(
                f"Which sound comes right after the {earlier.name}?", later, scene, earlier
            )


def _before(scene):
    for a, b in _pairs(scene.events):
        yield _ordered(
            f"Can the {a.name} be heard before the {b.name}?", "before", a, b, a.onset < b.onset
        )


def _how_many(scene):
    yield _choice("How many sounds can be heard?", NUMBERS[len(scene.events) - 1], NUMBERS)


def _more_than(scene):
    for number in (1, 2, 3):
        sounds = f"{NUMBERS[number - 1]} sound{'s' if number > 1 else ''}"
        yield _yes_no(f"Are there more than {sounds}?", len(scene.events) > number)


def _which_has(one, two):
    for name in CLASSES:
        has = name in labels(one), name in labels(two)
        right = AUDIOS[
            {(True, False): 0, (False, True): 1, (True, True): 2, (False, False): 3}[has]
        ]
        yield _choice(f"Which audio has the {name}?", right, AUDIOS)


def _which_has_more(one, two):
    more = len(one.events) - len(two.events)
    right = "audio 1" if more > 0 else "audio 2" if more else "neither"
    yield _choice("Which audio has more sounds?", right, ("audio 1", "audio 2", "neither"))


def _louder_audio(one, two):
    if one.level_word != two.level_word:
        for which, truth in (
            ("louder", one.level_word == "loud"),
            ("quieter", one.level_word == "quiet"),
        ):
            yield _yes_no(f"Is audio 1 {which} than audio 2?", truth)


def _same_event(one, two):
    for a in one.events:
        for b in (event for event in two.events if event.name == a.name):
            if a.pitch_word != b.pitch_word:
                yield _yes_no(
                    f"Is the {a.name} higher in audio 1 than in audio 2?", a.pitch_word == "high"
                )
            if a.tempo_word != b.tempo_word:
                yield _yes_no(
                    f"Is the {a.name} faster in audio 1 than in audio 2?", a.tempo_word == "fast"
                )
            if {a.distance, b.distance} == {"near", "far"}:
                yield _yes_no(
                    f"Is the {a.name} nearer in audio 1 than in audio 2?", a.distance == "near"
                )


def _same_place(one, two):
    for place in ("indoors", "outdoors"):
        yield _yes_no(f"Were both audios recorded {place}?", one.place == two.place == place)


def _entailment(scene):
    at = {event.name: event.distance for event in scene.events}
    for name in CLASSES:
        for distance, words in ("near", "near"), ("far", "far away"):
            index = (
                3 if name not in at else 2 if at[name] == "middle" else int(at[name] != distance)
            )
            yield _choice(f"The sound of the {name} is {words}.", ENTAILMENT[index], ENTAILMENT)


# Open questions: (question, answer).


def _caption(scene, random):
    return "caption first audio", f"The audio 1 is {caption(scene)}"


def _detail(scene, random):
    event = scene.events[random.integers(len(scene.events))]
    place = "outdoors" if scene.place == "outdoors" else f"in a {scene.room} room"
    return (
        (
            "What is happening in the clip?",
            f"There is {', then '.join(map(event_words, scene.events))}.",
        ),
        (f"Describe the {event.name}.", f"It is {event_words(event)}."),
        (
            "What can you infer about the environment?",
            f"The recording was made {place}, and is {scene.condition}.",
        ),
    )[random.integers(3)]


def _difference(one, two, random):
    kind = int(random.integers(3))
    first, second = (
        (names_of(s), ", then ".join(map(event_words, s.events)), caption(s))[kind]
        for s in (one, two)
    )
    return (
        ("explain the difference in few words", f"Audio 1 is {first}, while Audio 2 is {second}."),
        (
            "explain the difference in a sentence",
            f"Audio 1 features {first}, whereas Audio 2 features {second}.",
        ),
        (
            "explain the difference in detail",
            f"Audio 1 has {first} In contrast, Audio 2 has {second}",
        ),
    )[kind]


@dataclass(frozen=True)
class Template:
    question_type: str
    category: str
    rows: int  # of each 40
    ask: Callable
    clips: int = 1


TEMPLATES = (
    Template("mcq", "sound event", 6, _present),
    Template("yes_no", "sound event", 4, _is_present),
    Template("mcq", "acoustic property", 2, _how),
    Template("mcq", "acoustic property", 1, _loudest),
    Template("yes_no", "acoustic property", 2, _property),
    Template("yes_no", "acoustic property", 1, _louder),
    Template("mcq", "environment", 2, _where),
    Template("yes_no", "environment", 1, _is_where),
    Template("mcq", "recording quality", 2, _quality),
    Template("yes_no", "recording quality", 1, _is_quality),
    Template("mcq", "time order", 1, _first_or_last),
    Template("mcq", "time order", 1, _after),
    Template("yes_no", "time order", 2, _before),
    Template("mcq", "count", 2, _how_many),
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
