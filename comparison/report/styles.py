"""The look that all pictures of a comparison share: colours, marks of arms, templates."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined


class Colour(NamedTuple):
    """A colour on a light page and on a dark one."""

    light: str
    dark: str


class Marker(NamedTuple):
    """The mark of an arm and the dashes of its lines.

    Attributes:
        name: Name of the matplotlib marker.
        path: The same mark as an SVG path around the origin.
        dashes: Lengths of dash and gap in px, empty for a solid line.
    """

    name: str
    path: str
    dashes: tuple[int, ...]


# CSS variables. The hues are Okabe and Ito's, which colour-blind readers can tell apart.
COLOURS = {
    "page": Colour("#fbfbf9", "#131518"),
    "card": Colour("#ffffff", "#1b1e22"),
    "ink": Colour("#1c1e21", "#eceded"),
    "muted": Colour("#5c6167", "#a3a9b0"),
    "rule": Colour("#dedfda", "#33383e"),
    "grid": Colour("#e8e8e3", "#2a2e33"),
    "good": Colour("#00694c", "#4fd3ac"),
    "bad": Colour("#a84300", "#ff9a5c"),
    "hue0": Colour("#0072b2", "#56b4e9"),
    "hue1": Colour("#d55e00", "#f0803c"),
    "hue2": Colour("#009e73", "#1fc796"),
    "hue3": Colour("#b8568f", "#cc79a7"),
    "hue4": Colour("#b07d00", "#f0e442"),
    "text-only": Colour("#6b7076", "#a9afb6"),
}
NUM_HUES = 5
CIRCLE = "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z"
MARKERS = (
    Marker("o", CIRCLE, ()),
    Marker("s", "M-4.6-4.6h9.2v9.2h-9.2z", (7, 3)),
    Marker("D", "M0-6.4 6.4 0 0 6.4-6.4 0z", (2, 3)),
    Marker("^", "M0-6 6 4.8H-6z", (9, 3, 2, 3)),
    Marker("v", "M0 6-6-4.8H6z", (12, 4)),
)
TEXT_ONLY_MARKER = Marker("o", CIRCLE, (4, 4))


@dataclass(frozen=True)
class ArmStyle:
    """How an arm looks in every picture.

    Attributes:
        css_class: Class of its marks and lines.
        colour: Its colour, a name in `COLOURS`.
        marker: Its mark. That of a text-only model is hollow.
    """

    css_class: str
    colour: str
    marker: Marker

    @property
    def is_text_only(self) -> bool:
        """Whether the arm is a model without audio."""
        return self.css_class == "text-only"


def style_arms(comparison: Mapping) -> dict[str, ArmStyle]:
    """Returns the style of each arm. The first 25 arms with audio differ in colour or mark."""
    styles: dict[str, ArmStyle] = {}
    number = 0
    for arm, results in comparison["arms"].items():
        if results["no_audio"]:
            styles[arm] = ArmStyle("text-only", "text-only", TEXT_ONLY_MARKER)
            continue
        marker = MARKERS[(number + number // NUM_HUES) % len(MARKERS)]
        styles[arm] = ArmStyle(f"arm{number}", f"hue{number % NUM_HUES}", marker)
        number += 1
    return styles


def template_environment() -> Environment:
    """Returns the environment that reads `templates/`. It escapes every value."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def encodable(text: str) -> str:
    """Returns a text that UTF-8 can encode. JSON may hold half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")
