"""Row sources, which provide blocks of cells from any storage, and sums over cells that need no fit."""
