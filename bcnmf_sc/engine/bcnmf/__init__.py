"""Background-contrastive NMF."""
