"""Factorisations: read from the AnnData, run the engine, write back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
from anndata import AnnData

from ..._anndata import MaskVar, Reading
from ..._stored import CELL_FIELDS
from ..._utils.checks import number, one_of, start_loadings, whole_number
from ..._utils.errors import UserError
from ...engine import fit
from ...engine.bcnmf.ensemble import fit_model, spawn
from .._design import design_columns
from .._run import Likelihood, LikelihoodName, RunOptions, run_settings
from .donors import BY_CELL, unnamed_donors, warn_of_unnamed
from .folds import deal, design_of, score
from .problem import SAFE_ALPHA, Problem, default_alpha, warn_of_depth, warn_of_logs
from .select import ALPHAS, alpha_path, choose_numbers

if TYPE_CHECKING:
    from mudata import MuData

N_FOLDS = 5
"""Folds on which the number of background topics is chosen where cells are not scored."""


def bcnmf(  # noqa: PLR0913 (what is modelled; how it is run is one group)
    adata: AnnData | MuData,
    *,
    background_key: str,
    background: str | Sequence[str] | Mapping[str, float],
    target: str | Sequence[str] | None = None,
    n_topics: int | Literal["auto"] = 10,
    n_background_topics: int | Literal["auto"] = 0,
    basis: Literal["split", "shared"] = "split",
    cross_fit: int | None = 5,
    sample_key: str | None = None,
    design: str | None = None,
    strata_key: str | None = None,
    cell_fpr: float = 0.05,
    fdr_level: float = 0.05,
    alpha: float | Literal["auto"] | None = None,
    alpha_scale: Literal["effective", "sum"] = "effective",
    likelihood: LikelihoodName | Likelihood | Mapping[str, LikelihoodName | Likelihood] = "poisson",
    weights: Mapping[str, float] | None = None,
    layer: str | Mapping[str, str | None] | None = None,
    mask_var: MaskVar | Mapping[str, MaskVar] = "auto",
    init: np.ndarray | None = None,
    random_state: int = 0,
    key_added: str = "bcnmf",
    copy: bool = False,
    **run: Unpack[RunOptions],
) -> AnnData | MuData | None:
    r"""Find topics of the target cells that the background cells do not have :cite:p:`li2026disentangling`.

    Target cells :math:`X` and background cells :math:`Y` share loadings :math:`W` (genes x topics), and every cell has
    its own usage (:math:`H_X`, :math:`H_Y`, cells x topics):

    .. math:: \min_{W \ge 0} \; \min_{H_X \ge 0} L(X, H_X W^\top) - \alpha \min_{H_Y \ge 0} L(Y, H_Y W^\top)

    where :math:`L` is half the deviance of the likelihood. Each usage is the best fit of its cell, so a cell's usage
    depends on the loadings alone. Larger ``alpha`` presses harder against what the background also has. With
    ``alpha_scale="effective"`` cell numbers and library sizes are taken out, and ``1 / alpha`` reads as a fold change:
    a gene whose share of the background's counts exceeds ``1 / alpha`` times its share of the target's is suppressed.

    The modalities of a MuData share the usage; each has loadings and a likelihood of its own, and
    :math:`L = \sum_m w_m L_m` in both parts of the objective.

    Parameters
    ----------
    adata
        Cells x genes, counts for the count likelihoods. ``X`` and layers are only read. Or a MuData whose modalities
        have the same cells.
    background_key
        Column of ``adata.obs`` that tells target from background.
    background
        Its category, or categories, that serve as background; a mapping gives each background its own alpha, in the
        scale of ``alpha_scale``, in place of ``alpha``.
    target
        Its category, or categories, that serve as target. By default all that are not background; ``"all"`` takes every
        labelled cell, background included. Cells in neither are projected on the result.
    n_topics
        Number of topics; with background topics, of target topics. ``"auto"``, beside background topics, tries 1 to 10
        and takes the smallest number that describes held-out target cells as well as the best does, within one standard
        error over folds or 5 % of the gain. More topics than programs split a program.
    n_background_topics
        Number of topics that are first learned on the background alone and then held fixed: a home for what target and
        background share, recommended on counts. ``"auto"`` tries 5, 10, 20 and 40 and takes the largest held-out gain
        ratio. 0 is the paper's plain contrast.
    basis
        How background topics are used. ``"split"``: target topics are fitted beside them. ``"shared"``: contrast topics
        are fitted as without them, then all cells on both.
    cross_fit
        With background topics: number of folds out of which cells and topics are scored, each fold by topics that have
        not seen it. `None` scores nothing.
    sample_key
        Column of ``adata.obs`` with the donor of each cell: folds and tests of topics are then by donor. Without it
        cells may be called for what sets their donors apart; where a column looks like the donors, no topic is called,
        and a warning names it. ``"cells"`` takes cells as the units, as for cell lines or a single donor.
    design
        Formula of the tests of topics by donor, such as ``"~ condition + age + sex"`` where ``background_key`` is
        ``"condition"``: columns of ``adata.obs`` that describe donors and are adjusted for. ``(1 | patient)`` names
        units that belong together; by default these are the samples of a donor.
    strata_key
        Column of ``adata.obs`` with labels such as cell types, within which cells are compared. By default cells are
        compared in strata of similar background-topic usage, so that a difference in composition is not taken for a
        program. Cells without a label, or with one that the background lacks, join the stratum whose usage is nearest.
    cell_fpr
        Share of background cells that would be called as well: the false-positive rate of called cells.
    fdr_level
        False discovery rate of called topics.
    alpha
        Strength of the contrast, at least 0 (none). By default 0.3, with background topics 0 (``"split"``) or 0.5
        (``"shared"``). ``"auto"`` takes what `select_alpha` would choose; not for ``"split"``. Where the fit warns, it
        is too large for the data.
    alpha_scale
        ``"effective"``: ``alpha`` is the weight of the background's total against the target's. ``"sum"``: the weight
        of a background cell against a target cell, as the paper has it.
    likelihood
        ``"poisson"``, ``"nb"`` (negative binomial) or ``"zinb"`` (with dropout) for counts; ``"gaussian"`` (squared
        error) for images, proteins and other values that are not counts. Under ``"nb"`` and ``"zinb"`` a dispersion,
        and a dropout, is estimated for each gene on the target's cells; an object of `bcnmf_sc.likelihoods` sets them
        instead, as ``NegativeBinomial(dispersion=2.0)``. For a MuData, one for all modalities or a mapping, as
        ``{"rna": "poisson", "protein": "gaussian"}``.
    weights
        Of the modalities of a MuData, above 0; 1 where none is given.
    layer
        Layer to read instead of ``adata.X``; of a MuData one for all, or a mapping of modalities.
    mask_var
        Genes to use: a bool column of ``adata.var`` or a bool array. ``"auto"`` uses ``highly_variable`` where it is
        present, `None` uses all genes. Of a MuData one for all, or a mapping of modalities.
    init
        Loadings to start from, genes used x topics. Drawn with ``random_state`` by default; the usage starts from each
        cell's total spread evenly over the topics.
    random_state
        Seed of the start. The result depends on nothing else.
    key_added
        Name under which the results are stored.
    copy
        Return a changed copy instead of changing ``adata``.
    **run
        How to run: see `RunOptions`.

    Returns
    -------
    `None`, or a changed copy with ``copy=True``. Fields set:

    ``.obsm["X_" + key_added]`` : float32 array, n_obs x n_topics
        Usage in counts: a row sums to about the cell's total over the genes used. Of target cells it is :math:`H_X`, of
        background cells :math:`H_Y`; all other cells are projected.
    ``.varm[key_added]`` : float32 array, n_vars x n_topics
        Loadings. Columns sum to 1; genes not used are zero.
    ``.obs[key_added + "_role"]`` : categorical
        ``target``, ``background``, ``both`` or ``projected``.
    ``.obs[key_added + "_target_share"]``, ``.obs[key_added + "_enriched"]``, ``.obs[key_added + "_pvalue"]``
        With background topics and ``cross_fit``: a cell's share of usage on target topics under a model that has not
        seen the cell; whether its p is at most ``cell_fpr``; its empirical p against background cells of its stratum
        and depth, NaN for cells without counts.
    ``.obs[key_added + "_padj"]`` : float32
        The p-values of target cells adjusted by Benjamini and Hochberg; NaN for all other cells.
    ``.var[key_added + "_suppressed"]`` : bool
        Genes that the background outweighs at this alpha; their loadings vanish.
    ``.var[key_added + "_dispersion"]``, ``.var[key_added + "_dropout"]`` : float32
        The likelihood's parameters, where it has them; NaN for genes not used.
    ``.uns[key_added]`` : dict
        ``params``; ``topics`` (a row per topic: kind, mean share of usage in target and background, log2 of their
        ratio; ``profile_cosine``, the cosine of the loadings with the mean profile of all target cells, which ambient
        RNA has; with background topics and ``cross_fit`` also the comparison of target and background out of fold: the
        mean difference ``log2_fold_change`` of the donors' shares with its 95 % interval ``ci_low`` to ``ci_high``,
        its two-sided ``p_value`` and ``p_adjusted``, whether the topic is ``called`` at ``fdr_level``, its
        ``direction`` (target topics are called where they are gained, background topics also where they are lost),
        ``unmatched``, the share of a target topic's usage in cells that no background cell is like, and ``stability``,
        the mean cosine with the matched topics of the folds);
        ``donors``, with ``sample_key``: what was compared, a row per donor and condition (see
        `bcnmf_sc.get.donors`);
        ``loss`` (per check: iteration, target and background loss, contrast, change of the loadings); ``n_iter``;
        ``converged``; ``alpha_effective``; ``alphas`` (per background, in both scales); ``deviance_explained`` of
        target and background, against the one-topic model of their mean profile; ``weight`` (genes with loadings x
        topics: what the loadings rest on, from which `update` goes on); ``selection`` where a number of topics is
        ``"auto"``: ``n_topics`` or ``n_background_topics`` as chosen, ``reason`` in words and ``table``, a row per pair
        of numbers tried.
    ``.uns[key_added + "_alpha"]`` : dict
        With ``alpha="auto"``: the choice, its table and its reason, as `select_alpha` has them.

    In a MuData, ``.varm``, ``.var`` and a copy of ``params`` and ``topics`` are written to each modality, all else to
    the whole. Loadings of all modalities together sum to 1 in each topic; ``topics`` has a column
    ``share_<modality>`` for the part of each.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> adata.obsm["X_bcnmf"].shape, adata.varm["bcnmf"].shape
    ((1000, 4), (500, 4))
    """
    if n_topics == "auto":
        _check_auto(n_background_topics, init, alpha)
    alpha = default_alpha(n_background_topics, basis) if alpha is None else alpha
    by_cell = sample_key == BY_CELL
    sample_key = None if by_cell else sample_key
    _check_ways(basis, cross_fit, alpha_scale, {"cell_fpr": cell_fpr, "fdr_level": fdr_level})
    _check_alphas(alpha, background, alpha_scale, split=n_background_topics != 0 and basis == "split")
    asked = Reading(
        key_added,
        copy,
        background_key,
        background,
        target,
        sample_key=sample_key,
        columns=design_columns(design),
        likelihood=likelihood,
        weights=weights,
        strata_key=strata_key,
        layer=layer,
        mask_var=mask_var,
        sizes={} if n_topics == "auto" else {"n_topics": n_topics},
        writes=("role",) if n_background_topics == 0 or cross_fit is None else CELL_FIELDS,
        n_background_topics=0 if n_background_topics == "auto" else n_background_topics,
        random_state=random_state,
        run=run,
    )
    problem = Problem.read(adata, asked, several=True)
    data = problem.data
    comparison = design_of(data, design)
    scored = n_background_topics != 0 and cross_fit is not None
    unnamed = unnamed_donors(data.adata.obs, data.design) if scored and sample_key is None and not by_cell else None
    if unnamed is not None:
        warn_of_unnamed(unnamed)
    warn_of_logs(data)
    warn_of_depth(data)
    start = None if n_topics == "auto" else start_loadings(init, len(data.genes), n_topics)
    notes: dict[str, Any] = {}
    if alpha == "auto":
        assert n_topics != "auto"  # as checked
        choice = alpha_path(problem, ALPHAS, n_topics=n_topics)
        notes, alpha = {"_alpha": choice | {"design": data.question}}, choice["alpha"]
    given = background if isinstance(background, Mapping) else dict.fromkeys(data.design.backgrounds, alpha)
    alphas = {str(name): float(value) for name, value in given.items()}
    contrast = problem.contrast(alphas, alpha_scale, pooled=not isinstance(background, Mapping))
    settings = run_settings(run, accelerate=contrast.total <= SAFE_ALPHA)
    params: dict[str, Any] = {
        "background_key": background_key,
        "background": list(alphas),
        "target": target if target is None or isinstance(target, str) else [str(name) for name in target],
        "alpha": list(alphas.values()),
        "alpha_scale": alpha_scale,
        "n_background_topics": n_background_topics,
        "basis": basis,
        "cross_fit": cross_fit,
        "sample_key": sample_key,
        "by_cell": by_cell or None,
        "unnamed_donors": unnamed,
        "design": design,
        "strata_key": strata_key,
        "cell_fpr": cell_fpr,
        "fdr_level": fdr_level,
        "init": "random" if init is None else "given",
        "tol": settings.tol,
        "max_iter": settings.max_iter,
        "accelerate": settings.accelerate,
    }
    fold_seed, select_seed, score_seed = spawn(random_state, 3)
    selection: dict[str, Any] = {}
    fold = None
    if n_background_topics != 0:
        fold = deal(data.design, data.samples, cross_fit or N_FOLDS, fold_seed)
        if "auto" in (n_topics, n_background_topics):
            n_topics, n_background_topics, chosen = choose_numbers(
                problem,
                contrast,
                fold,
                n_topics=n_topics,
                n_background_topics=n_background_topics,
                basis=basis,
                random_state=select_seed,
                run=settings,
            )
            selection = {"selection": chosen}
    assert n_topics != "auto"
    assert n_background_topics != "auto"
    params["n_topics"] = n_topics
    model = problem.model(contrast, n_topics, n_background_topics, basis)
    factors = fit_model(data.source, model, start=start, random_state=random_state, run=settings)
    record = problem.record(factors, contrast, params, n_topics, run=settings) | selection
    cells: dict[str, np.ndarray] = {}
    if fold is not None and cross_fit is not None:
        levels = (cell_fpr, fdr_level)
        cells, found = score(
            data,
            model,
            factors,
            fold,
            record["topics"],
            comparison,
            tested=unnamed is None,
            levels=levels,
            random_state=score_seed,
            run=settings,
        )
        record |= found
    return problem.write(factors, contrast, record, cells, notes)


def nmf(
    adata: AnnData,
    *,
    n_topics: int = 10,
    cells: np.ndarray | None = None,
    likelihood: LikelihoodName | Likelihood = "poisson",
    layer: str | None = None,
    mask_var: MaskVar = "auto",
    init: np.ndarray | None = None,
    random_state: int = 0,
    key_added: str = "nmf",
    copy: bool = False,
    **run: Unpack[RunOptions],
) -> AnnData | None:
    r"""Factorise cells without a contrast: non-negative matrix factorisation :cite:p:`lee2000algorithms`.

    .. math:: \min_{W \ge 0, H \ge 0} L(X, H W^\top)

    It is `bcnmf` with ``alpha=0``, for comparison.

    Parameters
    ----------
    adata
        Cells x genes.
    n_topics
        Number of topics.
    cells
        The cells to learn from, a bool for each: an array in their order, or a Series by their names; the others are
        projected. All by default.
    likelihood, layer, mask_var, init, random_state, key_added, copy, **run
        As in `bcnmf`.

    Returns
    -------
    `None`, or a changed copy with ``copy=True``. Fields set, as `bcnmf` has them:

    ``.obsm["X_" + key_added]``, ``.varm[key_added]``
        Usage and loadings.
    ``.obs[key_added + "_role"]`` : categorical
        ``target`` or ``projected``.
    ``.var[key_added + "_dispersion"]``, ``.var[key_added + "_dropout"]`` : float32
        The likelihood's parameters, where it has them.
    ``.uns[key_added]`` : dict
        ``params``, ``topics`` (kind and mean share of usage), ``loss``, ``n_iter``, ``converged``,
        ``deviance_explained`` (of the target) and ``weight``.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.nmf(adata, n_topics=4)
    >>> adata.obsm["X_nmf"].shape
    (1000, 4)
    """
    asked = Reading(
        key_added,
        copy,
        cells=cells,
        likelihood=likelihood,
        layer=layer,
        mask_var=mask_var,
        sizes={"n_topics": n_topics},
        random_state=random_state,
        run=run,
    )
    problem = Problem.read(adata, asked)
    data = problem.data
    contrast = problem.contrast({}, "sum", pooled=True)
    settings = run_settings(run, accelerate=True)
    factors = fit(
        data.source,
        data.likelihood,
        n_topics,
        target=data.design.target,
        background=contrast.weight,
        expressed=data.expressed,
        start=start_loadings(init, len(data.genes), n_topics),
        refine=data.estimated,
        random_state=random_state,
        run=settings,
    )
    params = {"init": "random" if init is None else "given"}
    return problem.write(factors, contrast, problem.record(factors, contrast, params, n_topics, run=settings))


def _check_auto(n_background_topics: Any, init: Any, alpha: Any) -> None:
    """Refuse what the number of target topics cannot be chosen with."""
    if n_background_topics == 0:
        msg = "`n_topics='auto'` must come with background topics, got `n_background_topics=0`. See `select_n_topics`."
        raise UserError(msg)
    for name, without in (("init", init is None), ("alpha='auto'", alpha != "auto")):
        if not without:
            msg = f"`{name}` must come with a number of topics, got `n_topics='auto'`."
            raise UserError(msg)


def _check_ways(basis: str, cross_fit: Any, alpha_scale: str, levels: Mapping[str, Any]) -> None:
    """Refuse what is no way to fit or to score."""
    one_of("alpha_scale", alpha_scale, ("effective", "sum"))
    one_of("basis", basis, ("split", "shared"))
    if cross_fit is not None:
        whole_number("cross_fit", cross_fit, 2)
    for name, level in levels.items():
        number(name, level, 0, 1, "neither")


def _check_alphas(alpha: Any, background: Any, alpha_scale: str, *, split: bool) -> None:
    """Raise unless alpha is a strength for all backgrounds, or `background` maps to them, or it can be chosen."""
    if alpha != "auto":
        given = background if isinstance(background, Mapping) else {"": alpha}
        for name, value in given.items():
            number("alpha", value, why=f" for background {str(name)!r}" if name != "" else "")
        return
    if isinstance(background, Mapping):
        msg = "`alpha` must not be 'auto' where `background` gives each background its own. Name the backgrounds only."
    elif alpha_scale != "effective":
        msg = "`alpha='auto'` is on the effective scale; `alpha_scale` must be 'effective', got 'sum'."
    elif split:
        msg = "`alpha` must not be 'auto' with `basis='split'`, where background topics take its place. Leave it out."
    else:
        return
    raise UserError(msg)
