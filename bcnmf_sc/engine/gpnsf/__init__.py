"""GPNSF: non-negative spatial factorisation with Gaussian-process priors."""
