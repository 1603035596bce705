"""Passes over a block of cells: inputs and sums, on the CPU and in torch."""
