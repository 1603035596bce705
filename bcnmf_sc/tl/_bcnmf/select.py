"""Choose alpha and the numbers of topics from the data, and say how far the result can be trusted. No labels are used.

What predicts without labels is the held-out gain ratio: by what share of its null deviance the target topics bring
held-out target cells closer, over the same for held-out background cells.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import pandas as pd

from ..._anndata import Reading
from ..._utils.checks import number, one_of, whole_number
from ..._utils.errors import UserError
from ...engine.bcnmf import ensemble
from .._run import no_checkpoint, run_settings
from .folds import make_folds
from .problem import MAX_SUPPRESSED, SAFE_ALPHA, Problem, default_alpha, one_alpha

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from ..._anndata import MaskVar
    from ...engine import Run
    from ...engine.bcnmf.ensemble import Gain
    from .._run import Likelihood, LikelihoodName, RunOptions
    from .problem import Contrast

NO_GAIN = 1e-3  # of the background's null deviance: less is the precision of the usage
LEAST_GAIN = 0.01
"""Share of the null deviance below which the background counts as not described."""
COLLAPSED = 1e-3
"""Mean share of the target's usage below which a topic has collapsed."""
TARGET_TOPICS = (2, 4, 8)
TOPICS = (1, 2, 3, 4, 6, 8, 10)
"""Numbers of target topics of which a fit chooses."""
LEAST_PART = 0.05
"""Share of the largest gain below which it does not take further topics."""
BESIDE = 4
"""Target topics beside which the number of background topics is chosen where both are."""
NUMBERS = ("n_topics", "n_background_topics")
BACKGROUND_TOPICS = (5, 10, 20, 40)
"""Numbers of topics that are tried where none are named, as far as the data can hold them."""
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
"""Effective alphas that are tried."""


def choose_numbers(
    problem: Problem,
    contrast: Contrast,
    fold: np.ndarray,
    *,
    n_topics: int | Literal["auto"],
    n_background_topics: int | Literal["auto"],
    basis: Literal["split", "shared"],
    random_state: int,
    run: Run,
) -> tuple[int, int, dict[str, Any]]:
    """Return the numbers of target and background topics, and how those that are "auto" were chosen.

    Background topics: the number with the best held-out gain ratio. Target topics beside them: the smallest number
    whose held-out gain in target cells is within one standard error over folds, or `LEAST_PART`, of the best.
    """
    chosen: dict[str, Any] = {"table": [], "reason": []}

    def gains(pairs: list[tuple[int, int]]) -> pd.DataFrame:
        models = [problem.model(contrast, k, b, basis) for k, b in pairs]
        found = ensemble.select(problem.data.source, models, fold, random_state=random_state, run=run)
        rows = [dict(zip(NUMBERS, pair, strict=True)) | summary(g) for pair, g in zip(pairs, found, strict=True)]
        chosen["table"].append(pd.DataFrame(rows))
        return chosen["table"][-1]

    if n_background_topics == "auto":
        grid = _tried(BACKGROUND_TOPICS, int(problem.data.design.background.sum()) // 2, problem)
        table = gains([(BESIDE if n_topics == "auto" else n_topics, b) for b in grid])
        best = int(table["gain_ratio"].idxmax())
        n_background_topics = grid[best]
        reason = f"{grid[best]} background topics have the largest held-out gain ratio, {table['gain_ratio'][best]:.3g}"
        chosen["reason"].append(f"{reason}, of {', '.join(map(str, grid))}.")
        chosen["n_background_topics"] = n_background_topics
    if n_topics == "auto":
        grid = _tried(TOPICS, int(problem.data.design.target.sum()) // 2, problem)
        table = gains([(k, n_background_topics) for k in grid]).set_index("n_topics")
        n_topics, reason = _fewest(table)
        chosen["reason"].append(reason)
        chosen["n_topics"] = n_topics
    chosen["table"] = pd.concat(chosen["table"], ignore_index=True)
    return n_topics, n_background_topics, chosen | {"reason": " ".join(chosen["reason"])}


def _fewest(table: pd.DataFrame) -> tuple[int, str]:
    """Return the smallest number of target topics that gains as much as the best, within its error; and why."""
    gain = table["gain_target"]
    top = gain.idxmax()
    near = max(table["gain_target_se"][top], LEAST_PART * gain[top])
    n = int(table.index[gain >= gain[top] - near].min())
    return n, (
        f"{n} is the smallest number of target topics whose gain in held-out target cells ({gain[n]:.3g}) is within "
        f"one standard error, or {LEAST_PART:.0%}, of the best ({gain[top]:.3g})."
    )


def _tried(grid: Sequence[int], n_cells: int, problem: Problem) -> list[int]:
    """Those of a grid that so many cells, and the genes, can hold."""
    most = min(n_cells, len(problem.data.genes))
    return [n for n in grid if n <= most] or [max(1, most // 2)]


def summary(gains: Sequence[Gain]) -> dict[str, float]:
    """Mean held-out figures over folds."""
    mean = {name: float(np.mean([getattr(g, name) for g in gains])) for name in ("target", "background")}
    explained = {f"explained_{part}": float(np.mean([getattr(g, f"explained_{part}") for g in gains])) for part in mean}
    ratio = mean["target"] / max(mean["background"], NO_GAIN)
    error = float(np.std([g.target for g in gains], ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else 0.0
    found = {"gain_ratio": ratio, "gain_target": mean["target"], "gain_background": mean["background"]}
    return found | {"gain_target_se": error, **explained}


def select_alpha(
    adata: AnnData,
    *,
    background_key: str,
    background: str | Sequence[str],
    target: str | Sequence[str] | None = None,
    alphas: Sequence[float] = ALPHAS,
    n_topics: int = 10,
    n_restarts: int = 3,
    n_folds: int = 3,
    sample_key: str | None = None,
    likelihood: LikelihoodName | Likelihood = "poisson",
    layer: str | None = None,
    mask_var: MaskVar = "auto",
    random_state: int = 0,
    key_added: str = "bcnmf",
    copy: bool = False,
    **run: Unpack[RunOptions],
) -> AnnData | None:
    r"""Choose how hard to press against the background, from the data alone :cite:p:`li2026disentangling`.

    The objective itself falls with every increase of alpha, so it cannot choose. Each alpha of a path (each fit
    starting from the one before), and then those halfway to the neighbours of the best, is scored by its held-out gain:

    .. math:: \frac{1 - D(X) / D_0(X)}{\max(1 - D(Y) / D_0(Y),\; 0.01)}

    with :math:`D` the deviance of held-out target and background cells and :math:`D_0` that of one topic, the mean
    profile. The largest ratio wins among alphas that do not ruin the fit: loadings finite, no topic collapsed, at most
    10 % of the target's genes suppressed, target deviance explained above zero.

    Parameters
    ----------
    adata, background_key, background, target, n_topics, likelihood, layer, mask_var, random_state, copy, **run
        As in `bcnmf`, without ``checkpoint``.
    alphas
        Effective alphas to try, rising.
    n_restarts
        Fits from other starts, per alpha, for the stability of the topics; 1 leaves it out.
    n_folds
        Folds the cells are dealt to; three at most are held out.
    sample_key
        Column with the donor of each cell; folds are then by donor.
    key_added
        The choice is stored under this name with ``_alpha`` behind it.

    Returns
    -------
    `None`, or a changed copy with ``copy=True``. Fields set:

    ``.uns[key_added + "_alpha"]`` : dict
        ``alpha``; ``reason`` in words; ``table`` with a row per alpha: ``alpha``, ``gain_ratio``, ``explained_target``
        and ``explained_background`` (held out), ``fitted_target`` and ``fitted_background`` (the same in the cells
        learned from), ``n_suppressed``, ``n_collapsed``, ``stability`` (mean cosine of matched topics over restarts),
        ``degenerate``; ``design``: ``background_key``, ``background``, ``target`` and ``layer``.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.select_alpha(
    ...     adata, background_key="condition", background="ctrl", n_topics=3, alphas=(0, 0.3), n_restarts=1, tol=1e-2
    ... )
    >>> sorted(adata.uns["bcnmf_alpha"])
    ['alpha', 'design', 'reason', 'table']
    """
    if not len(alphas):
        msg = f"`alphas` must name at least one number to try, got {alphas!r}."
        raise UserError(msg)
    for alpha in alphas:
        number("alphas", alpha)
    whole_number("n_restarts", n_restarts, 1)
    whole_number("n_folds", n_folds, 2)
    one_alpha(background)
    no_checkpoint(run)
    asked = Reading(
        key_added,
        copy,
        background_key,
        background,
        target,
        sample_key=sample_key,
        likelihood=likelihood,
        layer=layer,
        mask_var=mask_var,
        sizes={"n_topics": n_topics},
        random_state=random_state,
        run=run,
    )
    problem = Problem.read(adata, asked)
    choice = alpha_path(problem, alphas, n_topics=n_topics, n_restarts=n_restarts, n_folds=n_folds)
    return problem.data.note({"_alpha": choice | {"design": problem.data.question}})


def alpha_path(
    problem: Problem,
    alphas: Sequence[float],
    *,
    n_topics: int,
    n_restarts: int = 1,
    n_folds: int = ensemble.N_SELECT_FOLDS,
) -> dict[str, Any]:
    """Return the alpha to take, why, and the table over alphas, as they are stored."""
    data = problem.data
    run = {**data.asked.run, "checkpoint": None}  # which is of the fit that follows
    fold_seed, fit_seed = ensemble.spawn(data.asked.random_state, 2)
    fold = make_folds(data.design, data.samples, n_folds, fold_seed)
    rows: dict[float, dict[str, float]] = {}
    start: np.ndarray | None = None

    def look(alpha: float, start: np.ndarray | None) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the table says it
            contrast = problem.contrast(dict.fromkeys(data.design.backgrounds, alpha), "effective", pooled=True)
        settings = run_settings(run, accelerate=alpha <= SAFE_ALPHA)
        model = problem.model(contrast, n_topics, 0, "split")
        fitted = ensemble.fit_model(data.source, model, start=start, random_state=fit_seed, run=settings)
        explained = problem.deviance_explained(fitted)
        gains = ensemble.select(data.source, [model], fold, random_state=fit_seed, run=settings)[0]
        again = ensemble.restarts(data.source, model, n_restarts - 1, random_state=fit_seed, run=settings)
        share = ensemble.shares_of(fitted.H[data.design.target]).mean(0)
        held_out = summary(gains)
        row = {
            "alpha": alpha,
            "gain_ratio": held_out["explained_target"] / max(held_out["explained_background"], LEAST_GAIN),
            "explained_target": held_out["explained_target"],
            "explained_background": held_out["explained_background"],
            "fitted_target": explained["target"],
            "fitted_background": explained["background"],
            "n_suppressed": int(contrast.suppressed_at(fitted.W).sum()),
            "n_collapsed": int((share < COLLAPSED).sum()),
            "stability": ensemble.stability([fitted, *again], n_topics),
        }
        in_target = int((data.mass[0] > 0).sum())
        row["degenerate"] = bool(
            not np.isfinite(fitted.W).all()
            or row["explained_target"] <= 0
            or row["fitted_target"] <= 0
            or row["n_collapsed"] > 0
            or row["n_suppressed"] > MAX_SUPPRESSED * in_target
        )
        rows[alpha] = row
        return fitted.W

    path = sorted({float(a) for a in alphas})
    for alpha in path:
        start = look(alpha, start)
        if rows[alpha]["degenerate"] and alpha > 0:
            break  # a larger alpha only takes more
    best = _best_alpha(rows)
    at = path.index(best)
    for neighbour in path[max(at - 1, 0) : at] + path[at + 1 : at + 2]:
        if neighbour in rows:
            look((best + neighbour) / 2, None)
    best = _best_alpha(rows)
    table = pd.DataFrame([rows[alpha] for alpha in sorted(rows)])
    if rows[best]["degenerate"]:
        reason = (
            "Every alpha tried ruins the fit; the smallest is named. Is the background of the same tissue and platform?"
        )
    else:
        reason = (
            f"At alpha {best:g} held-out target cells gain {rows[best]['gain_ratio']:.3g} times what background cells "
            f"gain, the most among {int((~table['degenerate']).sum())} of {len(table)} alphas that leave the fit sound."
        )
    return {"alpha": best, "reason": reason, "table": table}


def _best_alpha(rows: dict[float, dict[str, float]]) -> float:
    sound = {alpha: row["gain_ratio"] for alpha, row in rows.items() if not row["degenerate"]}
    return max(sound, key=sound.__getitem__) if sound else min(rows)


def select_n_topics(
    adata: AnnData,
    *,
    background_key: str,
    background: str | Sequence[str],
    target: str | Sequence[str] | None = None,
    n_topics: Sequence[int] | None = None,
    n_background_topics: Sequence[int] | None = None,
    basis: Literal["split", "shared"] = "split",
    n_folds: int = 3,
    sample_key: str | None = None,
    likelihood: LikelihoodName | Likelihood = "poisson",
    layer: str | None = None,
    mask_var: MaskVar = "auto",
    random_state: int = 0,
    key_added: str = "bcnmf",
    copy: bool = False,
    **run: Unpack[RunOptions],
) -> AnnData | None:
    """Choose the numbers of target and background topics by what held-out cells gain.

    For every pair of numbers, topics are learned without a fold of the cells (or donors), and the fold is scored: by
    what share of its null deviance do the target topics bring target cells closer, and by what share background cells?
    The number of background topics is that of the largest ratio beside the most target topics, where shared structure
    without a home would show. The number of target topics is then the smallest whose gain in held-out target cells lies
    within one standard error over folds, or 5 %, of the best.

    Parameters
    ----------
    adata, background_key, background, target, basis, likelihood, layer, mask_var, random_state, copy, **run
        As in `bcnmf`, without ``checkpoint``.
    n_topics
        Numbers of target topics to try; by default those of 2, 4 and 8 that cells and genes suffice for.
    n_background_topics
        Numbers of background topics to try, each at least 1; by default those of 5, 10, 20 and 40 likewise.
    n_folds
        Folds the cells are dealt to; three at most are held out.
    sample_key
        Column with the donor of each cell; folds are then by donor.
    key_added
        The choice is stored under this name with ``_n_topics`` behind it.

    Returns
    -------
    `None`, or a changed copy with ``copy=True``. Fields set:

    ``.uns[key_added + "_n_topics"]`` : dict
        ``n_topics``, ``n_background_topics``; ``reason`` in words; ``table`` with a row per pair: ``n_topics``,
        ``n_background_topics``, ``gain_ratio``, ``gain_target``, ``gain_background``, ``gain_target_se``,
        ``explained_target``, ``explained_background``; ``design``: ``background_key``, ``background``, ``target`` and
        ``layer``.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.select_n_topics(
    ...     adata, background_key="condition", background="ctrl", n_topics=[2], n_background_topics=[4], tol=1e-2
    ... )
    >>> adata.uns["bcnmf_n_topics"]["n_background_topics"]
    4
    """
    for name, numbers in (("n_topics", n_topics), ("n_background_topics", n_background_topics)):
        if numbers is not None and not len(numbers):
            msg = f"`{name}` must name at least one number to try."
            raise UserError(msg)
        for n in () if numbers is None else numbers:
            whole_number(name, n, 1)
    whole_number("n_folds", n_folds, 2)
    one_of("basis", basis, ("split", "shared"))
    one_alpha(background)
    no_checkpoint(run)
    asked = Reading(
        key_added,
        copy,
        background_key,
        background,
        target,
        sample_key=sample_key,
        likelihood=likelihood,
        layer=layer,
        mask_var=mask_var,
        sizes={} if n_topics is None else {"n_topics": max(n_topics)},
        n_background_topics=0 if n_background_topics is None else max(n_background_topics),
        random_state=random_state,
        run=run,
    )
    problem = Problem.read(adata, asked)
    data = problem.data
    alpha = default_alpha(1, basis)
    contrast = problem.contrast(dict.fromkeys(data.design.backgrounds, alpha), "effective", pooled=True)
    fold_seed, fit_seed = ensemble.spawn(random_state, 2)
    fold = make_folds(data.design, data.samples, n_folds, fold_seed)
    if n_topics is None:
        n_topics = _tried(TARGET_TOPICS, adata.n_obs, problem)
    if n_background_topics is None:
        n_background_topics = _tried(BACKGROUND_TOPICS, int(data.design.background.sum()) // 2, problem)
    pairs = [(k, b) for k in sorted(set(n_topics)) for b in sorted(set(n_background_topics))]
    models = [problem.model(contrast, k, b, basis) for k, b in pairs]
    settings = run_settings(run, accelerate=True)
    gains = ensemble.select(data.source, models, fold, random_state=fit_seed, run=settings)
    rows = [dict(zip(NUMBERS, pair, strict=True)) | summary(g) for pair, g in zip(pairs, gains, strict=True)]
    table = pd.DataFrame(rows)
    most = table[table["n_topics"] == max(n_topics)].set_index("n_background_topics")["gain_ratio"]
    n_shared = int(most.idxmax())
    n_target, reason = _fewest(table[table["n_background_topics"] == n_shared].set_index("n_topics"))
    shared = f"{n_shared} background topics have the largest held-out gain ratio ({most.max():.3g})"
    reason = f"{shared}. Beside them, {reason}"
    choice = {"n_topics": n_target, "n_background_topics": n_shared, "reason": reason, "table": table}
    return data.note({"_n_topics": choice | {"design": data.question}})
