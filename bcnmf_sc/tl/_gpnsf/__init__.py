"""GPNSF of a MuData or AnnData."""
