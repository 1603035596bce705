"""Errors caused by user input, as opposed to bugs: the command line shows them in one line."""

from __future__ import annotations


class UserError(ValueError):
    """An argument, layer, column or file is invalid; the message says what to do."""


class UserTypeError(UserError, TypeError):
    """An argument has the wrong type."""
