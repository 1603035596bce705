"""Read the results that `bcnmf_sc.tl` stored in an AnnData as labelled tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from ._anndata import check_anndata
from ._stored import gene_labels, pick_topics, stored, stored_slot
from ._utils.checks import listed, number, one_of, whole_number
from ._utils.errors import UserError
from .engine.bcnmf.ensemble import shares_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from ._stored import Topics

__all__ = ["associations", "donors", "enrichment", "loadings", "obs_df", "top_genes", "topics", "usage"]

FLOOR = 0.1  # relative to the loading in a flat topic; added to both terms of the specificity


def usage(adata: AnnData, *, key: str = "bcnmf", normalize: bool = False) -> pd.DataFrame:
    """Return the usage of each topic in each cell.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    key
        The `key_added` under which it was stored.
    normalize
        Whether to divide each cell's usage by its sum, to obtain proportions. By default, usage is in the units of the
        data (counts). Cells without usage keep zeros.

    Returns
    -------
    Table of cells by topics, indexed by `adata.obs_names`, with the topics' names as columns; a copy.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> bc.get.usage(adata, normalize=True).columns.tolist()
    ['Topic 1', 'Topic 2', 'Topic 3', 'Topic 4']
    """
    names = _topic_names(adata, key)
    values = np.array(stored_slot(adata, "obsm", f"X_{key}"))
    if normalize:
        values = shares_of(values, values.dtype)
    return pd.DataFrame(values, index=adata.obs_names, columns=names)


def obs_df(
    adata: AnnData,
    *,
    topics: Topics = "target",
    columns: str | Sequence[str] = (),
    key: str = "bcnmf",
    normalize: bool = True,
) -> pd.DataFrame:
    """Return the usage of topics beside columns of `adata.obs`, one row per cell.

    `adata.obs = adata.obs.join(bc.get.obs_df(adata))` writes the scores of the target topics to `adata.obs`.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    topics
        Topics to return: "target", "background" or "all"; a name; or a list of names or positions, in this order.
    columns
        Columns of `adata.obs` to put before the topics, such as the cell type or `"bcnmf_target_share"`.
    key
        The `key_added` under which the factorisation was stored.
    normalize
        Whether to return each topic's share of a cell's usage; otherwise usage in the units of the data.

    Returns
    -------
    Table of cells by columns and topics, indexed by `adata.obs_names`; a copy.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> bc.get.obs_df(adata, topics=[0, 1], columns="condition").columns.tolist()
    ['condition', 'Topic 1', 'Topic 2']
    """
    names = [columns] if isinstance(columns, str) else list(columns)
    missing = [name for name in names if name not in adata.obs]
    if missing:
        msg = f"`columns` must be columns of `adata.obs`, got {listed(missing)}. Present: {listed(adata.obs.columns)}."
        raise UserError(msg)
    share = usage(adata, key=key, normalize=normalize)[pick_topics(stored(adata, key), topics)]
    return pd.concat([adata.obs[names], share], axis=1)


def loadings(adata: AnnData, *, key: str = "bcnmf", gene_symbols: str | None = None) -> pd.DataFrame:
    """Return the loading of each gene on each topic.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    key
        The `key_added` under which it was stored.
    gene_symbols
        Column of `adata.var` that labels the rows instead of `adata.var_names`. A gene without a symbol keeps
        its name.

    Returns
    -------
    Table of genes by topics; a copy. Columns sum to 1 (after `tl.gpnsf` they are counts at mean usage); rows of genes
    that were not used are zero.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> bc.get.loadings(adata).sum().round(3).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    names = _topic_names(adata, key)
    check_anndata(adata)  # a MuData stores them in its modalities
    values = np.array(stored_slot(adata, "varm", key))
    return pd.DataFrame(values, index=gene_labels(adata, gene_symbols), columns=names)


def top_genes(
    adata: AnnData,
    topics: Topics = "target",
    n_genes: int | None = 10,
    *,
    key: str = "bcnmf",
    by: Literal["loading", "specificity", "score"] = "loading",
    gene_symbols: str | None = None,
) -> pd.DataFrame:
    r"""Return the leading genes of each topic.

    Ranked by loading, these are the genes that make up most of a topic's counts; highly expressed genes lead several
    topics. Ranked by specificity, they are the genes that distinguish a topic from the others: with loadings :math:`w`
    and :math:`G` genes used, gene :math:`g` in topic :math:`k` has the specificity

    .. math:: \log_2 (w_{gk} + f) - \log_2 (\max_{j \ne k} w_{gj} + f), \qquad f = 0.1 / G.

    The floor :math:`f`, a tenth of the loading in a flat topic, prevents genes with negligible loadings from leading.
    The maximum is over all other topics, including those left out by `topics`. Ranked by score, loading times
    specificity, they are the genes that both make up the topic and distinguish it: the report lists these. Genes that
    another topic has more of follow by loading.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    topics
        Topics to list: "target", "background" or "all"; a name; or a list of names or positions, in this order.
    n_genes
        Number of genes per topic; None for all genes used.
    key
        The `key_added` under which it was stored.
    by
        How to rank the genes. Ties keep the order of `adata.var_names`.
    gene_symbols
        Column of `adata.var` that names the genes instead of `adata.var_names`. A gene without a symbol keeps
        its name.

    Returns
    -------
    Long table with the columns `topic`, `rank` (from 1), `gene`, `loading` and `specificity` (log2; NaN if there is
    only one topic).

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> genes = bc.get.top_genes(adata, n_genes=5, by="specificity")
    >>> genes.columns.tolist()
    ['topic', 'rank', 'gene', 'loading', 'specificity']
    >>> genes.pivot(index="rank", columns="topic", values="gene").shape
    (5, 4)
    >>> bc.get.top_genes(adata, "Topic 1", 3)["rank"].tolist()
    [1, 2, 3]
    """
    if n_genes is not None:
        whole_number("n_genes", n_genes, 1)
    one_of("by", by, ("loading", "specificity", "score"))
    w = loadings(adata, key=key, gene_symbols=gene_symbols)
    chosen = pick_topics(stored(adata, key), topics)
    if by != "loading" and w.shape[1] == 1:
        msg = f"`by` must be 'loading' if there is only one topic, got {by!r}."
        raise UserError(msg)

    w = w[(w > 0).any(axis=1).to_numpy()]
    share = w.to_numpy(dtype=np.float64)
    specificity = _specificity(share / np.maximum(share.sum(axis=0), np.finfo(float).tiny))
    blocks = []
    for topic in chosen:
        k = w.columns.get_loc(topic)
        table = {"gene": w.index.to_numpy(), "loading": w[topic].to_numpy(), "specificity": specificity[:, k]}
        values = table["loading"] * np.maximum(table["specificity"], 0) if by == "score" else table[by]
        ties = table["loading"] if by == "score" else np.zeros(len(values))
        order = np.lexsort((-ties, -values))[:n_genes]
        block = pd.DataFrame({name: column[order] for name, column in table.items()})
        block.insert(0, "rank", np.arange(1, len(order) + 1))
        blocks.append(block)
    long = pd.concat(blocks, ignore_index=True)
    labels = np.repeat(np.arange(len(chosen)), [len(block) for block in blocks])
    long.insert(0, "topic", pd.Categorical.from_codes(labels, categories=chosen))
    return long


def topics(adata: AnnData, *, key: str = "bcnmf") -> pd.DataFrame:
    """Return the table of topics: their kinds and statistics, such as their usage in target and background.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    key
        The `key_added` under which it was stored.

    Returns
    -------
    Copy of `adata.uns[key]["topics"]`, one row per topic. After :func:`bcnmf_sc.tl.bcnmf` with background topics and
    `cross_fit`, the comparison of target and background out of fold: `log2_fold_change` (of the donors' mean shares,
    each plus 0.001) with its 95 % interval `ci_low` to `ci_high`; `p_value` (two-sided); `p_adjusted`
    (Benjamini-Hochberg over the target topics; over the background topics, and doubled); `called`; `direction`
    ("gained" or "lost" in the target).

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> bc.get.topics(adata).index.tolist()
    ['Topic 1', 'Topic 2', 'Topic 3', 'Topic 4']
    """
    return stored(adata, key)["topics"].copy()


def donors(adata: AnnData, *, key: str = "bcnmf") -> pd.DataFrame:
    """Return how much each donor uses each topic out of fold: what the tests of topics rest on.

    Parameters
    ----------
    adata
        Annotated data on which :func:`bcnmf_sc.tl.bcnmf` has run with background topics, `cross_fit` and `sample_key`.
    key
        The `key_added` under which it was stored.

    Returns
    -------
    Copy of the stored table, one row per donor and condition: `donor`, `condition` ("target" or "background"),
    `n_cells`, and for each topic the mean share of usage over these cells, under models that have not seen them.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated(donor_effect=0.1)
    >>> adata.obs["donor"] = adata.obs["donor"].str[-1]  # as if the same three had given cases and controls
    >>> roles = {"background_key": "condition", "background": "ctrl", "sample_key": "donor"}
    >>> bc.tl.bcnmf(adata, **roles, n_topics=2, n_background_topics=5, tol=1e-2)
    >>> bc.get.donors(adata)[["donor", "condition", "n_cells"]].head(2)
      donor   condition  n_cells
    0     1  background      134
    1     1      target      200
    """
    record = stored(adata, key)
    if "donors" not in record:
        msg = (
            f"'donors' is not in `adata.uns[{key!r}]`. Present: {listed(record)}. Run `bcnmf_sc.tl.bcnmf` with "
            "`sample_key`, background topics and `cross_fit` first."
        )
        raise UserError(msg)
    return record["donors"].copy().reset_index(drop=True)


def associations(
    adata: AnnData,
    groupby: str | None = None,
    *,
    key: str = "bcnmf",
    table: Literal["topics", "genes"] = "topics",
) -> pd.DataFrame:
    """Return the association tests of topics, or of genes, with columns of `adata.obs`.

    Parameters
    ----------
    adata
        Annotated data on which :func:`bcnmf_sc.tl.associate` (for genes :func:`bcnmf_sc.tl.associate_genes`) has run.
    groupby
        Column of `adata.obs` whose tests to return; None for all stored tests.
    key
        The `key_added` under which the factorisation was stored.
    table
        Whether to return the tests of topics or of genes.

    Returns
    -------
    Copy of the stored table, one row per feature and comparison: `topic` or `gene`; `groupby`, `group` and `reference`;
    `test`; `scale` of the values compared; `unit` ("sample", "pair" or "cell") and their numbers `n_group` and
    `n_reference`; `mean_group` and `mean_reference` (with the moderated t, of shares or counts per 10,000);
    `difference` on the `scale`, adjusted for what else the design holds, with its 95 % interval `ci_low` to `ci_high`:
    a log2 fold change with the moderated t; `cohen_d` (difference over the deviation of a unit; of the differences
    where paired); `log2_ratio` of the means (for genes, of counts per 10,000); `statistic`; `p_value`; `p_adjusted`
    (Benjamini-Hochberg over all rows of one call); `signed_log10_p` (-log10 p with the sign of the difference);
    `separated` (logistic regression: the groups do not overlap). Of a slope, `n_group` and `mean_group` are of all
    units.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> bc.tl.associate(adata, groupby="condition", sample_key="donor")
    >>> bc.get.associations(adata, "condition").shape
    (4, 21)
    """
    one_of("table", table, ("topics", "genes"))
    name, call = ("associations", "associate") if table == "topics" else ("gene_associations", "associate_genes")
    found = _stored_table(adata, key, name, call=call)
    if groupby is None:
        return found
    chosen = found[found["groupby"].astype(str) == groupby]
    if not len(chosen):
        present = listed(found["groupby"].unique())
        msg = f"`groupby` must be a tested column, got {groupby!r}. Present: {present}."
        raise UserError(msg)
    return chosen.reset_index(drop=True)


def enrichment(
    adata: AnnData, topics: Topics = "target", *, key: str = "bcnmf", max_p_adjusted: float = 1.0
) -> pd.DataFrame:
    """Return the gene sets tested for each topic, the most significant first.

    Parameters
    ----------
    adata
        Annotated data on which :func:`bcnmf_sc.tl.enrich` has run.
    topics
        Topics to list: "target", "background" or "all"; a name; or a list of names or positions.
    key
        The `key_added` under which the factorisation was stored.
    max_p_adjusted
        Largest adjusted p-value to include.

    Returns
    -------
    Copy of the stored table, one row per topic and set: `topic`; `gene_set`; `method`; `set_size` (number of genes of
    the set among the genes used); `n_overlap` (number of them among the `n_genes` leading genes); `n_genes`; `universe`
    (number of genes used); `score` (fold enrichment over the overlap expected by chance; for "gsea" the normalised
    enrichment score); `p_value`; `p_adjusted` (Benjamini-Hochberg over all rows of one call); `genes` (the overlap in
    the topic's order; for "gsea" the set's ten leading genes), separated by semicolons.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> bc.tl.enrich(adata, {"first": adata.var_names[:20]}, n_genes=30)
    >>> len(bc.get.enrichment(adata))
    4
    """
    number("max_p_adjusted", max_p_adjusted)
    found = _stored_table(adata, key, "enrichment", call="enrich")
    chosen = pick_topics(stored(adata, key), topics)
    found = found[found["topic"].astype(str).isin(chosen)]
    return found[found["p_adjusted"] <= max_p_adjusted].reset_index(drop=True)


def _stored_table(adata: AnnData, key: str, name: str, *, call: str) -> pd.DataFrame:
    """Return a copy of a table in `adata.uns[key]`; raise an error naming the call to run if it is missing."""
    record = stored(adata, key)
    if name not in record:
        msg = f"{name!r} is not in `adata.uns[{key!r}]`. Present: {listed(record)}. Run `bcnmf_sc.tl.{call}` first."
        raise UserError(msg)
    return record[name].copy().reset_index(drop=True)


def _topic_names(adata: AnnData, key: str) -> pd.Index:
    """Return the topics' names, in the order of the columns of usage and loadings."""
    return pd.Index(stored(adata, key)["topics"].index.to_numpy())


def _specificity(w: np.ndarray) -> np.ndarray:
    n_genes, n_topics = w.shape
    if n_topics == 1:
        return np.full_like(w, np.nan)
    highest = np.sort(w, axis=1)
    first, second = highest[:, -1:], highest[:, -2:-1]
    # The maximum over the other topics is the second highest where this topic is the highest; in a tie both are equal.
    others = np.where(w == first, second, first)
    floor = FLOOR / n_genes
    return np.log2(w + floor) - np.log2(others + floor)
