"""Names in plots: written letter by letter, with the room that they need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib import pyplot as plt
from matplotlib.textpath import TextPath

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.axes import Axes

FONT = 8.0  # points, for labels that come in dozens
LEGEND_ROWS = 18


def literal(label: object) -> str:
    """Return a name as matplotlib shows it letter by letter: a dollar sign begins no formula."""
    return str(label).replace("$", r"\$")


def label_topics(ax: Axes, names: list[str]) -> None:
    """Name the topics under the axis: upright and smaller where they would meet."""
    inches = ax.get_window_extent().width / ax.figure.dpi / len(names)
    upright = text_width(names) > 0.9 * inches
    size = min(FONT, 72 * 0.7 * inches) if upright else FONT
    ax.set_xticks(range(len(names)), list(map(literal, names)), rotation=90 if upright else 0, fontsize=size)


def text_width(labels: Iterable[object]) -> float:
    """Inches that the widest of the labels takes, with a little to spare."""
    drawn = [literal(label) for label in labels]
    return (
        max((TextPath((0, 0), text, size=FONT).get_extents().width for text in drawn if text.strip(" ")), default=0)
        / 66
    )


def new_axes(width: float, height: float, legend: Any = ()) -> Axes:
    """Axes of about this size in inches, with room for a legend with these labels beside them."""
    labels = list(legend)
    columns = -(-len(labels) // LEGEND_ROWS)
    room = columns * (0.5 + text_width(labels))
    return plt.subplots(figsize=(width + room, height), layout="constrained")[1]


def add_legend(ax: Axes, handles: list[Any], *, title: str) -> None:
    """Put a legend beside the axes."""
    columns = -(-len(handles) // LEGEND_ROWS)
    labels = [literal(handle.get_label()) for handle in handles]
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0}
    ax.legend(handles, labels, title=literal(title), ncols=columns, frameon=False, fontsize=FONT, **place)
