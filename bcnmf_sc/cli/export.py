"""Write a fit in the layouts of other tools."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from .files import check_folder, check_output, heed_damage, read, refuse, write, write_data
from .options import PATH

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData

ONTOLOGY = ("assay", "cell_type", "development_stage", "disease", "self_reported_ethnicity", "sex", "tissue")
"""Names that cellxgene's schema derives from columns with ontology terms, which must be given instead."""
RESERVED = ("citation", "organism", "schema_reference", "schema_version")
"""Entries of `uns` that cellxgene writes itself."""


def tables(adata: AnnData, key: str) -> dict[str, pd.DataFrame]:
    """Return the results as tables: topics, genes, cells, and donors where they are named."""
    from .. import get

    loadings, usage = get.loadings(adata, key=key), get.usage(adata, key=key, normalize=True)
    own = [name for name in adata.obs if str(name).startswith(f"{key}_")]
    found = {
        "topics": get.topics(adata, key=key).rename_axis("topic"),
        "genes": loadings[(loadings > 0).any(axis=1)].rename_axis("gene"),
        "cells": adata.obs[own].join(usage).rename_axis("cell"),
    }
    record = adata.uns[key]
    if "donors" in record:
        found["donors"] = get.donors(adata, key=key).set_index("donor")
    if "enrichment" in record:
        found["gene_sets"] = get.enrichment(adata, key=key).set_index("topic")
    if "associations" in record:
        found["associations"] = get.associations(adata, key=key).set_index("topic")
    return found


def write_tables(folder: Path, found: dict[str, pd.DataFrame], *, ending: str = "csv") -> list[str]:
    """Write tables to a folder; return the files' names."""
    names = []
    for name, table in found.items():
        names.append(f"{name}.{ending}")
        write(folder / names[-1], partial(table.to_csv, sep="," if ending == "csv" else "\t"))
    return names


def for_cellxgene(adata: AnnData, key: str) -> AnnData:
    """Return an AnnData that cellxgene opens: counts in `raw.X`, log-normalised values in X, embeddings in `obsm`.

    Columns that its schema forbids are renamed or left out; what it asks for beyond that, as ontology terms, is in no
    fit and stays to be added.
    """
    import numpy as np
    import scanpy as sc
    from anndata import AnnData
    from scipy import sparse

    from .._anndata import read_matrix

    layer = adata.uns[key].get("params", {}).get("layer")
    counts = sparse.csr_matrix(read_matrix(adata, None if layer is None else str(layer)), dtype=np.float32)
    obs = adata.obs.rename(columns={name: f"author_{name}" for name in adata.obs if name in ONTOLOGY})
    obs = obs.rename(columns=lambda name: re.sub(r"^_+", "", str(name)))
    for name in obs:
        if obs[name].dtype == bool:
            obs[name] = obs[name].map({True: "yes", False: "no"}).astype("category")
    var = adata.var[[name for name in adata.var if not str(name).startswith("feature_")]].copy()
    out = AnnData(counts, obs=obs, var=var)
    out.raw = AnnData(counts.copy(), obs=obs[[]], var=var[[]])
    is_counts = str(adata.uns[key].get("params", {}).get("likelihood")) != "gaussian"
    if is_counts:
        sc.pp.normalize_total(out, target_sum=1e4)
        sc.pp.log1p(out)
    out.X = sparse.csr_matrix(out.X)
    share = f"X_{key}"
    for name, values in adata.obsm.items():
        array = np.asarray(values, np.float32) if getattr(values, "ndim", 0) == 2 else np.zeros((0, 0))  # noqa: PLR2004
        good = re.fullmatch(r"X_[a-zA-Z][a-zA-Z0-9_.-]*", str(name)) and array.shape[1:] >= (2,)
        if good and np.isfinite(array).all():
            out.obsm[str(name)] = array
    if not len(out.obsm):
        refuse(f"{share} is no embedding that cellxgene draws: run `bcnmf-sc umap` first.")
    shown = [name for name in (f"{share}_umap", "X_umap") if name in out.obsm]
    out.uns = {"title": f"Topics of {key}", "default_embedding": (shown or list(out.obsm))[0]}
    return out


def for_programs(adata: AnnData, key: str) -> Any:
    """Return a MuData with cells x genes as `rna` and cells x programs as `prog`, as gene_network_evaluation reads it.

    `prog` has the loadings, programs x genes, in `varm["loadings"]` and the genes' names in `uns["var_names"]`.
    """
    import numpy as np
    from anndata import AnnData

    from .. import get

    try:
        import mudata
    except ImportError:
        refuse("Gene programs are written as an h5mu file. Install mudata: pip install 'bcnmf-sc[multimodal]'.")
    from .._mudata import no_pull

    loadings = get.loadings(adata, key=key)
    rna = AnnData(adata.X, obs=adata.obs.copy(), var=adata.var[[]].copy(), layers=dict(adata.layers.items()))
    topics = get.topics(adata, key=key)
    usage = get.usage(adata, key=key, normalize=True)
    prog = AnnData(usage.to_numpy(np.float32), obs=adata.obs.copy(), var=topics.rename_axis(None))
    prog.varm["loadings"] = loadings.to_numpy(np.float32).T
    names = np.asarray(adata.var_names, dtype=object)
    prog.uns |= {"var_names": names, "loadings_genes": names}
    with no_pull():
        return mudata.MuData({"rna": rna, "prog": prog})


@click.command()
@click.argument("source", type=PATH, metavar="IN.h5ad")
@click.option(
    "--to",
    type=click.Choice(["csv", "cellxgene", "gene-programs"]),
    required=True,
    help="csv: tables of topics, genes, cells and donors. cellxgene: an h5ad for CELLxGENE. gene-programs: an h5mu and "
    "TSV tables in the layout of gene_network_evaluation.",
)
@click.option("-o", "--output", type=PATH, required=True, metavar="PATH", help="Folder to write; a file for cellxgene.")
@click.option("--key", default="bcnmf", show_default=True, help="Name of the factorisation.")
@click.option("--force", is_flag=True, help="Overwrite what exists.")
def export(source: Path, to: str, output: Path, *, key: str, force: bool) -> None:
    """Write a fit as tables, or as a file that other tools open."""
    if to == "cellxgene":
        check_output(output, [source], force=force)
    else:
        check_folder(output, force=force)
    adata = read(source)
    heed_damage(source, adata)
    found = tables(adata, key)  # says what is missing
    if to == "cellxgene":
        write(output, partial(write_data, data=for_cellxgene(adata, key)))
        click.echo(
            f"Wrote {output}\nTo publish it, add the columns with ontology terms that cellxgene-schema asks for."
        )
        return
    programs = for_programs(adata, key) if to == "gene-programs" else None
    output.mkdir(exist_ok=True)
    if programs is None:
        names = write_tables(output, found)
    else:
        loadings = found["genes"].T.rename_axis("program")
        scores = found["cells"][list(loadings.index)]
        names = ["programs.h5mu", *write_tables(output, {"loadings": loadings, "scores": scores}, ending="tsv")]
        write(output / names[0], partial(write_data, data=programs))
    click.echo(f"Wrote {', '.join(names)} to {output}")
