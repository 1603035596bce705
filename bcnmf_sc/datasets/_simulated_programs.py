"""Simulated case-control counts with known programs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from .._utils.checks import number, random_seed, whole_number
from ._simulated import BLOCK_ELEMENTS


def simulated_programs(
    n_control: int = 3000,
    n_case: int = 2000,
    n_genes: int = 1500,
    *,
    n_shared: int = 8,
    n_new: int = 3,
    frac_active: float = 0.15,
    strength: float = 0.2,
    overlap: float = 0.6,
    base: float = 0.3,
    shift: float = 1.0,
    median_library_size: float = 500.0,
    theta: float = 10.0,
    n_donors: int = 4,
    random_state: int = 0,
) -> AnnData:
    r"""Simulate counts in which cases mix the controls' programs with a few of their own, as a hard test for DeltaNMF.

    Every cell mixes all *shared* programs, in sparse random proportions (Dirichlet, 0.3). Each *new* program is active
    in a few case cells, where it makes up a small share of the counts. Programs overlap: each has genes of its own and,
    at half the weight, some of the others'; shared programs also contain ubiquitously expressed genes. The counts are

    .. math:: x_{ig} \sim \mathrm{NB}\big(\mu_{ig} = \ell_i \textstyle\sum_k H_{ik} W_{gk},\; \theta\big)

    With the defaults, about 18 % of them are non-zero. Control cells come first. No dense cells × genes array is made.

    Parameters
    ----------
    n_control
        Number of control cells.
    n_case
        Number of case cells.
    n_genes
        Number of genes, at least 4 per program.
    n_shared
        Number of programs of both conditions.
    n_new
        Number of programs of the cases alone.
    frac_active
        Probability that a case cell has a given new program.
    strength
        Mean share of an active new program in its cell's counts, at most 0.5; those of a cell sum to at most 0.8.
    overlap
        Number of genes that a program shares with others, relative to the number of its own, at most 1.
    base
        Weight of the ubiquitously expressed genes in a shared program, relative to its own genes.
    shift
        Factor on the Dirichlet parameter of the first shared program in cases; 1 for no shift.
    median_library_size
        Median of the expected counts per cell; their logarithm has standard deviation 0.35.
    theta
        Inverse dispersion of the counts; infinity gives Poisson counts.
    n_donors
        Number of donors in each condition; there are no donor effects.
    random_state
        Seed; the result is determined by it and the other arguments.

    Returns
    -------
    AnnData with:

    `.X` : CSR float32 matrix, `n_obs × n_vars`
        Counts.
    `.obs["condition"]`, `.obs["donor"]` : categorical
        "ctrl" or "case"; the donor.
    `.obs["library_size"]` : float array
        Expected counts of the cell.
    `.var["program"]` : categorical
        The program to which the gene belongs, or "none".
    `.varm["true_loadings"]` : float array, `n_vars × n_programs`
        The programs; columns sum to 1.
    `.varm["embedding"]` : float32 array, `n_vars × 16`
        Noisy vectors in which genes of a program are close, like gene embeddings of a foundation model.
    `.obsm["true_usage"]` : float array, `n_obs × n_programs`
        Share of each program in the cell's expected counts.
    `.uns["truth"]` : DataFrame
        `program` (name) and `kind` ("shared" or "new"), in the order of the columns above.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated_programs(300, 200, 300, n_shared=4, n_new=1)
    >>> adata.uns["truth"]["program"].tolist()
    ['shared 1', 'shared 2', 'shared 3', 'shared 4', 'new 1']
    >>> float(adata.obsm["true_usage"][:300, 4].max())
    0.0
    """
    for name, value in (("n_control", n_control), ("n_case", n_case), ("n_shared", n_shared), ("n_new", n_new)):
        whole_number(name, value, 0 if name == "n_new" else 1)
    whole_number("n_donors", n_donors, 1, min(n_control, n_case), "the smaller of control and case cells")
    n_programs = n_shared + n_new
    whole_number("n_genes", n_genes, 4 * (n_programs + 2))
    for name, share, most in (("frac_active", frac_active, 1), ("strength", strength, 0.5), ("overlap", overlap, 1)):
        number(name, share, most=most)
    number("base", base)
    for name, size in (("shift", shift), ("median_library_size", median_library_size)):
        number(name, size, closed="right")
    number("theta", theta, most=np.inf, closed="right")
    random_seed(random_state)

    rng = np.random.default_rng(random_state)
    size = n_genes // (n_programs + 2)
    genes = rng.permutation(n_genes)
    own = genes[: size * n_programs].reshape(n_programs, size)
    level = rng.lognormal(0.0, 1.0, n_genes)
    loadings = np.zeros((n_genes, n_programs))
    for k in range(n_programs):
        loadings[own[k], k] += rng.gamma(1.0, 1.0, size) * level[own[k]]
        borrowed = rng.choice(genes, int(overlap * size), replace=False)
        loadings[borrowed, k] += 0.5 * rng.gamma(1.0, 1.0, len(borrowed)) * level[borrowed]
    loadings[:, :n_shared] += base * level[:, None] * loadings[:, :n_shared].sum(0) / level.sum()
    loadings /= loadings.sum(0)

    n_obs = n_control + n_case
    is_case = np.arange(n_obs) >= n_control
    usage = np.zeros((n_obs, n_programs))
    concentration = np.full(n_shared, 0.3)
    usage[~is_case, :n_shared] = rng.dirichlet(concentration, n_control)
    concentration[0] *= shift
    usage[is_case, :n_shared] = rng.dirichlet(concentration, n_case)
    new = (rng.random((n_case, n_new)) < frac_active) * rng.beta(2.0, 2.0, (n_case, n_new)) * 2 * strength
    new *= 0.8 / np.maximum(new.sum(1, keepdims=True), 0.8)
    usage[is_case, :n_shared] *= 1 - new.sum(1, keepdims=True)
    usage[is_case, n_shared:] = new
    library_size = median_library_size * rng.lognormal(0.0, 0.35, n_obs)

    blocks = []
    n_rows = max(1, BLOCK_ELEMENTS // n_genes)
    for start in range(0, n_obs, n_rows):
        rows = slice(start, start + n_rows)
        mean = (usage[rows] @ loadings.T) * library_size[rows, None]
        if np.isfinite(theta):
            mean *= rng.gamma(theta, 1.0 / theta, size=mean.shape)
        blocks.append(sparse.csr_matrix(rng.poisson(mean).astype(np.float32)))

    names = [f"shared {k + 1}" for k in range(n_shared)] + [f"new {k + 1}" for k in range(n_new)]
    truth = pd.DataFrame({"program": names, "kind": ["shared"] * n_shared + ["new"] * n_new})
    truth.index = truth.index.astype(str)
    program = np.full(n_genes, -1)
    program[own] = np.arange(n_programs)[:, None]
    embedding = rng.normal(size=(n_genes, 16)) + 1.5 * rng.normal(size=(n_programs + 1, 16))[program]
    donor = np.where(is_case, n_donors, 0) + rng.permutation(n_obs) % n_donors
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical(np.where(is_case, "case", "ctrl"), categories=["ctrl", "case"]),
            "donor": pd.Categorical.from_codes(
                donor, [f"{condition} {i + 1}" for condition in ("ctrl", "case") for i in range(n_donors)]
            ),
            "library_size": library_size,
        },
        index=[f"Cell {i + 1}" for i in range(n_obs)],
    )
    var = pd.DataFrame(
        {"program": pd.Categorical.from_codes(program + 1, ["none", *names])},
        index=[f"Gene {i + 1}" for i in range(n_genes)],
    )
    return AnnData(
        sparse.vstack(blocks, format="csr"),
        obs=obs,
        var=var,
        varm={"true_loadings": loadings, "embedding": embedding.astype(np.float32)},
        obsm={"true_usage": usage},
        uns={"truth": truth},
    )
