"""What a question is about, by its wording: rules in their order, the first that fits counts."""

import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CATEGORIES = (
    "sound event",
    "acoustic property",
    "environment",
    "recording quality",
    "time order",
    "count",
    "comparison",
    "mood",
    "other",
)
_PLACES = (
    r"(airport|bathroom|beach|building|car|cave|church|city|classroom|countryside|crowd|factory|farm|field|forest"
    r"|garage|garden|hall|home|house|jungle|kitchen|market|office|park|playground|restaurant|river|room|school|shop"
    r"|space|stadium|station|store|street|studio|theat(er|re)|town|train|tunnel|village|warehouse|woods|workshop"
    r"|yard|zoo)"
)
_COMPARATIVE = r"(louder|quieter|softer|higher|lower|faster|slower|longer|shorter|closer|nearer|farther|further|deeper|brighter)"
_RULES = (
    ("acoustic property", (r"\bis (near|far away|the loudest)\b|\blouder than\b")),
    ("sound event", (r"\bthe hypothesis\b")),
    ("mood", (r"\bemotion(s|al)?\b")),
    (
        "other",
        (
            r"^caption\b|^why\b|\b(purposes?|significance|cause[ds]?|causing|meaning|mean|implication|imply|implies"
            r"|role|function|reason|importance|intended|interpret\w*|symboli[sz]\w*|message|conclu\w+|story"
            r"|be used for|useful|indicates?)\b|\beffects?\b|\baffects?\b|\bimpacts?\b|\binfluences?\b"
            r"|\brelationship\b|\bcontributes?\b|\bhappen next\b"
        ),
    ),
    (
        "comparison",
        (
            r"\baudios? ?\(?[12]\b|\b(first|second|other|both|two|these) (audios?|clips?|recordings?)\b|\bcompar\w+"
            r"|\bdiffer(s|ed|ences?)?\b|\bdifferent from\b|\bdistinguish\w* .* from\b|\bof the two\b|\bversus\b"
            r"|\brelative (to|volume|loudness|pitch)\b|\b\w+er\b.*\bthan\b|\b(more|less)\b.*\bthan (the|that|those)\b"
            r"|\b"
            + _COMPARATIVE
            + r"\b.*\bor (the|a)\b|\bwhich\b.*\b"
            + _COMPARATIVE
            + r"\b|\bin contrast\b|\bhave in common\b"
            r"|\balike\b"
        ),
    ),
    ("acoustic property", (r"\bhow (long|many (seconds|minutes))\b|\bdurations?\b")),
    (
        "count",
        (
            r"\bhow (many|often|much times)\b|\bnumber of\b|\bcount\b|\b(more|fewer|less) than (one|two|three|four"
            r"|five|\d+)\b|\b(once|twice|thrice)\b|\b(one|two|three|four|several|multiple|\d+) times\b|\b(only|just"
            r"|exactly) (one|a single|two)\b|\bjust a single\b|\b(one|single|several|multiple|many) or (one|single"
            r"|several|multiple|many|more)\b"
        ),
    ),
    (
        "time order",
        (
            r"\b(before|after|afterwards|prior to|followed by|(?<!of the )following|follows?|preced\w+|sequence"
            r"|chronolog\w+|order|last)\b|\b(sounds?|thing|event|noise|happens?|heard|comes?|occurs?|starts?|begins?"
            r"|appears?) (is |that )?first\b|\bfirst (sound|thing|event|noise|to)\b|\bover time\b|\bevol\w+"
            r"|\bprogress\w*\b|\bdevelop\w*\b|\bat (the|its|what) (very )?(start|beginning|end|middle|point)\b"
            r"|\btowards? the end\b|\b(start|begin|end|finish)(s|ning|ing)? with\b|\bsimultaneous\w*\b"
            r"|\bat the same time\b|\btemporal\b|\bthroughout\b|\bhow does .* changes?\b"
        ),
    ),
    (
        "recording quality",
        (
            r"\bmicrophones?\b|\bsignal.to.noise\b|\bfidelity\b|\bdistort\w*\b|\bclipp(ed|ing)\b|\bmono\b|\bstereo\b"
            r"|\bdropouts?\b|\bcuts? out\b|\boverdriven\b|\bartifacts?\b|\bartefacts?\b|\bcompression\b|\bbit.?rate\b"
            r"|\b(recording|audio|sound|production|low|poor|high) quality\b|\bquality of (the|this) (recording|audio"
            r"|clip)\b|\bquality of the sound(\?|$| (in|on) )|\bwell (is|was) .*(recorded|produced)\b"
            r"|\bprofessional\w*\b|\brecording (is )?(clean|noisy|clipped|band-limited|distorted|muffled)\b|\b(clean"
            r"|clear|noisy|muffled)\b.*\b(recording|audio)\b|\brecorded (well|clearly|badly|poorly)\b|\bstatic\b"
        ),
    ),
    (
        "mood",
        (
            r"\b(moods?|emotion\w*|feel|feels|feelings?|atmospher\w*|ambiance|ambience|evok\w+|vibe|sentiment"
            r"|relax\w*|stressful|pleasant\w*|unpleasant|soothing|calming|peaceful|eerie|scary|frighten\w*|tense"
            r"|tension|cheerful|happy|happi\w+|sad|angry|anger|excited|excit\w+|upset|joyful|annoy\w*|anxi\w+"
            r"|nostalgi\w*|mental state)\b"
        ),
    ),
    (
        "environment",
        (
            r"\b(environment|indoors?|outdoors?|outside|inside|location|located|setting|surroundings?|scenery|scene"
            r"|place|weather|season|urban|rural|time of (the )?day|daytime|night.?time|recorded|recording was made)\b"
            r"|^where\b|\b(size|kind|type|sort) of (the )?(room|space|building|place|area)\b|\bhow (large|big"
            r"|small) is the\b|^(is|are|was|were|does|do|could|might) .*\b(in|at|on|near|by|through) (a|an"
            r"|the) (\w+ )?" + _PLACES + r"\b|\b(city|town|village|farm)\?"
        ),
    ),
    (
        "sound event",
        (
            r"\b(source|sources|object)\b|^(can|could|do|did) (you|we|anyone) hear\b|^(is|are) there\b|\bnot heard\b"
        ),
    ),
    (
        "acoustic property",
        (
            r"\b(psycho)?acoustic\w*\b|\b(loud|loudness|loudly|quiet|quietly|soft|softly|volume|decibels?|db|level)\b"
            r"|\b(pitch\w*|high.pitched|low.pitched|frequenc\w+|spectr\w+|bandwidth|bass|treble|harmonic\w*|tonal\w*"
            r"|hz)\b|\b(tempo|rhythm\w*|cadence|pace|beat|periodic\w*|regular\w*|irregular\w*|evenly|steady|rate"
            r"|speed)\b|\b(continuous|constant|intermittent|sporadic|sudden|gradual|abrupt)\w*\b|\b(texture|timbre"
            r"|tone|roughness|sharpness|sharp|rough|bright|brightness|harsh|smooth|warm|quality)\b|\b(intensity"
            r"|strength|strong|dynamic\w*|envelope|attack|decay|onset|sustain|fade\w*|modulat\w+|vibrato)\b"
            r"|\b(reverb\w*|echo\w*|resonan\w+|spatial\w*|distance|distant|nearby|far|near|close|panning)\b|\b(fast"
            r"|slow|slowly|quickly|heavy|heavily|light|lightly)\b.*(\bor\b|\?)|\bhow (fast|slow|heavy|hard)\b"
            r"|\badjectives?\b|\bhow (does|do|would|is|can) .*\b(sound|described?|characteri[sz]ed?)\b"
            r"|\bcharacteristics?\b"
        ),
    ),
    (
        "sound event",
        (
            r"^(what|which|who|whose|is|are|was|were|does|do|did|can|could|has|have|name|identify|how is|in)\b"
            r"|\b(what|which)\b|\busing yes or no\b"
        ),
    ),
)
_COMPILED = [(name, re.compile(pattern)) for name, pattern in _RULES]
_OPTIONS = r"\s\(?[aA]\)\s"


def _of_stem(stem: str) -> str:
    return next((name for name, pattern in _COMPILED if pattern.search(stem)), "other")


def category(row: Mapping[str, str]) -> str:
    """One of `CATEGORIES`, by the wording of a row's `input`, whose options do not count."""
    if row.get("filepath2"):
        return "comparison"
    return _of_stem(re.split(_OPTIONS, row["input"].strip(), maxsplit=1)[0].lower())


def categories(inputs: pa.ChunkedArray, second_clips: pa.ChunkedArray) -> np.ndarray:
    """[`category`] of many rows at once: their `input` and `filepath2`. Each wording is looked at once."""
    stems = pc.utf8_lower(
        pc.replace_substring_regex(pc.utf8_trim_whitespace(inputs), f"(?s){_OPTIONS}.*", "")
    )
    stems = stems.combine_chunks().dictionary_encode()
    found = np.array([_of_stem(stem) for stem in stems.dictionary.to_pylist()], dtype=object)
    of_rows = found[stems.indices.to_numpy()]
    of_rows[pc.not_equal(second_clips, "").to_numpy()] = "comparison"
    return of_rows
