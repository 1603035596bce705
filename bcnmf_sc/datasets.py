"""Data sets with a known answer: simulated, bundled, and published ones that are found in a folder or downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import ndimage, sparse

from ._published import mice_protein
from ._published_cells import kang, leukemia, mdd, mixseq
from ._simulate import BLOCK_ELEMENTS as _BLOCK_ELEMENTS
from ._simulate import check_count as _check_count
from ._simulate import check_number as _check_number
from ._simulate import simulated_programs
from ._simulate_spatial import simulated_spatial
from ._stand_in import stand_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "digits",
    "kang",
    "leukemia",
    "mdd",
    "mice_protein",
    "mixseq",
    "simulated",
    "simulated_programs",
    "simulated_spatial",
    "stand_in",
]

_IMAGE_SIDE = 16
_PHOTO_SHRINK = 2


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
    r"""Simulate counts in which some target cells carry programs that no background cell has.

    Cell :math:`i` of donor :math:`d` and gene :math:`g` get a Gamma-Poisson (negative binomial) count

    .. math:: x_{ig} \sim \mathrm{NB}\big(\mu_{ig} = e_{dg} \textstyle\sum_k H_{ik} W_{gk},\; \theta\big)

    with three kinds of programs. *Cell-type* programs (one per cell) and *shared* programs (a continuous, heavy-tailed
    amount per cell) follow one law in both conditions and make up most of the variance. *Salient* programs are active
    only in a hidden subgroup of the target cells, drawn without regard to cell type or donor. The genes of a program
    are its own, but all genes are expressed at a base level in every cell, so no gene gives the subgroup away by
    being absent elsewhere. Cells are ordered target first. No dense cells × genes array is made.

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
        Median of the expected counts per cell, whose logarithm has standard deviation 0.35.
    theta
        Inverse dispersion of the counts (variance μ + μ²/θ); infinity gives Poisson counts.
    donor_effect
        Standard deviation of the donors' log-normal effect on each gene, :math:`\log e_{dg}`; 0 for none.
        `varm["true_loadings"]` does not contain it.
    random_state
        Seed; it decides the result together with the other arguments.

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
        "protein_coding" or "lncRNA" (a tenth of the genes, none of them special to a program).
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
        _check_count(name, value, least=least)
    _check_count("n_donors", n_donors, least=1, most=min(n_target, n_background))
    n_programs = n_types + n_shared + n_salient
    _check_count("n_genes", n_genes, least=max(40, 4 * n_programs))
    _check_number("frac_active", frac_active, least=0.0, most=1.0)
    _check_number("salient_strength", salient_strength, least=0.0)
    _check_number("donor_effect", donor_effect, least=0.0)
    for name, number in (("median_library_size", median_library_size), ("theta", theta)):
        if not number > 0:
            msg = f"`{name}` must be above 0, got {number!r}."
            raise ValueError(msg)

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
    n_rows = max(1, _BLOCK_ELEMENTS // n_genes)
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


def digits(
    digits: Sequence[int] = (0, 1),
    *,
    n_background: int | None = None,
    background_scale: float = 0.8,
    random_state: int = 0,
) -> AnnData:
    """Put handwritten digits on photographs: the digit is the target-only structure, the photograph the nuisance.

    The construction of section 2.2 of the bcNMF paper, from images that scikit-learn carries with it. A target image
    is the elementwise maximum of a digit and `background_scale` times a patch of a photograph; a background image is
    `background_scale` times a patch alone. Every patch is used once, and which patch goes to which side is random, so
    the photographs' part follows one distribution in both conditions. Images have 16 × 16 pixels with values in
    [0, 1]; the digits are scikit-learn's 8 × 8 ones enlarged by cubic splines (clipped to [0, 1]), the photographs are
    made grey and averaged over 2 × 2 pixels. Patches lie on a grid of half a patch (finer when more are needed), so
    neighbouring patches overlap.

    Parameters
    ----------
    digits
        Which of the digits 0 to 9 to show; all images of them are used (about 180 of each).
    n_background
        Number of background images. `None` takes two thirds of the number of target images.
    background_scale
        Factor on the photographs' values, from 0 to 1.
    random_state
        Seed of the draw of patches.

    Returns
    -------
    AnnData, target images first, with:

    `.X` : dense float32 array, `n_obs × 256`
        Pixel values.
    `.obs["condition"]`, `.obs["digit"]` : categorical
        "target" or "background"; the digit as a string, "none" for background images.
    `.var["row"]`, `.var["col"]` : int arrays
        Position of the pixel.
    `.uns["image_shape"]` : int array
        Rows and columns: `adata.X[0].reshape(adata.uns["image_shape"])` is the first image.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.digits()
    >>> adata.obs["condition"].value_counts().to_dict()
    {'target': 360, 'background': 240}
    >>> adata.X[0].reshape(adata.uns["image_shape"]).shape
    (16, 16)
    """
    from sklearn.datasets import load_digits, load_sample_images  # needs Pillow, and only here

    shown = list(digits)
    if not shown or not set(shown) <= set(range(10)):
        msg = f"`digits` must be one or more of 0 to 9, got {digits!r}."
        raise ValueError(msg)
    _check_number("background_scale", background_scale, least=0.0, most=1.0)
    bundled = load_digits()
    chosen = np.flatnonzero(np.isin(bundled.target, shown))
    n_target = len(chosen)
    if n_background is None:
        n_background = 2 * n_target // 3
    _check_count("n_background", n_background, least=1)

    rng = np.random.default_rng(random_state)
    photos = [_shrink(photo @ np.array([0.299, 0.587, 0.114]) / 255.0) for photo in load_sample_images().images]
    patches = background_scale * _patches(rng, photos, n_target + n_background)
    enlarge = (1, _IMAGE_SIDE / 8, _IMAGE_SIDE / 8)
    strokes = ndimage.zoom(bundled.images[chosen] / 16.0, enlarge, order=3, mode="grid-constant", grid_mode=True)
    images = np.concatenate([np.maximum(strokes.clip(0.0, 1.0), patches[:n_target]), patches[n_target:]])

    names = sorted({str(digit) for digit in shown})
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical(
                ["target"] * n_target + ["background"] * n_background, categories=["target", "background"]
            ),
            "digit": pd.Categorical(
                [str(digit) for digit in bundled.target[chosen]] + ["none"] * n_background, categories=[*names, "none"]
            ),
        },
        index=[f"Image {i + 1}" for i in range(len(images))],
    )
    row, col = np.divmod(np.arange(_IMAGE_SIDE**2), _IMAGE_SIDE)
    var = pd.DataFrame(
        {"row": row, "col": col}, index=[f"Pixel {r + 1},{c + 1}" for r, c in zip(row, col, strict=True)]
    )
    flat = np.ascontiguousarray(images.reshape(len(images), -1), dtype=np.float32)
    return AnnData(flat, obs=obs, var=var, uns={"image_shape": np.array([_IMAGE_SIDE, _IMAGE_SIDE])})


def _kinds(n_types: int, n_shared: int, n_salient: int) -> tuple[tuple[str, int], ...]:
    return ("cell type", n_types), ("shared", n_shared), ("salient", n_salient)


def _program_loadings(
    rng: np.random.Generator, *, n_genes: int, n_types: int, n_programs: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Programs as columns that sum to 1, and which genes are special to one of them (disjoint sets)."""
    size = n_genes // max(20, 2 * n_programs)
    own = rng.permutation(n_genes)[: size * n_programs].reshape(n_programs, size)
    base = rng.lognormal(0.0, 1.0, n_genes)
    base /= base.sum()
    loadings = np.zeros((n_genes, n_programs))
    loadings[:, :n_types] = 0.5 * base[:, None]  # half of a cell type is what every cell does
    for k, genes in enumerate(own):
        loadings[genes, k] += rng.gamma(1.5, 1.0, size) / size
    is_program_gene = np.zeros(n_genes, dtype=bool)
    is_program_gene[own.ravel()] = True
    return loadings / loadings.sum(axis=0), is_program_gene


def _shrink(photo: NDArray[np.float64]) -> NDArray[np.float64]:
    n_rows, n_cols = (side // _PHOTO_SHRINK for side in photo.shape)
    whole = photo[: n_rows * _PHOTO_SHRINK, : n_cols * _PHOTO_SHRINK]
    return whole.reshape(n_rows, _PHOTO_SHRINK, n_cols, _PHOTO_SHRINK).mean(axis=(1, 3))


def _patches(rng: np.random.Generator, photos: list[NDArray[np.float64]], n: int) -> NDArray[np.float64]:
    """Draw n patches, each at a place of its own, on the coarsest grid that has n places."""
    views = [np.lib.stride_tricks.sliding_window_view(photo, (_IMAGE_SIDE, _IMAGE_SIDE)) for photo in photos]
    step = _IMAGE_SIDE // 2
    while True:
        places = [
            (v, y, x)
            for v, view in enumerate(views)
            for y in range(0, view.shape[0], step)
            for x in range(0, view.shape[1], step)
        ]
        if len(places) >= n:
            break
        if step == 1:
            msg = f"`n_background` must make at most {len(places)} images with the digits, got {n}: no more patches."
            raise ValueError(msg)
        step //= 2
    return np.stack([views[v][y, x] for v, y, x in (places[i] for i in rng.permutation(len(places))[:n])])
