"""Parts of a page and its rendering: figures as data, tables as text, everything escaped by the template."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


INCH = 96
"""CSS pixels."""
WIDEST = 3.7
"""Inches: what a phone shows without shrinking."""


LIGHTS = {"good": "Green", "caution": "Amber", "bad": "Red"}


@dataclass(frozen=True)
class Answer:
    """The headline, what it means, and how far to trust it; `light` is None where there is nothing to judge."""

    head: str
    lines: Sequence[str]
    light: str | None
    reasons: Sequence[Any]
    bars: Bars | None = None
    kind: str = "answer"


@dataclass(frozen=True)
class Bars:
    """Shares of called cells: a row is a group, its number of cells, its share and that of the background.

    `paired` tells whether the background has a share of its own in each group.
    """

    caption: str
    column: str
    rows: Sequence[tuple[str, str, float, float]]
    case: str
    control: str
    paired: bool
    kind: str = "bars"


@dataclass(frozen=True)
class Card:
    """A program: its name, effect, genes, and more about it."""

    name: str
    effect: str
    genes: Sequence[str]
    more: Sequence[str]


@dataclass(frozen=True)
class Cards:
    """Programs side by side, as many as fit."""

    title: str
    cards: Sequence[Card]
    kind: str = "cards"


@dataclass(frozen=True)
class Fold:
    """Parts behind a title."""

    title: str
    parts: Sequence[Part]
    kind: str = "fold"


@dataclass(frozen=True)
class Row:
    """Figures side by side, as many as fit."""

    pictures: Sequence[Picture]
    kind: str = "row"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Missing:
    """A result that is not stored, and the call that adds it."""

    text: str
    call: str
    kind: str = "missing"


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    items: Sequence[str]
    kind: str = "items"


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    rows: Sequence[tuple[str, str]]
    kind: str = "facts"


@dataclass(frozen=True)
class Code:
    """Text to copy verbatim."""

    text: str
    label: str
    kind: str = "code"


@dataclass(frozen=True)
class Table:
    """A table: its first column names the rows."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]
    kind: str = "table"


@dataclass(frozen=True)
class Picture:
    """A figure with its text alternative."""

    source: str
    alt: str
    caption: str
    width: int
    kind: str = "picture"


Part = Answer | Bars | Cards | Fold | Row | Text | Missing | Items | Facts | Code | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading and the parts below it."""

    name: str
    title: str
    parts: list[Part] = field(default_factory=list)


def table(frame: pd.DataFrame, caption: str) -> Table:
    """Convert a frame to text; its index, if it is named or not numeric, becomes the first column."""
    if frame.index.name or not pd.api.types.is_integer_dtype(frame.index.dtype):
        frame = frame.rename_axis(index=frame.index.name or "").reset_index()
    numeric = [pd.api.types.is_numeric_dtype(x) and not pd.api.types.is_bool_dtype(x) for x in frame.dtypes]
    rows = [[written(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    columns = [str(name).replace("_", " ") for name in frame.columns]
    return Table(caption, columns, rows, numeric)


def written(value: Any) -> str:
    """Format a value for readers."""
    if isinstance(value, np.ndarray | list | tuple):
        return ", ".join(map(written, value)) if len(value) else "none"
    if value is None:
        return "none"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:d}"
    if isinstance(value, float | np.floating):
        return "–" if np.isnan(value) else f"{value:.3g}"
    return "–" if value is pd.NA or value is pd.NaT else str(value)


def picture(
    draw: Callable[..., Any],
    alt: str,
    caption: str,
    *,
    size: tuple[float, float] | None = (WIDEST, 3.0),
    narrow: bool = False,
) -> Picture:
    """Draw with a function of `pl` and embed the figure as SVG; rasterised points stay pixels.

    The function draws on axes of this size in inches. Without one it makes its own figure; if it is to be narrow, it is
    laid out anew for the screen of a phone.
    """
    # text as outlines, and the same ids in every run
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "bcnmf_sc", "savefig.dpi": 130}):
        given: dict[str, Any] = {"return_fig": True}
        if size is not None:
            given = {"ax": plt.subplots(figsize=size, layout="constrained")[1], "show": False}
        drawn = draw(**given)
        figure: Any = getattr(drawn, "figure", None) or drawn
        buffer = io.BytesIO()
        try:
            if narrow:
                figure.set_size_inches(WIDEST, figure.get_figheight())
            # tight: labels wider than their axes are not cut
            look: dict[str, Any] = {"facecolor": "white", "bbox_inches": "tight", "pad_inches": 0.06}
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, **look)
        finally:
            plt.close(figure)
    drawn = buffer.getvalue()
    data = base64.b64encode(drawn).decode("ascii")
    said = re.search(rb'<svg[^>]*? width="([\d.]+)pt"', drawn)
    assert said is not None  # for type checkers: matplotlib writes it
    width = round(float(said[1]) * INCH / 72)
    return Picture(f"data:image/svg+xml;base64,{data}", alt, caption, width)


def render(title: str, sections: Sequence[Section]) -> str:
    """Render the page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files(__package__).joinpath("page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(title=title, sections=sections, lights=LIGHTS)
