"""States what can be concluded from a comparison, by the rules of docs/protocol.md."""

from collections.abc import Mapping

from ..evaluation.answering import PROTOCOL_NAMES
from .differences import ALPHA

MIN_SEEDS = 3  # Fewer seeds make a comparison exploratory.
CAVEATS = (
    "Nothing follows for codecs and classifiers as such.",
    "HTSAT of MS-CLAP 2023 was trained on 22 audio tasks and then on 4.6 M captions, and may have "
    "seen test clips.",
    "Mimi was trained on speech, covers up to 12 kHz (HTSAT up to 19 kHz) and quantises.",
)


def conclusion(comparison: Mapping) -> str:
    """Returns what can and what cannot be concluded from a comparison, a sentence per finding."""
    statistics = comparison["statistics"]
    sentences = [
        f"{statistics['rows']:,} closed examples about {statistics['clips']:,} clips were scored "
        f"by {PROTOCOL_NAMES[comparison['protocol']]}.",
    ]
    pairs = statistics.get("primary", [])
    if pairs:
        sentences.append(
            "Differences are in points of macro accuracy. In brackets are the 95 % confidence "
            "interval and the Holm-corrected p value."
        )
    sentences += [_describe_difference(pair) for pair in pairs]
    for arm, results in comparison["arms"].items():
        gain = None if results["no_audio"] else results["audio_gain"].get("macro")
        if gain and gain["ci95_low"] <= 0:
            baseline = gain["best_control"]
            sentences.append(f"{arm} is not shown to use the audio: {baseline} does as well.")
    seeds = len(comparison["seeds"])
    if seeds < MIN_SEEDS:
        counted = "one seed" if seeds == 1 else f"{seeds} seeds"
        sentences.append(
            f"With {counted}, fewer than the protocol's {MIN_SEEDS}, this is exploratory and says "
            "nothing about another training."
        )
    return " ".join([*sentences, *CAVEATS])


def _describe_difference(pair: Mapping) -> str:
    worse, better = pair["a"], pair["b"]
    low, high = 100 * pair["ci95_low"], 100 * pair["ci95_high"]
    is_shown = pair["p_holm"] < ALPHA
    if is_shown and pair["difference"] <= 0:
        worse, better = better, worse
        low, high = -high, -low
    evidence = f"({low:+.1f} to {high:+.1f}, p {pair['p_holm']:.3g})"
    if not is_shown:
        detectable = 100 * pair["minimum_detectable_difference"]
        return (
            f"No difference was shown between {worse} and {better} {evidence}. The minimum "
            f"detectable effect was {detectable:.1f} points (80 % power)."
        )
    size = f"{100 * abs(pair['difference']):.1f} points"
    if len({value > 0 for value in pair["by_seed"]}) == 1:
        return f"{better} is more accurate than {worse} by {size} {evidence}, in every seed."
    return (
        f"{better} leads {worse} by {size} {evidence}, but not in every seed, so no difference was "
        "shown."
    )
