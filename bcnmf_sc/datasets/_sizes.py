"""Checks that the simulations share."""

from __future__ import annotations

import numpy as np

from .._utils.errors import UserError, UserTypeError

BLOCK_ELEMENTS = 1_000_000
"""Entries of the one dense block that a simulation holds; part of what a seed means."""


def check_count(name: str, value: int, *, least: int, most: int | None = None) -> None:
    """Refuse what is no whole number between two bounds."""
    if value is True or not isinstance(value, (int, np.integer)):
        msg = f"`{name}` must be an integer, got {value!r}."
        raise UserTypeError(msg)
    if value < least or (most is not None and value > most):
        rule = f"at least {least}" if most is None else f"from {least} to {most}"
        msg = f"`{name}` must be {rule}, got {value}."
        raise UserError(msg)


def check_number(name: str, value: float, *, least: float, most: float = np.inf) -> None:
    """Refuse what is no finite number between two bounds."""
    if not least <= value <= most or not np.isfinite(value):
        rule = f"at least {least:g}" if most == np.inf else f"from {least:g} to {most:g}"
        msg = f"`{name}` must be {rule}, got {value!r}."
        raise UserError(msg)
