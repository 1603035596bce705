"""Errors about what a user gave, apart from defects of ours: the command line shows these in one line."""

from __future__ import annotations


class UserError(ValueError):
    """An argument, a layer, a column or a file is not what the call needs; the message says what to do."""


class UserTypeError(UserError, TypeError):
    """The same where the type is wrong."""
