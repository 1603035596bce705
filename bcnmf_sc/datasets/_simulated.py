"""Simulated counts with known topics, donors and a hidden subgroup."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from .._utils.checks import number, random_seed, whole_number

BLOCK_ELEMENTS = 1_000_000
"""Entries of a dense block of the simulation; changing it changes the result of a seed."""

if TYPE_CHECKING:
    from numpy.typing import NDArray


def simulated(
    n_target: int = 600,
    n_background: int = 400,
    n_genes: int = 500,
    *,
    n_types: int = 4,
    n_shared: int = 2,
    n_salient: int = 2,
    n_donors: int = 3,
    frac_active: float = 0.5,
    salient_strength: float = 0.3,
    median_library_size: float = 800.0,
    theta: float = 5.0,
    donor_effect: float = 0.1,
    random_state: int = 0,
) -> AnnData:
    r"""Simulate counts in which some target cells express programs that no background cell has.

    Cell :math:`i` of donor :math:`d` and gene :math:`g` get a Gamma-Poisson (negative binomial) count

    .. math:: x_{ig} \sim \mathrm{NB}\big(\mu_{ig} = e_{dg} \textstyle\sum_k H_{ik} W_{gk},\; \theta\big)

    with three kinds of programs. *Cell-type* programs (one per cell) and *shared* programs (a continuous, heavy-tailed
    amount per cell) have the same distribution in both conditions and make up most of the variance. *Salient* programs
    are active only in a hidden subgroup of the target cells, drawn independently of cell type and donor. Programs have
    disjoint sets of genes, but all genes are expressed at a base level in every cell, so no gene identifies the
    subgroup by being absent elsewhere. Target cells come first. No dense cells × genes array is made.

    Parameters
    ----------
    n_target
        Number of target cells (condition "case").
    n_background
        Number of background cells (condition "ctrl").
    n_genes
        Number of genes, at least 40 and at least 4 per program.
    n_types
        Number of cell types.
    n_shared
        Number of continuous programs present in both conditions.
    n_salient
        Number of target-only programs; an active cell has exactly one of them.
    n_donors
        Number of donors in each condition; donors are nested in conditions.
    frac_active
        Probability that a target cell belongs to the hidden subgroup.
    salient_strength
        Mean activity of a salient program relative to that of a cell's type program, which is 1.
    median_library_size
        Median of the expected counts per cell; their logarithm has standard deviation 0.35.
    theta
        Inverse dispersion of the counts (variance μ + μ²/θ); infinity gives Poisson counts.
    donor_effect
        Standard deviation of the donors' log-normal effect on each gene, :math:`\log e_{dg}`; 0 for none.
        `varm["true_loadings"]` does not contain it.
    random_state
        Seed; the result is determined by it and the other arguments.

    Returns
    -------
    AnnData with:

    `.X` : CSR float32 matrix, `n_obs × n_vars`
        Counts.
    `.obs["condition"]`, `.obs["donor"]`, `.obs["cell_type"]`, `.obs["subgroup"]` : categorical
        "case" or "ctrl"; the donor; the cell type; "none" or the name of the active salient program.
    `.obs["library_size"]` : float array
        Expected counts of the cell, without the donor effect.
    `.var["gene_biotype"]` : categorical
        "protein_coding" or "lncRNA" (a tenth of the genes, none of them specific to a program).
    `.varm["true_loadings"]` : float array, `n_vars × n_programs`
        The programs; columns sum to 1.
    `.obsm["true_usage"]` : float array, `n_obs × n_programs`
        Expected counts per program; rows sum to the library size.
    `.uns["truth"]` : DataFrame
        `program` (name) and `kind` ("celltype", "shared" or "salient"), in the order of the columns above.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> adata.shape
    (1000, 500)
    >>> list(adata.uns["truth"]["kind"].unique())
    ['celltype', 'shared', 'salient']
    >>> sorted(adata.obs.query("condition == 'ctrl'")["subgroup"].unique())
    ['none']
    """
    for name, value, least in (
        ("n_target", n_target, 1),
        ("n_background", n_background, 1),
        ("n_types", n_types, 1),
        ("n_shared", n_shared, 0),
        ("n_salient", n_salient, 0),
    ):
        whole_number(name, value, least)
    whole_number("n_donors", n_donors, 1, min(n_target, n_background), "the smaller of target and background cells")
    n_programs = n_types + n_shared + n_salient
    whole_number("n_genes", n_genes, max(40, 4 * n_programs))
    number("frac_active", frac_active, most=1)
    number("salient_strength", salient_strength)
    number("donor_effect", donor_effect)
    number("median_library_size", median_library_size, closed="right")
    number("theta", theta, most=np.inf, closed="right")
    random_seed(random_state)

    rng = np.random.default_rng(random_state)
    truth = pd.DataFrame(
        {
            "program": [f"{kind} {i + 1}" for kind, n in _kinds(n_types, n_shared, n_salient) for i in range(n)],
            "kind": [kind.replace(" ", "") for kind, n in _kinds(n_types, n_shared, n_salient) for _ in range(n)],
        }
    )
    truth.index = truth.index.astype(str)
    loadings, is_program_gene = _program_loadings(rng, n_genes=n_genes, n_types=n_types, n_programs=n_programs)

    n_obs = n_target + n_background
    is_target = np.arange(n_obs) < n_target
    donor = np.concatenate(
        [
            rng.permutation(np.arange(n_target) % n_donors),
            rng.permutation(np.arange(n_background) % n_donors) + n_donors,
        ]
    )
    composition = rng.dirichlet(np.full(n_types, 20.0), size=2 * n_donors)
    cell_type = (rng.random(n_obs)[:, None] > composition.cumsum(axis=1)[donor, :-1]).sum(axis=1)
    subgroup = np.full(n_obs, -1)
    if n_salient:
        active = is_target & (rng.random(n_obs) < frac_active)
        subgroup[active] = rng.integers(n_salient, size=active.sum())

    usage = np.zeros((n_obs, n_programs))
    usage[np.arange(n_obs), cell_type] = 1.0
    usage[:, n_types : n_types + n_shared] = rng.gamma(0.6, 0.35, size=(n_obs, n_shared))
    carriers = np.flatnonzero(subgroup >= 0)
    usage[carriers, n_types + n_shared + subgroup[carriers]] = salient_strength * rng.gamma(4.0, 0.25, len(carriers))
    library_size = median_library_size * rng.lognormal(0.0, 0.35, n_obs)
    usage *= (library_size / usage.sum(axis=1))[:, None]

    gene_effect = np.exp(rng.normal(0.0, donor_effect, size=(2 * n_donors, n_genes)))
    blocks = []
    n_rows = max(1, BLOCK_ELEMENTS // n_genes)
    for start in range(0, n_obs, n_rows):
        rows = slice(start, start + n_rows)
        mean = (usage[rows] @ loadings.T) * gene_effect[donor[rows]]
        if np.isfinite(theta):
            mean *= rng.gamma(theta, 1.0 / theta, size=mean.shape)
        blocks.append(sparse.csr_matrix(rng.poisson(mean).astype(np.float32)))
    counts = sparse.vstack(blocks, format="csr")

    other_genes = rng.permutation(np.flatnonzero(~is_program_gene))
    biotype = np.full(n_genes, "protein_coding", dtype=object)
    biotype[other_genes[: n_genes // 10]] = "lncRNA"
    donor_names = [f"{condition} {i + 1}" for condition in ("case", "ctrl") for i in range(n_donors)]
    salient_names = list(truth["program"][n_types + n_shared :])
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical(np.where(is_target, "case", "ctrl"), categories=["case", "ctrl"]),
            "donor": pd.Categorical.from_codes(donor, donor_names),
            "cell_type": pd.Categorical.from_codes(cell_type, list(truth["program"][:n_types])),
            "subgroup": pd.Categorical.from_codes(subgroup + 1, ["none", *salient_names]),
            "library_size": library_size,
        },
        index=[f"Cell {i + 1}" for i in range(n_obs)],
    )
    var = pd.DataFrame({"gene_biotype": pd.Categorical(biotype)}, index=[f"Gene {i + 1}" for i in range(n_genes)])
    return AnnData(
        counts, obs=obs, var=var, varm={"true_loadings": loadings}, obsm={"true_usage": usage}, uns={"truth": truth}
    )


def _kinds(n_types: int, n_shared: int, n_salient: int) -> tuple[tuple[str, int], ...]:
    return ("cell type", n_types), ("shared", n_shared), ("salient", n_salient)


def _program_loadings(
    rng: np.random.Generator, *, n_genes: int, n_types: int, n_programs: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return programs as columns that sum to 1, and the genes specific to each of them (disjoint sets)."""
    size = n_genes // max(20, 2 * n_programs)
    own = rng.permutation(n_genes)[: size * n_programs].reshape(n_programs, size)
    base = rng.lognormal(0.0, 1.0, n_genes)
    base /= base.sum()
    loadings = np.zeros((n_genes, n_programs))
    loadings[:, :n_types] = 0.5 * base[:, None]  # half of a cell type's expression is common to all cells
    for k, genes in enumerate(own):
        loadings[genes, k] += rng.gamma(1.5, 1.0, size) / size
    is_program_gene = np.zeros(n_genes, dtype=bool)
    is_program_gene[own.ravel()] = True
    return loadings / loadings.sum(axis=0), is_program_gene
