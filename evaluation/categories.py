"""What a question is about, by its wording: minimal rules, the first that fits counts."""

import re
from collections.abc import Mapping

CATEGORIES = (
    "sound event", "acoustic property", "environment", "recording quality", "time order", "count", "comparison", "mood",
    "other",
)  # fmt: skip
_RULES = (
    ("other", r"^caption\b"),
    ("comparison", r"\baudios? ?\(?[12]\b|\b(both|two) audios\b|\bcompared?\b|\bdifferen(t|ce)\b"),
    ("count", r"\bhow many\b|\bnumber of\b|\bmore than (one|two|three|four) \w+"),
    ("time order", r"\b(before|after|first|last|followed by|order|sequence)\b|\bat the (start|beginning|end)\b"),
    ("recording quality", r"\b(recording|audio|sound) quality\b|\bquality of the (recording|audio|sound)\b"
                          r"|\brecording (is )?(clean|noisy|clipped|band-limited|distorted|muffled)\b"),
    ("mood", r"\b(mood|emotions?|emotional|feelings?|atmosphere|evokes?d?)\b"),
    ("environment", r"\b(environment|indoors?|outdoors?|location|setting|surroundings|rooms?|recorded|recording was made)\b"
                    r"|^where\b"),
    ("acoustic property", r"\b(acoustic|loud|louder|loudest|loudness|quiet|volume|pitch|frequency|tempo|rhythm|texture|timbre"
                          r"|tone|duration|intensity)\b|^how does the .* sound\b|\bis (near|far away)\b"),
    ("sound event", r"\bhypothesis\b|\bheard?\b|\bsound events?\b|\bhappening\b|\b(sound )?source\b|\bsimilar\b"
                    r"|^(which|what) (\w+ ){0,3}sounds?\b|\bwhat is making\b|\busing yes or no\b"),
)  # fmt: skip


def category(row: Mapping[str, str]) -> str:
    """One of `CATEGORIES`, by the wording of a row's `input`, whose options do not count."""
    if row.get("filepath2"):
        return "comparison"
    text = re.split(r"\s\(?[aA]\)\s", row["input"].strip(), maxsplit=1)[0].lower()
    return next((name for name, pattern in _RULES if re.search(pattern, text)), "other")
