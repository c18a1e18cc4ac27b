"""The look of all pictures of a comparison: colours, marks of arms, matplotlib figures as SVG.

The SVG follows the page: its CSS colours, its font, text as text.
"""

import io
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import style
from matplotlib.figure import Figure


class Colour(NamedTuple):
    """A colour on a light page and on a dark one."""

    light: str
    dark: str


class Marker(NamedTuple):
    """The mark of an arm and the dashes of its lines."""

    name: str  # of the matplotlib marker
    path: str  # the same mark as an SVG path around the origin
    dashes: tuple[int, ...]  # lengths of dash and gap in px, empty for a solid line


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
TEMPLATES = Path(__file__).parent / "templates"
TOOLTIP = "tooltip: "
MINUS = "\N{MINUS SIGN}"  # as wide as the plus sign
INK_PARAMS = ("axes.titlecolor", "text.color")
MUTED_PARAMS = ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")


class ArmStyle(NamedTuple):
    """How an arm looks in every picture. The mark of a text-only model is hollow."""

    css_class: str
    colour: str  # a name in `COLOURS`
    marker: Marker

    @property
    def is_text_only(self) -> bool:
        """Whether the arm is a model without audio."""
        return self.css_class == "text-only"


class Picture(NamedTuple):
    """An SVG drawing."""

    width: float  # in inches
    height: float
    description: str  # for readers who cannot see it
    body: Markup

    @property
    def view_box(self) -> str:
        """Area of the drawing in its units, which are points."""
        return f"0 0 {self.width * 72:g} {self.height * 72:g}"


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
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def encodable(text: str) -> str:
    """Returns a text that UTF-8 can encode. JSON may hold half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")


def signed_points(share: float) -> str:
    """Formats a difference of accuracies in points, with a sign, such as "+1.2"."""
    return f"{round(100 * share, 1) + 0.0:+.1f}".replace("-", MINUS)


def signed_tick(points: float, _position: int | None = None) -> str:
    """Formats a label of an axis of differences. Usable as a matplotlib formatter."""
    return f"{points:+g}".replace("-", MINUS) if points else "0"


def shared_style() -> AbstractContextManager[None]:
    """Returns a context with the style of all pictures, whatever the user's matplotlibrc says."""
    colours = {
        **dict.fromkeys(INK_PARAMS, COLOURS["ink"].light),
        **dict.fromkeys(MUTED_PARAMS, COLOURS["muted"].light),
        "grid.color": COLOURS["grid"].light,
    }
    return style.context(["default", TEMPLATES / "report.mplstyle", colours])


def marker_options(arm_style: ArmStyle, has_line: bool = False) -> dict[str, Any]:
    """Returns matplotlib's options for the marks of an arm, joined by its line or not."""
    colour = COLOURS[arm_style.colour].light
    line = (0, arm_style.marker.dashes) if arm_style.marker.dashes else "-"
    return {
        "color": colour,
        "marker": arm_style.marker.name,
        "markersize": 6,
        "markerfacecolor": COLOURS["page"].light if arm_style.is_text_only else colour,
        "linestyle": line if has_line else "none",
    }


def export_picture(figure: Figure, description: str) -> Picture:
    """Converts a figure to SVG. The same figure gives the same bytes.

    An artist whose `gid` is `TOOLTIP` and a text shows that text when the mouse is over it.

    Args:
        figure: Figure drawn within `shared_style`.
        description: What it shows. It must differ between the pictures of a page.
    """
    description = encodable(description)
    stream = io.StringIO()
    # Without these keys, matplotlib would write its version, the date and links to its home page.
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # Marks get ids from this text, so that those of two pictures on a page are different.
    with mpl.rc_context({"svg.hashsalt": description}):
        figure.savefig(stream, format="svg", transparent=True, metadata=metadata)
    body = stream.getvalue().partition("</defs>")[2].rpartition("</svg>")[0]
    return Picture(*figure.get_size_inches(), description, Markup(_restyle(body)))


def _restyle(svg: str) -> str:
    """Replaces what matplotlib writes for one file by what suits a page with several pictures."""
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"; font-family: [^;\"]*", "", svg)
    svg = re.sub(rf'<g id="{TOOLTIP}([^"]*)">', r"<g><title>\1</title>", svg)
    # Nothing refers to groups, whose ids are those of the groups of other pictures.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = svg.replace("xlink:href", "href")
    for name, colour in COLOURS.items():
        svg = svg.replace(colour.light, f"var(--{name})")
    return svg
