"""States what can be concluded from a comparison, by the rules of docs/protocol.md."""

from collections.abc import Iterable, Mapping
from itertools import chain

from ..evaluation.audio_gain import NO_AUDIO_CONTROLS, TEXT_ONLY_CONTROL
from ..evaluation.controls import CONTROLS
from ..evaluation.estimates import ALPHA

MIN_SEEDS = 3  # Fewer seeds make a comparison exploratory.
GENERAL_CAVEAT = (
    "The encoders differ in training data, objective and bandwidth at once. Nothing follows for "
    "codecs and classifiers as such."
)
# What a reader must know about the published weights of an encoder.
PUBLISHED_CAVEATS = {
    "htsat": "HTSAT of MS-CLAP 2023 was trained on 22 audio tasks and then on 4.6 M captions, and "
    "may have seen test clips. It covers up to 19 kHz.",
    "mimi": "Mimi was trained on speech, covers up to 12 kHz and quantises.",
}


def conclusion(comparison: Mapping) -> str:
    """Returns what can be concluded: differences, use of the audio, and what limits both.

    Each of the four parts is one sentence.
    """
    sentences = [
        _state_differences(comparison),
        _state_audio_use(comparison),
        _state_missing_controls(comparison),
        _state_seeds(len(comparison["seeds"])),
    ]
    return " ".join(filter(None, sentences))


def _state_seeds(seeds: int) -> str | None:
    if seeds == 1:
        return (
            "With one seed, no claim about another training is possible, and this is exploratory."
        )
    if seeds < MIN_SEEDS:
        return f"With {seeds} seeds of the protocol's {MIN_SEEDS}, this is exploratory."
    return None


def caveats(comparison: Mapping, options_by_arm: Mapping[str, Mapping] | None = None) -> list[str]:
    """Returns what limits the conclusion, from the encoders that ran.

    Args:
        comparison: Content of `comparison.json`.
        options_by_arm: Options of each arm, if a config trained them. Without
            `encoder_name_or_path`, an arm has the published weights.
    """
    published = [
        str(options["encoder_type"])
        for options in (options_by_arm or {}).values()
        if not options.get("encoder_name_or_path") and not options.get("no_audio")
    ]
    notes = [GENERAL_CAVEAT]
    for family, caveat in PUBLISHED_CAVEATS.items():
        if any(family in encoder_type for encoder_type in published):
            notes.append(caveat)
    names = [options.get("encoder_name_or_path") for options in (options_by_arm or {}).values()]
    custom = sorted(set(map(str, filter(None, names))))
    if custom:
        notes.append(f"The weights of the encoders are those of {', '.join(custom)}.")
    arms = comparison["arms"].items()
    warned = [arm for arm, results in arms if results.get("length_warnings")]
    leaked = [results.get("training_clips", {}).get("clip in training") for _, results in arms]
    if any(leaked):
        count = max(cell["n"] for cell in filter(None, leaked))
        notes.append(f"The clips of {count:,} test examples occur in training.")
    if warned:
        notes.append(
            f"Scores depend on the length of the options for {', '.join(warned)}: the "
            "length-normalised score differs by more than 10 points."
        )
    corpus = comparison.get("corpus")
    if corpus:
        has_recordings = bool(corpus.get("recordings"))
        notes.append(
            "The scenes are composed of recordings."
            if has_recordings
            else "The sounds are synthetic."
        )
    return notes


def _state_differences(comparison: Mapping) -> str | None:
    pairs = comparison["statistics"].get("primary", [])
    shown = [pair for pair in pairs if _is_shown(pair)]
    if not pairs:
        return None
    if not shown:
        names = _join(dict.fromkeys(chain.from_iterable((pair["a"], pair["b"]) for pair in pairs)))
        detectable = 100 * max(pair["minimum_detectable_difference"] for pair in pairs)
        return (
            f"No difference in macro accuracy was shown between {names} (minimum detectable effect "
            f"{detectable:.1f} points)."
        )
    if len(shown) == 1:
        return _describe(shown[0])
    better = [" > ".join(_ranked(pair)) for pair in shown]
    return (
        f"{len(shown)} of {len(pairs)} differences in macro accuracy were shown: "
        f"{', '.join(better)}."
    )


def _is_shown(pair: Mapping) -> bool:
    return pair["p_holm"] < ALPHA


def _ranked(pair: Mapping) -> tuple[str, str]:
    """Returns the better and the worse arm."""
    return (pair["b"], pair["a"]) if pair["difference"] > 0 else (pair["a"], pair["b"])


def _describe(pair: Mapping) -> str:
    better, worse = _ranked(pair)
    ends = sorted(100 * abs(pair[name]) for name in ("holm_low", "holm_high"))
    p = f"p {pair['p_holm']:.4f}" if pair["p_holm"] >= 1e-4 else "p < 0.0001"
    return (
        f"{better} is more accurate than {worse} by {100 * abs(pair['difference']):.1f} points "
        f"({ends[0]:.1f} to {ends[1]:.1f}, {p}, both corrected by Holm)."
    )


def _state_audio_use(comparison: Mapping) -> str | None:
    arms = {arm: results for arm, results in comparison["arms"].items() if not results["no_audio"]}
    gains = {arm: results["audio_gain"].get("macro") for arm, results in arms.items()}
    if not has_text_only_baseline(comparison):
        return "No text-only model was compared, so nothing is claimed about the use of the audio."
    unproven = [arm for arm, gain in gains.items() if not gain or gain["ci95_low"] <= 0]
    if not unproven:
        return "Each model uses the audio: it beats its strongest no-audio baseline."
    others = [arm for arm in arms if arm not in unproven]
    verb = "is" if len(unproven) == 1 else "are"
    sentence = f"{_join(unproven)} {verb} not shown to use the audio"
    if others:
        sentence += f", unlike {_join(others)}"
    categories = set(chain.from_iterable(audio_categories(comparison, arm) for arm in unproven))
    if categories:
        sentence += f" (exploratory: yet they gain from it on {_join(sorted(categories))})"
    return sentence + "."


def _state_missing_controls(comparison: Mapping) -> str | None:
    arms = [results for results in comparison["arms"].values() if not results["no_audio"]]
    missing = []
    for control in CONTROLS:
        is_complete = all(control in results.get("controls", {}) for results in arms)
        # Another sentence is about the text-only model.
        if not is_complete and control != TEXT_ONLY_CONTROL:
            missing.append(control)
    return f"Not checked: {', '.join(missing)}." if missing else None


def has_text_only_baseline(comparison: Mapping) -> bool:
    """Whether a model that was trained without audio was evaluated on the same examples."""
    arms = comparison["arms"].values()
    has_arm = any(results["no_audio"] for results in arms)
    return has_arm or any(TEXT_ONLY_CONTROL in results.get("controls", {}) for results in arms)


def audio_categories(comparison: Mapping, arm: str) -> list[str]:
    """Returns the categories in which an arm's interval is above all of its baselines.

    They are exploratory: among many categories some differ by chance.
    """
    results = comparison["arms"][arm]
    controls = results.get("controls", {})
    baselines = [controls[name]["category"] for name in NO_AUDIO_CONTROLS if name in controls]
    baselines += [
        other.get("category", {}) for other in comparison["arms"].values() if other["no_audio"]
    ]
    categories = []
    for name, cell in results.get("category", {}).items():
        accuracies = [cells[name]["accuracy"] for cells in baselines if name in cells]
        if accuracies and cell["ci95_low"] > max(accuracies):
            categories.append(name)
    return categories


def _join(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
