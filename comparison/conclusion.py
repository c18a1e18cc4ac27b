"""States what can be concluded from a comparison, by the rules of docs/protocol.md."""

from collections.abc import Iterable, Mapping, Sequence
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
REASONAQA_FOLDERS = ("AudioCapsLarger", "ClothoV21", "ClothoAQA")  # of the clips, in its rows
REASONAQA_CAVEAT = (
    "A language model wrote ReasonAQA's questions from captions. Answer b is correct too often, "
    "and some labels of CLE are wrong."
)


def conclusion(comparison: Mapping) -> str:
    """Returns what can be concluded: differences, use of the audio, and what limits both.

    Each of the four parts is one sentence.
    """
    seeds = len(comparison["seeds"])
    limit = f"With {seeds} seeds of the protocol's {MIN_SEEDS}, this is exploratory."
    if seeds == 1:
        limit = (
            "With one seed, no claim about another training is possible, and this is exploratory."
        )
    sentences = [
        _state_differences(comparison["statistics"].get("primary", [])),
        _state_audio_use(comparison),
        _state_missing_controls(comparison),
        limit if seeds < MIN_SEEDS else None,
    ]
    return " ".join(filter(None, sentences))


def caveats(
    comparison: Mapping,
    options_by_arm: Mapping[str, Mapping] | None = None,
    rows: Iterable[Mapping] = (),
) -> list[str]:
    """Returns what limits the conclusion, from the encoders that ran and the test examples.

    Args:
        comparison: Content of `comparison.json`.
        options_by_arm: Options of each arm, if a config trained them. Without
            `encoder_name_or_path`, an arm has the published weights.
        rows: Test examples.
    """
    notes = [GENERAL_CAVEAT, *_encoder_caveats((options_by_arm or {}).values())]
    if any(row["filepath1"].startswith(REASONAQA_FOLDERS) for row in rows):
        notes.append(REASONAQA_CAVEAT)
    arms = comparison["arms"]
    cells = [arm.get("training_clips", {}).get("clip in training") for arm in arms.values()]
    if any(cells):
        count = max(cell["n"] for cell in filter(None, cells))
        notes.append(f"The clips of {count:,} test examples occur in training.")
    sensitive_arms = [arm for arm, results in arms.items() if results.get("length_warnings")]
    if sensitive_arms:
        notes.append(
            f"Scores depend on the length of the options for {', '.join(sensitive_arms)}: the "
            "length-normalised score differs by more than 10 points."
        )
    corpus = comparison.get("corpus")
    if corpus:
        is_recorded = bool(corpus.get("recordings"))
        notes.append(
            "The scenes are composed of recordings." if is_recorded else "The sounds are synthetic."
        )
    return notes


def _encoder_caveats(arms: Iterable[Mapping]) -> list[str]:
    published = set()
    custom = set()
    for options in arms:
        if options.get("encoder_name_or_path"):
            custom.add(str(options["encoder_name_or_path"]))
        elif not options.get("no_audio"):
            published.add(str(options["encoder_type"]))
    notes = [
        caveat
        for family, caveat in PUBLISHED_CAVEATS.items()
        if any(family in encoder_type for encoder_type in published)
    ]
    if custom:
        notes.append(f"The weights of the encoders are those of {', '.join(sorted(custom))}.")
    return notes


def _state_differences(pairs: Sequence[Mapping]) -> str | None:
    if not pairs:
        return None
    significant = [pair for pair in pairs if pair["p_holm"] < ALPHA]
    if not significant:
        names = _join(dict.fromkeys(chain.from_iterable((pair["a"], pair["b"]) for pair in pairs)))
        detectable = 100 * max(pair["minimum_detectable_difference"] for pair in pairs)
        return (
            f"No difference in macro accuracy was shown between {names} (minimum detectable effect "
            f"{detectable:.1f} points)."
        )
    # The better arm of each pair, and the worse one.
    ranked = [(p["b"], p["a"]) if p["difference"] > 0 else (p["a"], p["b"]) for p in significant]
    if len(significant) > 1:
        better = ", ".join(f"{first} > {second}" for first, second in ranked)
        counts = f"{len(significant)} of {len(pairs)}"
        return f"{counts} differences in macro accuracy were shown: {better}."
    pair, (better, worse) = significant[0], ranked[0]
    ends = sorted(100 * abs(pair[name]) for name in ("holm_low", "holm_high"))
    p = f"p {pair['p_holm']:.4f}" if pair["p_holm"] >= 1e-4 else "p < 0.0001"
    return (
        f"{better} is more accurate than {worse} by {100 * abs(pair['difference']):.1f} points "
        f"({ends[0]:.1f} to {ends[1]:.1f}, {p}, both corrected by Holm)."
    )


def _state_audio_use(comparison: Mapping) -> str | None:
    if not has_text_only_baseline(comparison):
        return "No text-only model was compared, so nothing is claimed about the use of the audio."
    unproven = []
    others = []
    for arm, results in comparison["arms"].items():
        gain = results["audio_gain"].get("macro")
        if not results["no_audio"]:
            (others if gain and gain["ci95_low"] > 0 else unproven).append(arm)
    if not unproven:
        return "Each model uses the audio: it beats its strongest no-audio baseline."
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
    # Another sentence is about the text-only model.
    controls = [control for control in CONTROLS if control != TEXT_ONLY_CONTROL]
    missing = [
        name for name in controls if any(name not in arm.get("controls", {}) for arm in arms)
    ]
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
