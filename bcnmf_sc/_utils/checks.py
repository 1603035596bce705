"""Argument checks, each rule in one place."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .errors import UserError, UserTypeError

if TYPE_CHECKING:
    from collections.abc import Iterable

PACKAGE = __name__.partition(".")[0]


def stack_level() -> int:
    """Return the ``stacklevel`` at which a warning names the line that called the package."""
    frame, level = sys._getframe(1).f_back, 2
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == PACKAGE:
        frame, level = frame.f_back, level + 1
    return level


def listed(items: Any, most: int = 8) -> str:
    """List the first few items for a message; "none" if there are none."""
    items = list(items)
    shown = ", ".join(repr(str(x)) for x in items[:most])
    return (shown or "none") + (f" and {len(items) - most} more" if len(items) > most else "")


def whole_number(name: str, value: Any, least: int, most: int | None = None, why: str = "") -> None:
    """Raise unless the value is a whole number between two bounds."""
    upto = f"of at least {least}" if most is None else f"from {least} to {most}" + (f" ({why})" if why else "")
    msg = f"`{name}` must be a whole number {upto}, got {value!r}."
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UserTypeError(msg)
    if value < least or (most is not None and value > most):
        raise UserError(msg)


def number(
    name: str,
    value: Any,
    least: float = 0.0,
    most: float | None = None,
    closed: Literal["both", "right", "neither"] = "both",
    why: str = "",
) -> None:
    """Raise unless the value is a number between two bounds, finite if there is no upper bound."""
    kind = "finite number" if most is None else "number"
    above = f"of at least {least:g}" if closed == "both" else f"above {least:g}"
    if most is not None and np.isfinite(most):
        above = f"from {least:g} to {most:g}" if closed == "both" else f"{above} and {_BELOW[closed]} {most:g}"
    msg = f"`{name}` must be a {kind} {above}, got {value!r}{why}."
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise UserTypeError(msg)
    most = np.finfo(float).max if most is None else most
    if not (value >= least if closed == "both" else value > least) or not (
        value < most if closed == "neither" else value <= most
    ):
        raise UserError(msg)


_BELOW = {"right": "at most", "neither": "below"}


def random_seed(value: Any, name: str = "random_state") -> None:
    """Raise unless the value is a seed that can be stored with the results: a whole number of at most 63 bits."""
    whole_number(name, value, 0, 2**63 - 1)


def seed_32(random_state: int) -> int:
    """Return a seed for libraries limited to 32 bits; a seed that fits is returned unchanged."""
    return int(random_state) % 2**32


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise unless the value is one of the allowed names."""
    allowed = tuple(allowed)
    if not isinstance(value, str) or value not in allowed:
        names = " or ".join(map(repr, allowed)) if len(allowed) < 3 else "one of " + ", ".join(map(repr, allowed))  # noqa: PLR2004
        msg = f"`{name}` must be {names}, got {value!r}."
        raise UserError(msg)


def matrix_values(
    where: str, n_invalid: int, smallest: float, advice: str = "Scaled or centred data? Use counts or their logarithms."
) -> None:
    """Raise unless the values of a matrix are finite and non-negative."""
    if n_invalid:
        msg = f"{where} must be finite, got {n_invalid} values that are NaN or infinite. Drop or impute them first."
        raise UserError(msg)
    if smallest < 0:
        msg = f"{where} must be non-negative, got {smallest:g}. {advice}"
        raise UserError(msg)


def start_loadings(init: Any, n_genes: int, n_topics: int) -> np.ndarray | None:
    """Return the initial loadings, if any are given."""
    if init is None:
        return None
    start = np.asarray(init, np.float64)
    if start.shape != (n_genes, n_topics) or not np.isfinite(start).all() or (start < 0).any():
        msg = (
            f"`init` must be finite, non-negative loadings of {n_genes} genes used x {n_topics} topics, got shape "
            f"{start.shape}. Subset an array over all genes to those of `mask_var`."
        )
        raise UserError(msg)
    return start


def warn_of_fractions(where: str, n_fractional: int, largest: float, use: str, layers: Any) -> None:
    """Warn about values that are not counts; `use` says what treats them as counts, and what to do."""
    if n_fractional:
        looks = "log-normalised" if largest < 30 else "normalised"  # noqa: PLR2004 (log1p of any count is below)
        msg = (
            f"{where} contains {n_fractional} values that are not whole numbers, but {use}. Is it {looks}? Name the "
            f"layer of counts with `layer=` (present: {listed(layers)})."
        )
        warnings.warn(msg, UserWarning, stacklevel=stack_level())
