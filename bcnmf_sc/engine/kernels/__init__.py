"""The passes over a block of cells."""
