"""Passes over a block of cells: what they take and gather, on the CPU, in torch."""
