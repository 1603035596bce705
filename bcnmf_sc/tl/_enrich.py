"""Enrichment of topics in gene sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import pandas as pd
from scipy import stats

from .. import get
from .._anndata import check_backed
from .._stored import added
from .._utils.checks import listed, one_of, random_seed, whole_number
from .._utils.errors import UserError, UserTypeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from os import PathLike

    from anndata import AnnData

    GeneSets: TypeAlias = str | PathLike[str] | Mapping[str, Iterable[str]] | pd.DataFrame


def enrich(
    adata: AnnData,
    gene_sets: GeneSets,
    *,
    key: str = "bcnmf",
    method: Literal["ora", "gsea"] = "ora",
    n_genes: int = 50,
    by: Literal["loading", "specificity", "score"] = "loading",
    topics: str | Sequence[str] | None = None,
    gene_symbols: str | None = None,
    min_size: int = 5,
    max_size: int | None = None,
    n_perms: int = 1000,
    random_state: int = 0,
    copy: bool = False,
) -> AnnData | None:
    r"""Find the gene sets that a topic's genes belong to more often than chance puts them there.

    Over-representation (``"ora"``) counts the members of a set among the ``n_genes`` leading genes of a topic. Of
    :math:`N` genes that the factorisation used, :math:`M` of them in the set, the probability of at least :math:`k`
    members among :math:`n` is hypergeometric. The universe is what could have led a topic, the genes used and not the
    genome: highly variable genes are rich in every immune or cell-cycle set whatever the topic. The test
    takes genes for independent, which co-expressed ones are not, so read p-values as a ranking.

    Ranked (``"gsea"``) takes all genes used in the order of ``by`` and needs decoupler (``pip
    install 'bcnmf-sc[enrich]'``); p-values come from ``n_perms`` permutations of the genes and are no smaller than
    ``1 / (n_perms + 1)``.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    gene_sets
        Path of a GMT file; a mapping from names of sets to their genes; or a table with the columns ``source`` (set)
        and ``target`` (gene), the network format of decoupler, whose ``weight`` is not used.
    key
        Name of the factorisation.
    method
        ``"ora"`` or ``"gsea"``.
    n_genes
        Leading genes of a topic in over-representation.
    by
        What ranks the genes, see `bcnmf_sc.get.top_genes`. By specificity, genes that lead every topic count for none.
    topics
        Topics to test: "target", "background" or "all"; a name; or a list of names. All by default.
    gene_symbols
        Column of ``adata.var`` with the names that the gene sets use, in place of ``adata.var_names``.
    min_size, max_size
        Sets with fewer or more of the genes used are left out.
    n_perms
        Permutations of the ranked method.
    random_state
        Seed of the permutations.
    copy
        Return a changed copy instead of changing ``adata``.

    Returns
    -------
    `None`, or a changed copy with ``copy=True``. Fields set:

    ``.uns[key]["enrichment"]`` : DataFrame
        A row per topic and set; rows of an earlier call with the same ``method`` are replaced. See
        `bcnmf_sc.get.enrichment` for the columns.

    Raises
    ------
    ValueError
        An argument is not as said above, or no set has enough of the genes used.
    ImportError
        The ranked method is asked for and decoupler is not installed.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> sets = {"first": adata.var_names[:20], "last": adata.var_names[-20:]}
    >>> bc.tl.enrich(adata, sets, n_genes=30)
    >>> bc.get.enrichment(adata).columns.tolist()[:5]
    ['topic', 'gene_set', 'method', 'set_size', 'n_overlap']
    """
    check_backed(adata, copy=copy)
    one_of("method", method, ("ora", "gsea"))
    whole_number("n_genes", n_genes, 1)
    whole_number("min_size", min_size, 1)
    if max_size is not None:
        whole_number("max_size", max_size, min_size)
    whole_number("n_perms", n_perms, 1)
    random_seed(random_state)
    ranked = get.top_genes(adata, topics, None, key=key, by=by, gene_symbols=gene_symbols)
    ranked["gene"] = ranked["gene"].astype(str)
    ranked = ranked.drop_duplicates(["topic", "gene"])  # of duplicate symbols, keep the leading one
    universe = sorted(ranked["gene"].unique())
    sets = {name: set(genes) & set(universe) for name, genes in _read_sets(gene_sets).items()}
    kept = {
        name: sorted(genes)
        for name, genes in sets.items()
        if len(genes) >= min_size and (max_size is None or len(genes) <= max_size)
    }
    if not kept:
        largest = max(map(len, sets.values()), default=0)
        msg = (
            f"`gene_sets` must hold sets with at least `min_size={min_size}` of the {len(universe)} genes used, got "
            f"{len(sets)} sets, the largest with {largest} of them. Genes here: {listed(universe[:3])}. "
            "Symbols or Ensembl ids? See `gene_symbols`."
        )
        raise UserError(msg)
    if method == "ora":
        if n_genes >= len(universe):
            msg = f"`n_genes` must be smaller than the {len(universe)} genes used, got {n_genes}."
            raise UserError(msg)
        table = _over_represented(ranked, kept, len(universe), n_genes)
    else:
        table = _ranked(ranked, kept, universe, by, n_perms=n_perms, random_state=random_state)
    table.insert(2, "method", method)
    table["p_adjusted"] = stats.false_discovery_control(table["p_value"])
    table = table.sort_values(["p_value", "score"], ascending=[True, False], kind="stable")
    order = {topic: k for k, topic in enumerate(ranked["topic"].cat.categories)}
    table = table.sort_values("topic", key=lambda column: column.map(order), kind="stable")[COLUMNS]

    adata = adata.copy() if copy else adata
    earlier = adata.uns[key].get("enrichment")
    if earlier is not None:
        other = earlier[earlier["method"].astype(str) != method]
        if len(other):
            table = pd.concat([other, table], ignore_index=True)
    table.index = pd.RangeIndex(len(table)).astype(str)
    adata.uns[key]["enrichment"] = table
    added(f"uns.{key}")
    return adata if copy else None


COLUMNS = [
    "topic",
    "gene_set",
    "method",
    "set_size",
    "n_overlap",
    "n_genes",
    "universe",
    "score",
    "p_value",
    "p_adjusted",
    "genes",
]


def _over_represented(
    ranked: pd.DataFrame, sets: Mapping[str, Sequence[str]], n_universe: int, n_genes: int
) -> pd.DataFrame:
    rows = []
    for topic, block in ranked.groupby("topic", observed=True):
        leading = block["gene"].tolist()[:n_genes]
        rows += [
            {
                "topic": topic,
                "gene_set": name,
                "set_size": len(genes),
                "n_overlap": len(overlap),
                "n_genes": len(leading),
                "universe": n_universe,
                "score": len(overlap) * n_universe / (len(genes) * len(leading)),
                "genes": ";".join(overlap),
            }
            for name, genes in sets.items()
            for overlap in [[gene for gene in leading if gene in set(genes)]]
        ]
    table = pd.DataFrame(rows)
    # the probability of this many or more
    table["p_value"] = stats.hypergeom.sf(
        table["n_overlap"] - 1, table["universe"], table["set_size"], table["n_genes"]
    )
    return table


def _ranked(
    ranked: pd.DataFrame,
    sets: Mapping[str, Sequence[str]],
    universe: Sequence[str],
    by: str,
    *,
    n_perms: int,
    random_state: int,
) -> pd.DataFrame:
    try:
        import decoupler as dc
    except ImportError as error:
        error.add_note("`method='gsea'` needs decoupler: pip install 'bcnmf-sc[enrich]'. `method='ora'` does not.")
        raise
    values = ranked.pivot(index="topic", columns="gene", values=by)[list(universe)]
    net = pd.DataFrame([(name, gene) for name, genes in sets.items() for gene in genes], columns=["source", "target"])
    names, members, starts, sizes = dc.pp.idxmat(np.asarray(universe), net)
    matrix = values.to_numpy(dtype=np.float64)
    seed = random_state % (2**32 - 1) + 1  # in 32 bits; seed 0 would leave the genes in their order
    score, p = dc.mt.gsea.func(matrix, members, starts, sizes, times=n_perms, seed=seed)
    p = np.maximum(np.asarray(p), 1 / (n_perms + 1))
    rows = [
        {
            "topic": topic,
            "gene_set": str(name),
            "set_size": int(sizes[j]),
            "n_overlap": int(sizes[j]),
            "n_genes": len(universe),
            "universe": len(universe),
            "score": float(score[i, j]),
            "p_value": float(p[i, j]),
            "genes": ";".join(values.iloc[i][sets[str(name)]].sort_values(ascending=False).index[:10]),
        }
        for i, topic in enumerate(values.index)
        for j, name in enumerate(names)
    ]
    return pd.DataFrame(rows)


def _read_sets(gene_sets: GeneSets) -> dict[str, list[str]]:
    """Gene sets by name, from any of the forms they come in."""
    if isinstance(gene_sets, pd.DataFrame):
        if not {"source", "target"} <= set(gene_sets.columns):
            got = listed(gene_sets.columns)
            msg = f"`gene_sets` as a table must have the columns 'source' and 'target', got {got}."
            raise UserError(msg)
        return {
            str(name): genes.astype(str).tolist()
            for name, genes in gene_sets.groupby("source", observed=True, sort=False)["target"]
        }
    if isinstance(gene_sets, Mapping):
        wrong = [name for name, genes in gene_sets.items() if isinstance(genes, str)]
        if wrong:
            msg = f"`gene_sets` must map each name to several genes, got a string for {wrong[0]!r}."
            raise UserTypeError(msg)
        return {str(name): [str(gene) for gene in genes] for name, genes in gene_sets.items()}
    sets: dict[str, list[str]] = {}
    # spreadsheets write a byte-order mark, which would be part of the first name
    for number, line in enumerate(Path(gene_sets).read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        name, *rest = line.rstrip("\r\n").split("\t")
        if len(rest) < 2:  # noqa: PLR2004
            msg = (
                f"`gene_sets` must be a GMT file, with lines of name, description and genes, separated by tabs; line "
                f"{number} of {gene_sets} is {line[:60]!r}."
            )
            raise UserError(msg)
        if name in sets:
            msg = f"`gene_sets` must name each set once, got {name!r} again in line {number} of {gene_sets}."
            raise UserError(msg)
        sets[name] = [gene.split(",")[0].strip() for gene in rest[1:] if gene.strip()]
    return sets
