"""What a type checker says of a user's code: right calls pass, wrong ones do not.

Read by mypy (`make types`), never run. An error that mypy does not find is an unused `type: ignore`, which is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import bcnmf_sc as bc

if TYPE_CHECKING:
    from anndata import AnnData


def right(adata: AnnData) -> None:
    bc.pp.highly_variable_genes(adata, background_key="condition", background="ctrl")
    bc.tl.bcnmf(
        adata, background_key="condition", background=["ctrl", "vehicle"], n_topics=2, n_background_topics="auto"
    )
    bc.tl.nmf(adata, likelihood=bc.likelihoods.NegativeBinomial(dispersion=2.0))
    bc.report(adata, "report.html")
    bc.get.top_genes(adata, key="bcnmf")


def wrong(adata: AnnData) -> None:
    bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics="two")  # type: ignore[arg-type]
    bc.tl.bcnmf(adata, background_key="condition", n_topics=2, likelihood="poison")  # type: ignore[arg-type, call-arg]
    bc.tl.nmf(adata, likelihood="nb", dispersion=2.0)  # type: ignore[call-arg]
    bc.tl.nmf(adata, likelihood=bc.likelihoods.Poisson(dispersion=2.0))  # type: ignore[call-arg]
    bc.tl.nmf(adata, n_topic=2)  # type: ignore[call-arg]
    bc.report(adata)  # type: ignore[call-arg]
    bc.tl.bcnnf(adata)  # type: ignore[attr-defined]
