"""Parts of a page and its rendering: figures as data, tables as text, everything escaped by the template."""

from __future__ import annotations

import base64
import io
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

    from matplotlib.figure import Figure

FOLD_ROWS = 12
"""Tables with more rows are collapsed."""
INCH = 96
"""CSS pixels."""


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
    folded: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Picture:
    """A figure with its text alternative."""

    source: str
    alt: str
    caption: str
    width: int
    kind: str = "picture"


Part = Text | Missing | Items | Facts | Code | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading and the parts below it."""

    name: str
    title: str
    parts: list[Part] = field(default_factory=list)


def table(frame: pd.DataFrame, caption: str, *, fold: bool | None = None) -> Table:
    """Convert a frame to text; its index, if it is named or not numeric, becomes the first column."""
    if frame.index.name or not pd.api.types.is_integer_dtype(frame.index.dtype):
        frame = frame.rename_axis(index=frame.index.name or "").reset_index()
    numeric = [pd.api.types.is_numeric_dtype(x) and not pd.api.types.is_bool_dtype(x) for x in frame.dtypes]
    rows = [[written(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    columns = [str(name).replace("_", " ") for name in frame.columns]
    return Table(caption, columns, rows, numeric, folded=len(rows) > FOLD_ROWS if fold is None else fold)


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


def picture(draw: Callable[..., Any], alt: str, caption: str) -> Picture:
    """Draw a figure and embed it as SVG; rasterised points stay pixels."""
    # text as outlines, and the same ids in every run
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "bcnmf_sc", "savefig.dpi": 150}):
        figure: Figure = draw(return_fig=True)
        buffer = io.BytesIO()
        try:
            figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
            width = round(figure.get_figwidth() * INCH)
        finally:
            plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/svg+xml;base64,{data}", alt, caption, width)


def render(title: str, sections: Sequence[Section]) -> str:
    """Render the page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files(__package__).joinpath("page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(title=title, sections=sections)
