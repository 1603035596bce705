"""Ensembles of fits: background and target topics, folds, restarts, paths. Plain functions around `solver.fit`.

Weights alone select the cells to learn from: a held-out fold has weight zero, on the same source.
"""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..._utils.errors import UserError
from ..._utils.progress import progress_bar
from ..kernels.block import Pass, Rows
from ..kernels.cpu import sweep
from ..likelihoods import Poisson
from ..rows.sources import ONE_THREAD_EACH
from .solver import Factors, Run, fit, normalise, transform

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..likelihoods import Likelihood
    from ..rows.sources import RowSource

T = TypeVar("T")
N_SELECT_FOLDS = 3
"""Largest number of folds on which models are compared."""


@dataclass(frozen=True)
class Model:
    """The model to fit, apart from the seed and the cells to learn from."""

    likelihood: Likelihood
    n_topics: int
    target: np.ndarray
    """Target weight per cell, 1 or 0."""
    background: np.ndarray
    """Bool per cell."""
    contrast: np.ndarray
    """Background weight per cell: alpha on the paper's scale, or 0."""
    expressed: np.ndarray
    n_background_topics: int = 0
    basis: Literal["split", "shared"] = "split"
    """Whether to fit target topics beside frozen background topics, or contrast topics first and all usage after."""
    refine: bool = False


def fit_background(
    source: RowSource, model: Model, *, learn: np.ndarray | None = None, random_state: int = 0, run: Run
) -> Factors:
    """Fit background topics on the background alone, the first step of `fit_model`."""
    use = np.ones(source.shape[0]) if learn is None else learn.astype(float)
    return fit(
        source,
        model.likelihood,
        model.n_background_topics,
        target=model.background * use,
        background=np.zeros_like(use),
        expressed=model.expressed,
        project=np.zeros(source.shape[0], bool),
        refine=model.refine,
        random_state=spawn(random_state, 2)[0],
        run=replace(run, checkpoint=None),  # only the longest and last fit of the call has a checkpoint
    )


def fit_model(
    source: RowSource,
    model: Model,
    *,
    learn: np.ndarray | None = None,
    project: np.ndarray | None = None,
    start: np.ndarray | None = None,
    shared: Factors | None = None,
    random_state: int = 0,
    run: Run,
) -> Factors:
    """Fit target topics, then (in W and H) background topics if there are any.

    Parameters
    ----------
    learn
        Bool per cell: cells to learn from; all by default.
    project
        Bool per cell: cells whose usage is returned; all by default.
    shared
        Result of `fit_background` for the same model, cells and seed, if it is known.
    """
    use = np.ones(source.shape[0]) if learn is None else learn.astype(float)
    own: dict[str, Any] = {"target": model.target * use, "background": model.contrast * use, "start": start}
    own |= {"expressed": model.expressed, "refine": model.refine, "run": run}
    n = model.n_topics
    if not model.n_background_topics:
        return fit(source, model.likelihood, n, random_state=random_state, project=project, **own)
    shared = shared or fit_background(source, model, learn=learn, random_state=random_state, run=run)
    own["random_state"] = spawn(random_state, 2)[1]
    if model.basis == "split":
        both = fit(source, shared.likelihood, n, frozen=shared.W, project=project, **own)
        order = np.roll(np.arange(both.W.shape[1]), n)
        return replace(both, W=both.W[:, order], H=both.H[:, order], weight=both.weight[:, order])
    contrast = fit(source, model.likelihood, n, project=np.zeros(source.shape[0], bool), **own)
    W = np.hstack([contrast.W, shared.W])
    H, cell_loss = transform(source, contrast.likelihood, W, project, tol=run.usage_tol)
    return replace(contrast, W=W, H=H, cell_loss=cell_loss)


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold usage: of every cell under a model that has not seen it."""

    share: np.ndarray
    """Share of a cell's usage on topics of the first kind, the target topics."""
    usage: np.ndarray
    """Share of a cell's usage on each topic, matched to those of the full fit; cells x topics."""
    fold: np.ndarray
    """Fold of each cell; -1 for cells in no condition."""
    stability: np.ndarray
    """Mean cosine of each topic to its match over the folds."""


def cross_fit(
    source: RowSource, model: Model, full: Factors, fold: np.ndarray, *, random_state: int = 0, run: Run
) -> OutOfFold:
    """Score every cell with topics learned without its fold, each fold from its own initialisation.

    A warm start from the full fit would leak the held-out cells. Background topics are refitted as well: a model fits
    the cells that it has seen better, so background cells would otherwise score lower than unseen cells.
    """
    quick = rough(run)

    def fit_fold(own: RowSource, learn: np.ndarray, out: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        factors = fit_model(own, model, learn=learn, project=out, random_state=seed, run=quick)
        return factors.W, factors.H

    return out_of_fold(source, fit_fold, full.W, model.n_topics, fold, random_state=random_state, run=run)


def out_of_fold(
    source: RowSource,
    fit_fold: Callable[[RowSource, np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]],
    W: np.ndarray,
    n: int,
    fold: np.ndarray,
    *,
    random_state: int = 0,
    run: Run,
) -> OutOfFold:
    """Score the cells of each fold by a fit to the others, whose topics are matched to those of the full fit.

    Parameters
    ----------
    fit_fold
        Takes a source, the cells to learn from, the cells to score (bools) and a seed; returns loadings and usage.
    W
        Loadings of the full fit.
    n
        Topics of the first kind, which come first; topics are matched within their kind.
    """
    share, usage = np.full(source.shape[0], np.nan), np.full((source.shape[0], W.shape[1]), np.nan)
    folds = np.unique(fold[fold >= 0])
    seeds = spawn(random_state, len(folds))

    def score(own: RowSource, job: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        held_out, seed = job
        return fit_fold(own, (fold >= 0) & (fold != held_out), fold == held_out, seed)

    cosines = []
    jobs = list(zip(folds.tolist(), seeds, strict=True))
    for held_out, (found, H) in zip(folds, run_all(score, jobs, source, "folds", run), strict=True):
        out = fold == held_out
        proportions = shares_of(H[out])
        share[out] = proportions[:, :n].sum(1)
        # of each kind among its like, so that no target topic takes the place of a background topic
        own, shared = (match(W[:, kind], found[:, kind]) for kind in (slice(n), slice(n, None)))
        usage[out] = proportions[:, np.append(own[0], n + shared[0])]
        cosines.append(np.append(own[1], shared[1]))
    return OutOfFold(share, usage, fold, np.mean(cosines, axis=0))


@dataclass(frozen=True)
class Gain:
    """Held-out gain by target topics, relative to the null deviance of the held-out cells."""

    target: float
    background: float
    explained_target: float
    """Share of the null deviance explained by all topics, in held-out target cells."""
    explained_background: float


def held_out_gain(
    source: RowSource,
    model: Model,
    fold: np.ndarray,
    held_out: int,
    *,
    shared: Factors | None = None,
    random_state: int,
    run: Run,
) -> Gain:
    """Gain in deviance by target topics, in held-out target and background cells."""
    learn, out = (fold >= 0) & (fold != held_out), fold == held_out
    factors = fit_model(source, model, learn=learn, project=out, shared=shared, random_state=random_state, run=run)
    background_only = factors.W[:, model.n_topics :]
    is_target, is_background = out & (model.target > 0), out & model.background
    if background_only.shape[1]:
        _, without = transform(source, factors.likelihood, background_only, out, tol=run.usage_tol)
    parts = {}
    for name, cells, learned in (
        ("target", is_target, learn & (model.target > 0)),
        ("background", is_background, learn & model.background),
    ):
        # floored like loadings, so that a gene without training counts costs both sides the same
        one_topic = normalise(profile(source, learned)[:, None], model.expressed)[0]
        null = transform(source, factors.likelihood, one_topic, cells)[1][cells].sum()
        base = without[cells].sum() if background_only.shape[1] else null
        loss = factors.cell_loss[cells].sum()
        parts[name] = ((base - loss) / max(null, 1e-12), 1 - loss / max(null, 1e-12))
    return Gain(parts["target"][0], parts["background"][0], parts["target"][1], parts["background"][1])


def select(
    source: RowSource, models: Sequence[Model], fold: np.ndarray, *, random_state: int = 0, run: Run
) -> list[list[Gain]]:
    """Compute the held-out gain of several models on the same folds and seeds: a list per model, a gain per fold."""
    folds = np.unique(fold[fold >= 0]).tolist()[:N_SELECT_FOLDS]
    seeds = spawn(random_state, len(folds))
    quick = rough(run)

    numbers = list(dict.fromkeys(model.n_background_topics for model in models))

    def score(own: RowSource, job: tuple[int, int, int]) -> list[Gain]:
        """Score the models with as many background topics, which are fitted once, on one fold."""
        number, held_out, seed = job
        alike = [model for model in models if model.n_background_topics == number]
        learn = (fold >= 0) & (fold != held_out)
        shared = fit_background(own, alike[0], learn=learn, random_state=seed, run=quick) if number else None
        how: dict[str, Any] = {"shared": shared, "random_state": seed, "run": quick}
        return [held_out_gain(own, model, fold, held_out, **how) for model in alike]

    jobs = [(number, held_out, seed) for number in numbers for held_out, seed in zip(folds, seeds, strict=True)]
    found = iter(run_all(score, jobs, source, "select", run))
    # of each number of background topics: a list per fold, of gains in the order of its models
    gains = {number: [next(found) for _ in folds] for number in numbers}
    place = dict.fromkeys(numbers, 0)
    result = []
    for model in models:
        number = model.n_background_topics
        result.append([of_fold[place[number]] for of_fold in gains[number]])
        place[number] += 1
    return result


def restarts(source: RowSource, model: Model, n_restarts: int, *, random_state: int = 0, run: Run) -> list[Factors]:
    """Fit the same model from different starts."""
    quiet = replace(run, checkpoint=None, progress=False)

    def one(own: RowSource, seed: int) -> Factors:
        return fit_model(own, model, random_state=seed, run=quiet)

    return run_all(one, spawn(random_state, n_restarts), source, "restarts", run)


def consensus(
    loadings: Sequence[np.ndarray], *, density: float, random_state: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cluster topics over restarts; return each cluster's median, its mean cosine to that median, and its size."""
    n_topics = loadings[0].shape[1]
    stacked = np.hstack(list(loadings)).T
    unit = stacked / np.linalg.norm(stacked, axis=1, keepdims=True)
    distance = 1 - np.sort(unit @ unit.T, axis=1)[:, ::-1]
    near = distance[:, 1 : 1 + max(1, int(0.3 * len(loadings)))].mean(1)
    kept = np.flatnonzero(near <= density)
    if len(kept) < n_topics:
        msg = f"`density` {density} leaves {len(kept)} of {len(near)} topics for {n_topics} clusters. Raise it."
        raise UserError(msg)
    # k-means on unit vectors clusters by cosine
    from sklearn.cluster import KMeans  # slow to import

    labels = KMeans(n_topics, n_init=10, random_state=random_state).fit_predict(unit[kept])
    W = np.column_stack([np.median(stacked[kept[labels == k]], axis=0) for k in range(n_topics)])
    W /= W.sum(0)
    direction = W / np.linalg.norm(W, axis=0)
    cosine = np.array([(unit[kept[labels == k]] @ direction[:, k]).mean() for k in range(n_topics)])
    return W, cosine, np.bincount(labels, minlength=n_topics)


def stability(fits: Sequence[Factors], n_topics: int) -> float:
    """Compute the mean cosine of matched target topics over all pairs of fits."""
    cosines = [match(a.W[:, :n_topics], b.W[:, :n_topics])[1].mean() for i, a in enumerate(fits) for b in fits[:i]]
    return float(np.mean(cosines)) if cosines else float("nan")


def profile(source: RowSource, cells: np.ndarray) -> np.ndarray:
    """Compute the mean profile of some cells: the best single topic under a count likelihood."""
    n_genes = source.shape[1]
    W = np.full((n_genes, 1), 1 / n_genes)
    make = partial(Rows.of, n_topics=1, dtype=source.dtype, prev=False, loss=False)
    rows = source.place(make, cells.astype(float), np.zeros(len(cells)))
    todo = Pass(W.astype(source.dtype), np.ones(1), cold=True)
    sums = source.reduce(partial(sweep, todo=todo, likelihood=Poisson()), rows)
    total = (W * sums.p_x)[:, 0]
    return total / total.sum() if total.any() else W[:, 0]  # flat if these cells are empty


def match(reference: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match topics one to one by cosine; return for each reference topic the index of its match and the cosine."""
    a, b = (W / np.maximum(np.linalg.norm(W, axis=0), 1e-30) for W in (reference, other))
    cosine = a.T @ b
    rows, columns = linear_sum_assignment(-cosine)
    order = columns[np.argsort(rows)]
    return order, cosine[np.arange(len(order)), order]


def shares_of(H: np.ndarray, dtype: Any = np.float64) -> np.ndarray:
    """Convert usage to proportions; zero for cells without usage."""
    total = H.sum(1, keepdims=True, dtype=dtype)
    return np.divide(H, total, out=np.zeros(H.shape, dtype), where=total > 0)


def rough(run: Run) -> Run:
    """Return looser run options, for fits that serve model selection or out-of-fold scores only."""
    return replace(
        run, checkpoint=None, progress=False, tol=max(run.tol, 1e-3), max_iter=min(run.max_iter, 300), usage_tol=1e-3
    )


def spawn(random_state: int, n: int) -> list[int]:
    """Spawn seeds for parts of a computation, independent of who computes them."""
    return [int(child.generate_state(1)[0]) for child in np.random.SeedSequence(random_state).spawn(n)]


def run_all(
    work: Callable[[RowSource, Any], T], jobs: Sequence[Any], source: RowSource, what: str, run: Run
) -> list[T]:
    """Run many jobs on one source, in parallel if it can be shared; results in the order of the jobs."""
    shares = source.shares()
    free: queue.SimpleQueue[RowSource] = queue.SimpleQueue()
    for share in shares:
        free.put(share)

    def one(job: Any) -> T:
        own = free.get()
        try:
            return work(own, job)
        finally:
            free.put(own)

    # held throughout, as idle BLAS threads would otherwise compete with the fits
    with ONE_THREAD_EACH, ThreadPoolExecutor(len(shares)) as pool:
        done = pool.map(one, jobs)
        bar = progress_bar(done, show=run.progress, total=len(jobs), desc=what)
        return list(bar)
