"""Row sources, which hand out blocks of cells wherever these lie, and sums over cells that no fit is needed for."""
