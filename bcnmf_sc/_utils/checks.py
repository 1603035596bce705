"""Check arguments: each rule is written once."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .errors import UserError

PACKAGE = __name__.partition(".")[0]


def stack_level() -> int:
    """Return the ``stacklevel`` at which a warning names the line that called the package."""
    frame, level = sys._getframe(1).f_back, 2
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == PACKAGE:
        frame, level = frame.f_back, level + 1
    return level


def listed(items: Any, most: int = 8) -> str:
    """Name the first few of what there is, for a message; "none" if nothing."""
    items = list(items)
    shown = ", ".join(repr(str(x)) for x in items[:most])
    return (shown or "none") + (f" and {len(items) - most} more" if len(items) > most else "")


def number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value < np.inf:
        msg = f"`{name}` must be a finite number of at least 0, got {value!r}."
        raise UserError(msg)


def whole_number(name: str, value: Any, least: int, most: int | None = None, why: str = "") -> None:
    """Refuse what is no whole number between two bounds."""
    if (
        isinstance(value, bool | np.bool_)
        or not isinstance(value, int | np.integer)
        or value < least
        or (most is not None and value > most)
    ):
        upto = f"of at least {least}" if most is None else f"from {least} to {most}" + (f" ({why})" if why else "")
        msg = f"`{name}` must be a whole number {upto}, got {value!r}."
        raise UserError(msg)


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse a name that is not among those allowed."""
    if value not in allowed:
        msg = f"`{name}` must be {' or '.join(map(repr, allowed))}, got {value!r}."
        raise UserError(msg)
