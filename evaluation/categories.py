"""Categories of questions, by their wording. Of the rules below the first that matches counts."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

pc: Any = pyarrow.compute  # its functions are made at import, so a type checker sees none

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
    r"(airport|bathroom|beach|building|car|cave|church|city|classroom|countryside|crowd|factory"
    r"|farm|field|forest|garage|garden|hall|home|house|jungle|kitchen|market|office|park"
    r"|playground|restaurant|river|room|school|shop|space|stadium|station|store|street|studio"
    r"|theat(er|re)|town|train|tunnel|village|warehouse|woods|workshop|yard|zoo)"
)
_COMPARATIVE = (
    r"(louder|quieter|softer|higher|lower|faster|slower|longer|shorter|closer|nearer|farther"
    r"|further|deeper|brighter)"
)
_RULES = (
    ("acoustic property", r"\bis (near|far away|the loudest)\b|\blouder than\b"),
    ("sound event", r"\bthe hypothesis\b"),
    ("mood", r"\bemotion(s|al)?\b"),
    (
        "other",
        r"^caption\b|^why\b|\b(purposes?|significance|cause[ds]?|causing|meaning|mean|implication"
        r"|imply|implies|role|function|reason|importance|intended|interpret\w*|symboli[sz]\w*"
        r"|message|conclu\w+|story|be used for|useful|indicates?)\b|\beffects?\b|\baffects?\b"
        r"|\bimpacts?\b|\binfluences?\b|\brelationship\b|\bcontributes?\b|\bhappen next\b",
    ),
    (
        "comparison",
        r"\baudios? ?\(?[12]\b|\b(first|second|other|both|two|these) (audios?|clips?"
        r"|recordings?)\b|\bcompar\w+|\bdiffer(s|ed|ences?)?\b|\bdifferent from\b"
        r"|\bdistinguish\w* .* from\b|\bof the two\b|\bversus\b|\brelative (to|volume|loudness"
        r"|pitch)\b|\b\w+er\b.*\bthan\b|\b(more|less)\b.*\bthan (the|that|those)\b"
        rf"|\b{_COMPARATIVE}\b.*\bor (the|a)\b|\bwhich\b.*\b{_COMPARATIVE}\b|\bin contrast\b"
        r"|\bhave in common\b|\balike\b",
    ),
    (
        "acoustic property",
        r"\bhow (long|many (seconds|minutes))\b|\bdurations?\b",
    ),
    (
        "count",
        r"\bhow (many|often|much times)\b|\bnumber of\b|\bcount\b|\b(more|fewer|less) than (one"
        r"|two|three|four|five|\d+)\b|\b(once|twice|thrice)\b|\b(one|two|three|four|several"
        r"|multiple|\d+) times\b|\b(only|just|exactly) (one|a single|two)\b|\bjust a single\b"
        r"|\b(one|single|several|multiple|many) or (one|single|several|multiple|many|more)\b",
    ),
    (
        "time order",
        r"\b(before|after|afterwards|prior to|followed by|(?<!of the )following|follows?"
        r"|preced\w+|sequence|chronolog\w+|order|last)\b|\b(sounds?|thing|event|noise|happens?"
        r"|heard|comes?|occurs?|starts?|begins?|appears?) (is |that )?first\b|\bfirst (sound"
        r"|thing|event|noise|to)\b|\bover time\b|\bevol\w+|\bprogress\w*\b|\bdevelop\w*\b"
        r"|\bat (the|its|what) (very )?(start|beginning|end|middle|point)\b|\btowards? the end\b"
        r"|\b(start|begin|end|finish)(s|ning|ing)? with\b|\bsimultaneous\w*\b"
        r"|\bat the same time\b|\btemporal\b|\bthroughout\b|\bhow does .* changes?\b",
    ),
    (
        "recording quality",
        r"\bmicrophones?\b|\bsignal.to.noise\b|\bfidelity\b|\bdistort\w*\b|\bclipp(ed|ing)\b"
        r"|\bmono\b|\bstereo\b|\bdropouts?\b|\bcuts? out\b|\boverdriven\b|\bartifacts?\b"
        r"|\bartefacts?\b|\bcompression\b|\bbit.?rate\b|\b(recording|audio|sound|production|low"
        r"|poor|high) quality\b|\bquality of (the|this) (recording|audio|clip)\b"
        r"|\bquality of the sound(\?|$| (in|on) )|\bwell (is|was) .*(recorded|produced)\b"
        r"|\bprofessional\w*\b|\brecording (is )?(clean|noisy|clipped|band-limited|distorted"
        r"|muffled)\b|\b(clean|clear|noisy|muffled)\b.*\b(recording|audio)\b|\brecorded (well"
        r"|clearly|badly|poorly)\b|\bstatic\b",
    ),
    (
        "mood",
        r"\b(moods?|emotion\w*|feel|feels|feelings?|atmospher\w*|ambiance|ambience|evok\w+|vibe"
        r"|sentiment|relax\w*|stressful|pleasant\w*|unpleasant|soothing|calming|peaceful|eerie"
        r"|scary|frighten\w*|tense|tension|cheerful|happy|happi\w+|sad|angry|anger|excited"
        r"|excit\w+|upset|joyful|annoy\w*|anxi\w+|nostalgi\w*|mental state)\b",
    ),
    (
        "environment",
        r"\b(environment|indoors?|outdoors?|outside|inside|location|located|setting"
        r"|surroundings?|scenery|scene|place|weather|season|urban|rural|time of (the )?day"
        r"|daytime|night.?time|recorded|recording was made)\b|^where\b|\b(size|kind|type"
        r"|sort) of (the )?(room|space|building|place|area)\b|\bhow (large|big|small) is the\b"
        r"|^(is|are|was|were|does|do|could|might) .*\b(in|at|on|near|by|through) (a|an"
        rf"|the) (\w+ )?{_PLACES}\b|\b(city|town|village|farm)\?",
    ),
    (
        "sound event",
        r"\b(source|sources|object)\b|^(can|could|do|did) (you|we|anyone) hear\b|^(is"
        r"|are) there\b|\bnot heard\b",
    ),
    (
        "acoustic property",
        r"\b(psycho)?acoustic\w*\b|\b(loud|loudness|loudly|quiet|quietly|soft|softly|volume"
        r"|decibels?|db|level)\b|\b(pitch\w*|high.pitched|low.pitched|frequenc\w+|spectr\w+"
        r"|bandwidth|bass|treble|harmonic\w*|tonal\w*|hz)\b|\b(tempo|rhythm\w*|cadence|pace|beat"
        r"|periodic\w*|regular\w*|irregular\w*|evenly|steady|rate|speed)\b|\b(continuous|constant"
        r"|intermittent|sporadic|sudden|gradual|abrupt)\w*\b|\b(texture|timbre|tone|roughness"
        r"|sharpness|sharp|rough|bright|brightness|harsh|smooth|warm|quality)\b|\b(intensity"
        r"|strength|strong|dynamic\w*|envelope|attack|decay|onset|sustain|fade\w*|modulat\w+"
        r"|vibrato)\b|\b(reverb\w*|echo\w*|resonan\w+|spatial\w*|distance|distant|nearby|far|near"
        r"|close|panning)\b|\b(fast|slow|slowly|quickly|heavy|heavily|light|lightly)\b.*(\bor\b"
        r"|\?)|\bhow (fast|slow|heavy|hard)\b|\badjectives?\b|\bhow (does|do|would|is"
        r"|can) .*\b(sound|described?|characteri[sz]ed?)\b|\bcharacteristics?\b",
    ),
    (
        "sound event",
        r"^(what|which|who|whose|is|are|was|were|does|do|did|can|could|has|have|name|identify"
        r"|how is|in)\b|\b(what|which)\b|\busing yes or no\b",
    ),
)
_COMPILED = [(name, re.compile(pattern)) for name, pattern in _RULES]
_OPTIONS = r"\s\(?[aA]\)\s"


def _stem_category(stem: str) -> str:
    return next((name for name, pattern in _COMPILED if pattern.search(stem)), "other")


def category(row: Mapping[str, str]) -> str:
    """Returns one of `CATEGORIES` for a row. The options in its `input` do not count."""
    if row.get("filepath2"):
        return "comparison"
    stem = re.split(_OPTIONS, row["input"].strip(), maxsplit=1)[0]
    return _stem_category(stem.lower())


def categories(inputs: pa.ChunkedArray, second_clips: pa.ChunkedArray) -> np.ndarray:
    """Returns the [`category`] of many rows. Each distinct wording is matched once.

    Args:
        inputs: The column `input`.
        second_clips: The column `filepath2`.
    """
    stems = pc.utf8_trim_whitespace(inputs)
    stems = pc.utf8_lower(pc.replace_substring_regex(stems, f"(?s){_OPTIONS}.*", ""))
    stems = stems.combine_chunks().dictionary_encode()
    names = np.array([_stem_category(stem) for stem in stems.dictionary.to_pylist()], dtype=object)
    by_row = names[stems.indices.to_numpy()]
    by_row[pc.not_equal(second_clips, "").to_numpy()] = "comparison"
    return by_row
