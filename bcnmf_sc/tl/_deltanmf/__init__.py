"""DeltaNMF of an AnnData."""
