"""Settings of the package: how much it reports, and whether plots are shown."""

from __future__ import annotations

import logging
import sys
from typing import Any

from ._utils.checks import listed
from ._utils.errors import UserError, UserTypeError

LOGGER = logging.getLogger(__package__)
LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "hint": 15, "debug": logging.DEBUG}
"""Scanpy's names; the position is the number."""


class Settings:
    """How much the package reports and whether its plots are shown; `bcnmf_sc.settings` is the only instance.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> bc.settings.verbosity = "info"
    >>> bc.settings.verbosity
    2
    >>> bc.settings.verbosity = 1
    """

    def __init__(self) -> None:
        self._autoshow: bool | None = None

    @property
    def verbosity(self) -> int:
        """Scanpy's levels: 0 "error", 1 "warning" (the default), 2 "info", 3 "hint", 4 "debug".

        From "info" on, each function lists the fields that it has added. It is the level of Python's logger
        `"bcnmf_sc"`; messages go to its handlers, else to stderr.
        """
        level = LOGGER.getEffectiveLevel()
        return max(sum(level <= known for known in LEVELS.values()) - 1, 0)

    @verbosity.setter
    def verbosity(self, value: int | str) -> None:
        names = list(LEVELS)
        if isinstance(value, str) and value.lower() in names:
            value = names.index(value.lower())
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(names):
            msg = f"`verbosity` must be a number from 0 to {len(names) - 1} or one of {listed(names)}, got {value!r}."
            raise UserError(msg)
        LOGGER.setLevel(LEVELS[names[value]])
        if not LOGGER.hasHandlers():
            LOGGER.addHandler(logging.StreamHandler())

    @property
    def autoshow(self) -> bool:
        """Whether plots are shown where `show` is not given; `scanpy.settings.autoshow` unless set here."""
        if self._autoshow is not None:
            return self._autoshow
        scanpy = sys.modules.get("scanpy")  # what was never imported was never set
        return True if scanpy is None else bool(scanpy.settings.autoshow)

    @autoshow.setter
    def autoshow(self, value: Any) -> None:
        if value is not None and not isinstance(value, bool):
            msg = f"`autoshow` must be True, False or None, got {value!r}."
            raise UserTypeError(msg)
        self._autoshow = value

    def __repr__(self) -> str:
        return f"Settings(verbosity={self.verbosity}, autoshow={self.autoshow})"


settings = Settings()
