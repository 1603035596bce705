"""Tests of stored results: topics, and genes beside them, against a column of obs."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from .. import get
from .._anndata import check_backed, read_matrix
from .._stored import added, pick_topics, stored
from .._utils.checks import listed, stack_level
from .._utils.errors import UserError, UserTypeError
from ..engine.likelihoods import LIKELIHOODS
from ..engine.rows.moments import PER_CELL, as_matrix, log_normalized, moments
from ..engine.rows.open import row_source
from ..engine.rows.sources import LocalSource
from ._design import OFFSET, Summary, Units, unit_means

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

    from ._design import Contrast, Method

FLOOR = 1e-6
"""Added to both sides of the ratio of two mean shares, as in the topics table."""
PER_CELL_FLOOR = 1e-2
"""The same for genes, in counts of 10,000."""
BATCH = 500
"""Genes whose values are dense at a time."""


def associate(
    adata: AnnData,
    *,
    groupby: str | None = None,
    design: str | None = None,
    contrast: Contrast | None = None,
    key: str = "bcnmf",
    groups: str | Sequence[str] | None = None,
    reference: str | None = None,
    sample_key: str | None = None,
    pair_key: str | None = None,
    method: Method = "auto",
    cells: str | np.ndarray | None = None,
    topics: str | Sequence[str] | None = None,
    copy: bool = False,
) -> AnnData | None:
    r"""Test whether groups of cells, or of donors, differ in how much they use each topic.

    Compared are the shares of the topics in a cell's usage. With ``sample_key`` the unit is the donor, once for each
    condition: the logarithm of its mean share is one observation of a linear model, weighed by its number of cells as
    far as that matters. Donors with cells on several sides are correlated units, so pairs and single donors are used
    together. The variance of each topic is moderated over all topics of the fit, as limma does
    :cite:p:`smyth2004linear`. Without ``sample_key`` every cell is an observation, and a warning says what that means:
    cells of one donor are alike for reasons that have nothing to do with the groups, so the p-values overstate the
    evidence, the more so the more cells a donor has.

    With background topics, do not test the target against the very background that trained them: a model fits cells
    it has seen better, so shares differ where nothing else does, and a warning says so. `bcnmf_sc.get.topics` has a
    test of that contrast out of fold.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    groupby
        Column of ``adata.obs`` with the groups (categories, strings or booleans). Cells without a value are left out.
    design
        In place of ``groupby``, a formula over columns of ``adata.obs`` that describe donors, such as
        ``"~ condition + age + sex"``: categories and numbers, and ``(1 | patient)`` for units that belong together.
    contrast
        What to test in the design: ``("condition", "ctrl", "stim")``, a column, its baseline and what is compared with
        it; the name of a column of numbers, for its slope, or of one with two values; or weights of coefficients, as
        ``{"condition[T.stim]": 1}``. By default the first column of the design. With interactions, the mean over the
        donors.
    key
        Name of the factorisation.
    groups
        The group or groups to test; all but the reference by default.
    reference
        The group that each is compared with, or ``"rest"`` for all other cells. By default the background where
        ``groupby`` is the factorisation's ``background_key``, else the first of two groups, else the rest.
    sample_key
        Column of ``adata.obs`` with the donors (or samples, mice, cell lines).
    pair_key
        Column of ``adata.obs`` that tells which units belong together, such as the patient of two biopsies, as
        ``(1 | patient)`` in a design. By default the donor. Without ``sample_key`` it is the donor too.
    method
        ``"moderated"``: linear models of log shares, as said above; by default where donors are given. The paper's
        protocol compares two groups of shares: ``"t"``, Welch's t-test, by default where cells are the units;
        ``"paired_t"``, a t-test of the differences within pairs, of which incomplete ones are left out; ``"logistic"``,
        a regression of the group on the share, by likelihood ratio, which stays defined where the groups separate
        completely (``separated`` in the table) and is anti-conservative with few donors.
    cells
        Cells to use: a bool array in their order, a bool Series by their names, a bool column of ``adata.obs``, or
        ``"target"`` for the target's cells. All by default.
    topics
        Topics to test: "target", "background" or "all"; a name; or a list of names. All by default.
    copy
        Return a changed copy instead of changing ``adata``.

    Returns
    -------
    `None`, or a changed copy with ``copy=True``. Fields set:

    ``.uns[key]["associations"]`` : DataFrame
        A row per topic and comparison; rows of an earlier call with the same ``groupby`` are replaced. See
        `bcnmf_sc.get.associations` for the columns.

    Raises
    ------
    ValueError
        An argument or a column is not as said above, or a group has no cells or less than 2 units.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> bc.tl.associate(adata, groupby="condition", sample_key="donor")
    >>> bc.get.associations(adata)[["topic", "group", "reference", "test", "n_group"]].head(1)
         topic group reference         test  n_group
    0  Topic 1  case      ctrl  moderated t        3
    """
    if not hasattr(adata, "mod"):  # a MuData has a usage as well
        check_backed(adata, copy=copy)
    share = get.usage(adata, key=key, normalize=True)
    chosen = pick_topics(stored(adata, key), topics)
    values = share.to_numpy(dtype=np.float64)
    used = np.asarray(adata.obsm[f"X_{key}"]).sum(1) > 0
    units = Units.read(
        adata,
        key,
        groupby=groupby,
        design=design,
        contrast=contrast,
        groups=groups,
        reference=reference,
        sample_key=sample_key,
        pair_key=pair_key,
        method=method,
        cells=cells,
        used=used,
    )
    _warn_of_training(adata, key, units)

    def observed(unit: np.ndarray, n_units: int) -> tuple[np.ndarray, np.ndarray]:
        means = unit_means(values, unit, n_units)
        return (np.log2(means + OFFSET) if units.moderated else means), means

    def of_cells(side: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        yield slice(0, values.shape[1]), values[side >= 0]

    scale = "log2 share" if units.moderated else "share"
    table = units.test(list(share.columns), observed, of_cells, floor=FLOOR, scale=scale, shown=chosen)
    return _store(adata, key, "associations", "topic", table, copy=copy)


def associate_genes(
    adata: AnnData,
    *,
    groupby: str | None = None,
    design: str | None = None,
    contrast: Contrast | None = None,
    key: str = "bcnmf",
    genes: Sequence[str] | None = None,
    groups: str | Sequence[str] | None = None,
    reference: str | None = None,
    sample_key: str | None = None,
    pair_key: str | None = None,
    method: Method = "auto",
    cells: str | np.ndarray | None = None,
    layer: str | None = None,
    log_normalize: bool | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Test whether groups differ in the expression of genes, for a look at the genes that lead a topic.

    The same tests as `associate`, on the expression matrix. With ``sample_key`` a donor's counts are added up
    (pseudobulk) and the unit is the donor; without it the cell. Counts are compared as logarithms of 1 + counts per
    10,000, with variances moderated over the genes of the factorisation. The matrix is read once in blocks and never
    becomes dense. For a differential expression analysis in its own right, models of the counts (edgeR, DESeq2 on
    pseudobulk) do better with few donors.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    groupby, design, contrast, groups, reference, sample_key, pair_key, method, cells, copy
        As in `associate`.
    key
        Name of the factorisation under which the table is stored, and whose genes are tested by default.
    genes
        Names of the genes to test; those that the factorisation used by default.
    layer
        Layer to read instead of ``adata.X``: counts, or other values with ``log_normalize=False``.
    log_normalize
        Whether to take logarithms of library-scaled values; False compares (means of) the values as they are. By
        default True where the factorisation's likelihood is one of counts.

    Returns
    -------
    `None`, or a changed copy with ``copy=True``. Fields set:

    ``.uns[key]["gene_associations"]`` : DataFrame
        A row per gene and comparison; rows of an earlier call with the same ``groupby`` are replaced. See
        `bcnmf_sc.get.associations` for the columns.

    Raises
    ------
    ValueError
        An argument or a column is not as said above, or a group has no cells or less than 2 units.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> bc.tl.associate_genes(adata, groupby="condition", sample_key="donor")
    >>> bc.get.associations(adata, table="genes")[["gene", "test", "n_group", "n_reference"]].head(1)
         gene         test  n_group  n_reference
    0  Gene 1  moderated t        3            3
    """
    check_backed(adata, copy=copy)
    W = get.loadings(adata, key=key)
    chosen = used = np.flatnonzero((W > 0).any(axis=1))
    if genes is not None:
        chosen = adata.var_names.get_indexer(list(genes))
        unknown = [gene for gene, at in zip(genes, chosen, strict=True) if at < 0]
        if unknown or not len(chosen):
            msg = f"`genes` must be names in `adata.var_names`, got {listed(unknown)}."
            raise UserError(msg)
    if log_normalize is None:
        kind = str(adata.uns[key].get("params", {}).get("likelihood", "poisson"))
        log_normalize = LIKELIHOODS[kind].counts if kind in LIKELIHOODS else True
    units = Units.read(
        adata,
        key,
        groupby=groupby,
        design=design,
        contrast=contrast,
        groups=groups,
        reference=reference,
        sample_key=sample_key,
        pair_key=pair_key,
        method=method,
        cells=cells,
        used=np.ones(adata.n_obs, bool),
    )
    source = row_source(read_matrix(adata, layer))
    if units.moderated:  # genes that are not asked for lend their variances
        chosen = np.append(chosen, np.setdiff1d(used, chosen))
    names = adata.var_names[chosen].tolist()

    def observed(unit: np.ndarray, n_units: int) -> tuple[np.ndarray, np.ndarray]:
        sums = moments(source, unit, n_units, log_normalize=False).linear
        if not log_normalize:
            means = sums[:, chosen] / np.bincount(unit[unit >= 0], minlength=n_units)[:, None]
            return means, means
        total = sums.sum(1, keepdims=True)
        linear = np.divide(PER_CELL * sums, total, out=np.zeros_like(sums), where=total > 0)[:, chosen]
        return (np.log2(1 + linear) if units.moderated else np.log1p(linear)), linear

    def of_cells(side: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        columns = _columns(source, side >= 0, chosen, log_normalize=bool(log_normalize))
        for start in range(0, len(chosen), BATCH):
            part = slice(start, min(start + BATCH, len(chosen)))
            yield part, columns[:, part].toarray()

    def of_groups(side: np.ndarray) -> Summary:
        sums = moments(source, side, 2, log_normalize=bool(log_normalize))
        n = np.bincount(side[side >= 0], minlength=2)[:, None].astype(np.float64)
        mean = sums.value[:, chosen] / n
        squares = sums.square[:, chosen] - n * mean**2
        return Summary(mean, np.maximum(squares, 0) / (n - 1), n[:, 0], sums.linear[:, chosen] / n)

    floor = PER_CELL_FLOOR if log_normalize else FLOOR
    scale = "value" if not log_normalize else f"log{'2' if units.moderated else ''} of counts per 10,000 + 1"
    table = units.test(names, observed, of_cells, of_groups, floor=floor, scale=scale, shown=genes)
    return _store(adata, key, "gene_associations", "gene", table, copy=copy)


def _warn_of_training(adata: AnnData, key: str, units: Units) -> None:
    """Warn where one side of a comparison is the background that trained background topics, and the other is not."""
    role = adata.obs.get(f"{key}_role")
    if role is None or not (adata.uns[key]["topics"]["kind"] == "background").any():
        return
    background = role.isin(["background", "both"]).to_numpy()
    for group, reference, side in units.contrasts:
        trained = [background[side == s] for s in (0, 1)]
        if not min(map(len, trained)):
            continue
        if (trained[0].all() and not trained[1].any()) or (trained[1].all() and not trained[0].any()):
            msg = (
                f"{group!r} against {reference!r} is the contrast of the fit: background topics were learned on one "
                "of them, so shares differ, also by donor, where nothing else does. For this contrast read `p_value` "
                "and `called` of `bcnmf_sc.get.topics`, which come from cells that the topics have not seen."
            )
            warnings.warn(msg, UserWarning, stacklevel=stack_level())


def _columns(source: Any, keep: np.ndarray, genes: np.ndarray, *, log_normalize: bool) -> sparse.csc_array:
    """Values of some genes in some cells, by column."""
    if not isinstance(source, LocalSource):
        msg = "`method='logistic'` by cell needs the matrix on this machine. Use 't', or name `sample_key`."
        raise UserTypeError(msg)
    blocks = []
    for part, block in source.blocks():
        x = as_matrix(block)
        x = (log_normalized(x) if log_normalize else x)[keep[part]]
        blocks.append(sparse.csr_array(x[:, genes]))
    return sparse.vstack(blocks, format="csc")


def _store(adata: AnnData, key: str, slot: str, name: str, table: pd.DataFrame, *, copy: bool) -> AnnData | None:
    """Add the rows to a stored table in place of those with the same groupby."""
    adata = adata.copy() if copy else adata
    table = table.rename(columns={"feature": name})
    earlier = adata.uns[key].get(slot)
    if earlier is not None:
        other = earlier[earlier["groupby"].astype(str) != str(table["groupby"].iloc[0])]
        if len(other):
            table = pd.concat([other, table], ignore_index=True)
    for column in ("n_group", "n_reference"):
        table[column] = table[column].astype(np.int64)
    table["separated"] = table["separated"].astype(bool)
    table.index = table.index.astype(str)
    adata.uns[key][slot] = table
    added(f"uns.{key}")
    return adata if copy else None
