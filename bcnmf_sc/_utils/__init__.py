"""What every part may use: checks, files, progress, downloads."""
