"""bcNMF of an AnnData or MuData."""
