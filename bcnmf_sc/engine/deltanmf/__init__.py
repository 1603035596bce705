"""DeltaNMF: two-stage case-control NMF."""
