"""The whole way in one command, and what each step says when it is done."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from .files import categories, check_folder, printable, read, refuse, write, write_data
from .options import PATH, Numbered, options

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

MOST_GENES = 3000
"""Genes from which on highly variable ones are chosen."""
COUNTS = ("counts", "raw_counts", "count", "raw")
"""Layers that hold counts where X does not."""
RESULT = "result.h5ad"
PAGE = "report.html"
LEVEL = 0.05
SHOWN = 10


def make_analyse() -> click.Command:
    """Make the command: the options of a fit, and those of the steps around it."""
    from .. import tl

    fit = options(tl.bcnmf)
    for option in fit:
        if option.name == "n_background_topics":
            option.default = "auto"
    more = [
        click.Option(["--gene-sets"], type=PATH, metavar="SETS.gmt", help="Gene sets to test the topics for."),
        click.Option(["--gene-symbols"], help="Column of adata.var with the symbols of the genes."),
        click.Option(["--groupby"], help="Column of adata.obs with the cell types, for the report."),
        click.Option(["--title"], help="Heading of the report."),
        click.Option(["-o", "--output"], type=PATH, required=True, metavar="FOLDER", help="Folder to write."),
        click.Option(["--force"], is_flag=True, help="Write to a folder that is not empty."),
    ]
    first = click.Argument(["source"], type=PATH, metavar="IN.h5ad")
    return click.Command("analyse", params=[first, *fit, *more], callback=_analyse, help=HELP)


HELP = """Everything with defaults: from counts to a report.

Marks protein-coding and highly variable genes unless genes are chosen, checks the background, fits with background
topics and scores cells on folds, tests gene sets if they are given, computes a UMAP, and writes result.h5ad,
report.html and CSV tables to a folder.
"""


def _analyse(
    source: Path,
    output: Path,
    *,
    gene_sets: Path | None,
    gene_symbols: str | None,
    groupby: str | None,
    title: str | None,
    force: bool,
    **fit: Any,
) -> None:
    begin = time.monotonic()
    check_folder(output, force=force)
    if gene_sets is not None and not gene_sets.is_file():
        refuse(f"{gene_sets} does not exist.")
    adata = read(source)
    for name, column in (("--gene-symbols", gene_symbols), ("--groupby", groupby)):
        where = adata.var if name == "--gene-symbols" else adata.obs
        if column is not None and column not in where:
            refuse(f"{name} must name a column, got {column!r}. Present: {', '.join(map(str, where.columns))}.")
    present = categories(adata, fit["background_key"])
    fit = {name: value.among(present) if isinstance(value, Numbered) else value for name, value in fit.items()}
    key = fit["key_added"]
    fit["layer"] = _layer_of_counts(adata, fit["layer"], fit["likelihood"])
    from .. import _report, tl

    design = {name: fit[name] for name in ("background_key", "background", "target", "layer")}
    run = {name: fit[name] for name in tl.RunOptions.__annotations__ if fit.get(name) is not None}
    _select_genes(adata, design, fit)
    if not isinstance(fit["background"], Mapping):
        _say("Checking the background")
        shared = {name: fit[name] for name in ("sample_key", "likelihood", "mask_var", "random_state", "key_added")}
        without = {name: value for name, value in run.items() if not name.startswith("checkpoint")}
        tl.background_check(adata, **design, **shared, **without)
    _say("Fitting, and scoring cells on folds")
    arguments = {name: value for name, value in fit.items() if name not in tl.RunOptions.__annotations__}
    tl.bcnmf(adata, **arguments, **run)
    if gene_sets is not None:
        _say("Testing gene sets")
        by: Any = "score" if len(adata.uns[key]["topics"]) > 1 else "loading"
        tl.enrich(adata, gene_sets, key=key, by=by, gene_symbols=gene_symbols)
    _say("Computing the UMAP")
    tl.umap(adata, key=key, random_state=fit["random_state"])
    _say("Writing")
    from .export import tables, write_tables

    output.mkdir(exist_ok=True)
    write(output / RESULT, partial(write_data, data=adata))
    names = write_tables(output, tables(adata, key))
    given: dict[str, Any] = {"title": title, "gene_symbols": gene_symbols, "groupby": groupby}
    page = _report.report(adata, output / PAGE, key=key, overwrite=force, **given)
    words = _report.summary(adata, key=key, gene_symbols=gene_symbols, groupby=groupby)
    done = f"Wrote {RESULT}, {', '.join(names)} to {output} in {time.monotonic() - begin:.0f} s."
    click.echo("\n".join(map(printable, [*words, done, f"Open the report: {page}"])))


def _say(step: str) -> None:
    click.echo(f"{step} ...", err=True)


def _layer_of_counts(adata: AnnData, layer: str | None, likelihood: Any) -> str | None:
    """Return the layer to read: the one given, X if it holds counts, or a layer named as counts are."""
    import numpy as np
    from scipy import sparse

    if layer is not None or likelihood == "gaussian":
        return layer

    def is_counts(matrix: Any) -> bool:
        values = matrix.data if sparse.issparse(matrix) else np.asarray(matrix)
        return bool(np.isfinite(values).all() and (values >= 0).all() and (values == np.floor(values)).all())

    if adata.X is not None and is_counts(adata.X):
        return None
    found = next((name for name in COUNTS if name in adata.layers and is_counts(adata.layers[name])), None)
    if found is None:
        present = ", ".join(map(repr, adata.layers)) or "none"
        refuse(
            f"X does not hold counts, and no layer named as they are does (layers: {present}). Name the layer with "
            "--layer, or choose --likelihood gaussian."
        )
    click.echo(f"X does not hold counts; reading layer {found!r}.", err=True)
    return found


def _select_genes(adata: AnnData, design: Mapping[str, Any], fit: Mapping[str, Any]) -> None:
    """Mark the genes to use, unless they are chosen already or few."""
    from .. import pp
    from ..pp._biotypes import biotype_column

    if fit["mask_var"] != "auto" or "highly_variable" in adata.var or adata.n_vars <= MOST_GENES:
        return
    if fit["likelihood"] == "gaussian":
        return
    if "protein_coding" not in adata.var and biotype_column(adata) is not None:
        _say("Marking protein-coding genes")
        pp.protein_coding(adata)
    _say("Choosing highly variable genes")
    pp.highly_variable_genes(adata, **design, n_top_genes=MOST_GENES)


# What a step says ---------------------------------------------------------------------------------------------------


def results(command: str, adata: AnnData, key: str) -> list[str]:
    """Describe in a few lines what a step has stored."""
    key = key or "bcnmf"
    if command == "hvg":
        return [f"{int(adata.var['highly_variable'].sum())} of {adata.n_vars} genes are marked as highly variable."]
    if command == "check":
        table = adata.uns[f"{key}_background_check"][["check", "value", "verdict"]]
        return table.to_string(index=False, float_format="{:.3g}".format).split("\n")
    if command in ("select", "select-alpha"):
        return [str(adata.uns[f"{key}_n_topics" if command == "select" else f"{key}_alpha"]["reason"])]
    if command == "umap":
        return [f"UMAP in obsm['X_{key}_umap']."]
    if command == "enrich":
        table = adata.uns[key]["enrichment"]
        best = table.sort_values("p_value", kind="stable").drop_duplicates("topic").head(SHOWN)
        rows = best.sort_index()[["topic", "gene_set", "p_adjusted"]]
    else:
        name, what = ("associations", "topic") if command == "associate" else ("gene_associations", "gene")
        table = adata.uns[key][name]
        n = int((table["p_adjusted"] <= LEVEL).sum())
        best = table.sort_values("p_value", kind="stable").head(SHOWN)
        rows = best[[what, "group", "reference", "difference", "p_adjusted"]]
        return [f"{n} of {len(table)} tests have an adjusted p of at most {LEVEL}.", *_lines(rows)]
    return _lines(rows)


def _lines(rows: Any) -> list[str]:
    return [printable(line) for line in rows.to_string(index=False, float_format="{:.2g}".format).split("\n")]
