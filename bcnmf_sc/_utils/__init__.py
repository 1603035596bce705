"""Shared helpers: argument checks, files, progress bars, downloads."""
