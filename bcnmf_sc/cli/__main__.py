"""`python -m bcnmf_sc.cli` is `bcnmf-sc`."""

from . import main

main()
