"""Where the cells come from: matrices in memory, on disk, on workers, on a device."""
