"""Matplotlib figures as SVG that follows the page: its CSS colours, its font, text as text."""

import io
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib import style
from matplotlib.figure import Figure

from .styles import COLOURS, ArmStyle, encodable

TOOLTIP = "tooltip: "
RC_PARAMS = {
    "axes.axisbelow": True,
    "axes.edgecolor": COLOURS["muted"].light,
    "axes.grid": True,
    "axes.labelcolor": COLOURS["muted"].light,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": COLOURS["ink"].light,
    "errorbar.capsize": 2,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": COLOURS["grid"].light,
    "grid.linewidth": 0.75,
    "lines.scale_dashes": False,
    "path.simplify_threshold": 0.5,
    "svg.fonttype": "none",
    "text.color": COLOURS["ink"].light,
    "text.parse_math": False,
    "xtick.bottom": False,
    "xtick.color": COLOURS["muted"].light,
    "ytick.color": COLOURS["muted"].light,
    "ytick.left": False,
}


@dataclass(frozen=True)
class Picture:
    """An SVG drawing.

    Attributes:
        width: Width in inches.
        height: Height in inches.
        description: What it shows, for readers who cannot see it.
        body: Its elements.
    """

    width: float
    height: float
    description: str
    body: Markup

    @property
    def view_box(self) -> str:
        """Area of the drawing in its units, which are points."""
        return f"0 0 {self.width * 72:g} {self.height * 72:g}"


@contextmanager
def shared_style() -> Generator[None]:
    """Applies the style of all pictures, whatever the user's matplotlibrc says."""
    with style.context(["default", RC_PARAMS]):
        yield


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
    svg = svg.replace("xlink:href", "href")
    for name, colour in COLOURS.items():
        svg = svg.replace(colour.light, f"var(--{name})")
    svg = re.sub(r'style="([^"]*)"', _presentation_attributes, svg)
    references = set(re.findall(r'(?:href="|url\()#([\w-]+)', svg))

    def without_unused_id(match: re.Match) -> str:
        return match.group() if match.group(1) in references else ""

    return re.sub(r' id="([^"]*)"', without_unused_id, svg)


def _presentation_attributes(match: re.Match) -> str:
    """Converts CSS declarations to attributes. A page without style attributes is easy to check."""
    declarations = [declaration.split(": ") for declaration in match.group(1).split("; ")]
    return " ".join(f'{name}="{value}"' for name, value in declarations)
