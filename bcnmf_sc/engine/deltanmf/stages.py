"""DeltaNMF: topics of the controls, then additional topics of the cases beside the fixed control topics.

Each stage minimises, over the loadings W and the usage H of its n cells (m genes, K new topics of norm 1),

    |A - H W'|^2 / (m n)  +  alpha tr(W' L W) / (m K)  +  gamma mean_ij (v_i' w_j)^2

with L = D - S the Laplacian of a gene similarity S, and v the held topics. ``rel_alpha`` and ``rel_gamma`` set alpha
and gamma such that each penalty starts as that share of the squared error. One iteration solves all cells' usage
(`hals.sweep`), then does a few rounds of steps over the columns of W, each to the column's minimum or, with penalties,
with a step that is halved until the objective decreases. The penalties depend on directions only: a column is
normalised after its step and the usage absorbs its scale, so that no penalty can be evaded by shrinking W.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from ..._utils.progress import progress_bar
from ..bcnmf.solver import Run, check_shape
from ..checkpoint import Checkpoint
from ..kernels._loops import TINY
from ..rows.summary import fingerprint
from .hals import StagePass, StageRows, StageSums, sweep

if TYPE_CHECKING:
    from ..rows.sources import RowSource

ROUNDS = 3
"""Rounds over the columns of W per iteration; they are cheap compared with the pass over the data."""
USAGE_ROUNDS, COLD_ROUNDS = 4, 50
"""Rounds over a cell's topics per iteration, and in the first iteration."""
USAGE_STEPS, USAGE_TOL = 1000, 1e-5
"""Maximum rounds and relative tolerance for the usage at given loadings."""
START_ITER = 20
"""Iterations of each short fit of the initialisation."""
ONE_ITER = 10
"""Iterations for an added topic, alone and then with the others."""
START_TOL = 1e-3
"""Tolerance of the usage during the initialisation."""
HALVINGS = 40
"""Maximum halvings of a step that would raise the objective, before the column is left unchanged."""


@dataclass(frozen=True)
class Scaled:
    """Data of a stage, ``A = diag(cells) X diag(genes)``. A factor of zero excludes a cell or a gene."""

    source: RowSource
    cells: np.ndarray
    genes: np.ndarray

    def rows(self, H: np.ndarray, *, loss: bool = False) -> Any:
        """Place a copy of the usage with the cells."""
        return self.source.place(partial(StageRows.of, dtype=self.source.dtype, loss=loss), self.cells, H)

    def sweep(self, rows: Any, W: np.ndarray, scale: np.ndarray, **how: Any) -> StageSums:
        """Solve the usage of all cells in one pass."""
        dtype = self.source.dtype
        todo = StagePass(W.astype(dtype), scale, self.genes.astype(dtype), **how)
        return self.source.reduce(partial(sweep, todo=todo), rows)


@dataclass(frozen=True)
class Penalties:
    """Penalties added to half the squared error, ``a/2 tr(W'LW) + g/2 sum (v'w)^2``."""

    similarity: sparse.csr_array | None = None
    degree: np.ndarray | float = 0.0
    held: np.ndarray | None = None
    """Held topics, columns of norm 1."""
    a: float = 0.0
    g: float = 0.0

    @classmethod
    def of(cls, similarity: sparse.csr_array | None, held: np.ndarray | None) -> Penalties:
        """Set up penalties with zero weights."""
        degree = 0.0 if similarity is None else np.asarray(similarity.sum(1), np.float64).ravel()
        return cls(similarity, degree, held)

    def terms(self, w: np.ndarray) -> tuple[float, float]:
        """Compute ``w'Lw`` and ``sum (v'w)^2`` of columns of norm 1."""
        smooth = 0.0 if self.similarity is None else float((w.T * (self.degree * w.T - (self.similarity @ w).T)).sum())
        return smooth, 0.0 if self.held is None else float(((self.held.T @ w) ** 2).sum())

    def value(self, w: np.ndarray) -> float:
        """Return the value of the penalties."""
        if self.a == 0 and self.g == 0:
            return 0.0
        smooth, overlap = self.terms(w)
        return (self.a * smooth + self.g * overlap) / 2

    def resolved(self, W: np.ndarray, loss: float, shares: tuple[float, float]) -> Penalties:
        """Set the weights such that the penalties at W are these shares of the loss."""
        smooth, overlap = self.terms(W)
        return replace(
            self,
            a=2 * shares[0] * loss / smooth if smooth > 0 else 0.0,
            g=2 * shares[1] * loss / overlap if overlap > 0 else 0.0,
        )

    def slope(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray | float]:
        """Return the gradient along the sphere at a column of norm 1, and a bound on the curvature."""
        slope, bound = np.zeros_like(w), np.zeros(1)
        if self.a and self.similarity is not None:
            smooth = self.degree * w - self.similarity @ w
            slope += self.a * (smooth - (w @ smooth) * w)
            bound = bound + 2 * self.a * self.degree
        if self.g and self.held is not None:
            t = self.held.T @ w
            slope += self.g * (self.held @ t - (t @ t) * w)
            bound = bound + self.g * len(t)
        return slope, bound


@dataclass
class StageState:
    """State between iterations."""

    W: np.ndarray
    """Loadings, the held ones first."""
    scale: np.ndarray
    """Factor per topic still to be applied to the usage."""
    rows: Any
    """The cells' `StageRows`, as placed by `RowSource.place`."""
    n_held: int
    penalties: Penalties = Penalties()
    change: float = np.inf
    n_iter: int = 0
    loss: list[list[float]] = field(default_factory=list)
    """`Stage.loss`"""

    @property
    def own(self) -> np.ndarray:
        """Loadings that are not held."""
        return self.W[:, self.n_held :]


@dataclass(frozen=True)
class Stage:
    """Result of a stage."""

    W: np.ndarray
    """Loadings, genes x topics: the held ones, as given, then the stage's own. Columns of norm 1, in scaled units."""
    loss: np.ndarray
    """A row per check: iteration, half the squared error, the same with the penalties, their weights a and g,
    change of W."""
    n_iter: int
    converged: bool
    change: float


def fit_stage(
    data: Scaled,
    n_topics: int,
    *,
    held: np.ndarray | None = None,
    start: np.ndarray | None = None,
    similarity: sparse.csr_array | None = None,
    rel_alpha: float = 0.0,
    rel_gamma: float = 0.0,
    n_restarts: int = 3,
    consensus: bool = True,
    random_state: int = 0,
    run: Run = Run(),  # noqa: B008 (frozen)
) -> Stage:
    """Fit the topics of a stage, beside held topics.

    Parameters
    ----------
    data
        The scaled data; cells with a factor of zero are excluded.
    n_topics
        Number of topics to fit.
    held
        Fixed loadings, genes x any number, columns of norm 1.
    start
        Loadings to start from, genes x ``n_topics``. By default they come from ``n_restarts`` short fits or, beside
        held topics, from one topic after the other on the residual.
    similarity
        Symmetric, non-negative, genes x genes; the diagonal does not matter.
    rel_alpha, rel_gamma
        Strength of the smoothness over similar genes and of the orthogonality to the held topics, each as its penalty's
        share of the squared error at the start.
    n_restarts, consensus
        Number of short fits, and whether to start from the median of their matched topics or from the best of them.
    random_state
        Seed of the short fits.
    run
        Run options.
    """
    n_cells, n_genes = data.source.shape
    held = np.asarray(np.zeros((n_genes, 0)) if held is None else held)
    used = data.genes > 0
    check_shape("cells", data.cells, (n_cells,))
    check_shape("genes", data.genes, (n_genes,))
    check_shape("held", held, (n_genes, held.shape[1]))
    if start is not None:
        check_shape("start", start, (n_genes, n_topics))
    if similarity is not None:
        keep = sparse.diags_array(used.astype(float))
        similarity = sparse.csr_array(keep @ similarity @ keep)
        similarity = sparse.csr_array(similarity - sparse.diags_array(similarity.diagonal()))
    n_held = held.shape[1]
    numbers = [n_topics, rel_alpha, rel_gamma, n_restarts, consensus, random_state]
    graph = () if similarity is None else (similarity.data, similarity.indices)
    given = () if start is None else (start,)
    what = () if run.checkpoint is None else fingerprint(data.source)
    checkpoint = Checkpoint.open(run.checkpoint, data.cells, data.genes, held, numbers, *graph, *given, *what)
    penalties = Penalties.of(similarity if rel_alpha else None, held if rel_gamma and n_held else None)
    deadline = time.monotonic() + run.max_time
    with data.source.working():
        state = restore(checkpoint, data, n_held, n_topics)
        if state is None:
            if start is None and n_held:
                start = one_by_one(data, n_topics, held, random_state=random_state)
            elif start is None:
                start = short_fits(data, n_topics, n_restarts, consensus=consensus, random_state=random_state)
            state = begin(data, held, start, H=np.zeros((n_cells, n_held + n_topics)))
    state.penalties = replace(penalties, a=state.penalties.a, g=state.penalties.g)
    with checkpoint, data.source.working():
        bar = progress_bar(show=run.progress, initial=state.n_iter, total=run.max_iter, desc="fit", unit="it")
        while state.n_iter < run.max_iter and state.change > run.tol and time.monotonic() < deadline:
            sums = usage_step(data, state)
            loss = sums.loss
            if state.n_iter == 1:
                state.penalties = penalties.resolved(state.own, loss, (rel_alpha, rel_gamma))
            objective = loss + state.penalties.value(state.own)
            loadings_step(state, sums)
            if state.n_iter == 1 or state.n_iter % run.check_every == 0 or state.change <= run.tol:
                a, g = state.penalties.a, state.penalties.g
                state.loss.append([state.n_iter, loss, objective, a, g, state.change])
            checkpoint.write(partial(save, data, state), state.n_iter, run.checkpoint_every)
            bar.set_postfix(change=f"{state.change:.1e}", refresh=False)
            bar.update()
        bar.close()
        checkpoint.write(partial(save, data, state), state.n_iter)
    table = np.array(state.loss).reshape(-1, 6)
    return Stage(state.W, table, state.n_iter, state.change <= run.tol, state.change)


def save(data: Scaled, state: StageState) -> dict[str, Any]:
    """Return arrays and numbers from which `restore` resumes the fit."""
    content = {name: getattr(state, name) for name in ("W", "scale", "change", "n_iter", "loss")}
    return content | {"H": data.source.gather(state.rows, "H"), "a": state.penalties.a, "g": state.penalties.g}


def restore(checkpoint: Checkpoint, data: Scaled, n_held: int, n_topics: int) -> StageState | None:
    """Return the state stored in a checkpoint; None if there is none yet."""
    (n_cells, n_genes), n_topics = data.source.shape, n_held + n_topics
    stored = checkpoint.read(
        {"W": (n_genes, n_topics), "scale": (n_topics,), "H": (n_cells, n_topics), "loss": (None, 6)}
        | dict.fromkeys(("change", "n_iter", "a", "g"), ()),
        positive=("W", "scale", "H", "change", "n_iter"),
    )
    if stored is None:
        return None
    rows, penalties = data.rows(stored.pop("H")), Penalties(a=stored.pop("a"), g=stored.pop("g"))
    loss = stored.pop("loss").tolist()
    return StageState(rows=rows, n_held=n_held, penalties=penalties, loss=loss, **stored)


def short_fits(data: Scaled, n_topics: int, n_restarts: int, *, consensus: bool, random_state: int) -> np.ndarray:
    """Initialise topics by short fits from random starts: the median over matched topics, or those of the best fit."""
    n_cells, n_genes = data.source.shape
    found = []
    for child in np.random.SeedSequence(random_state).spawn(n_restarts):
        start = np.random.default_rng(child).random((n_genes, n_topics))
        state = begin(data, np.zeros((n_genes, 0)), start, H=np.zeros((n_cells, n_topics)))
        loss = descend(data, state, n_iter=START_ITER)
        found.append((loss, state.W))
    best = min(found, key=lambda fit: fit[0])[1]
    if not consensus or n_restarts == 1:
        return best
    matched = [W[:, linear_sum_assignment(-(best.T @ W))[1]] for _, W in found]
    middle = np.median(matched, axis=0)
    return np.where(middle.any(0), middle, best)


def one_by_one(data: Scaled, n_topics: int, held: np.ndarray, *, random_state: int) -> np.ndarray:
    """Initialise topics one after the other, each on the residual of those before, then fitted jointly with them.

    This splits a true program over several topics less often than a joint start does.
    """
    n_cells, n_genes = data.source.shape
    found = np.zeros((n_genes, 0))
    for child in np.random.SeedSequence(random_state).spawn(n_topics):
        known = np.hstack([held, found])
        H = np.hstack([usage(data, known, tol=START_TOL)[0], np.zeros((n_cells, 1))])
        state = begin(data, known, np.random.default_rng(child).random((n_genes, 1)), H=H)
        descend(data, state, n_iter=ONE_ITER, residual=True)
        state = begin(data, held, state.W[:, held.shape[1] :], H=np.zeros_like(H))
        descend(data, state, n_iter=ONE_ITER)
        found = state.own
    return found


def descend(data: Scaled, state: StageState, *, n_iter: int, residual: bool = False) -> float:
    """Run some iterations; return half the squared error."""
    for _ in range(n_iter):
        sums = usage_step(data, state, residual=residual)
        loadings_step(state, sums, residual=residual)
    return sums.loss


def begin(data: Scaled, held: np.ndarray, free: np.ndarray, *, H: np.ndarray) -> StageState:
    """Return the initial state, without penalties, from loadings of any scale."""
    W = np.hstack([held, unit(np.where((data.genes > 0)[:, None], free, 0.0))])
    return StageState(W, np.ones(W.shape[1]), data.rows(H), held.shape[1])


def usage(data: Scaled, W: np.ndarray, *, tol: float = USAGE_TOL) -> tuple[np.ndarray, np.ndarray]:
    """Compute every cell's usage at given loadings, ``argmin_{h >= 0} |a - W h|^2``, and half its squared error."""
    rows = data.rows(np.zeros((data.source.shape[0], W.shape[1])), loss=True)
    data.sweep(rows, W, np.ones(W.shape[1]), steps=USAGE_STEPS, tol=tol, cold=True, sums=False)
    return data.source.gather(rows, "H"), data.source.gather(rows, "loss")


def usage_step(data: Scaled, state: StageState, *, residual: bool = False) -> StageSums:
    """Update every cell's usage for some rounds, and gather the sums. The first step of an iteration."""
    cold = state.n_iter == 0
    state.n_iter += 1
    return data.sweep(
        state.rows,
        state.W,
        state.scale,
        n_frozen=state.n_held,
        residual=residual,
        steps=COLD_ROUNDS if cold else USAGE_ROUNDS,
        cold=cold,
    )


def loadings_step(state: StageState, sums: StageSums, *, residual: bool = False) -> None:
    """Do some rounds over the free columns of W, never raising the objective. The second step of an iteration."""
    first = state.n_held if residual else 0
    W = state.W[:, first:].copy()
    P, C = sums.p.copy(), sums.n[first:, first:].copy()
    n_held = state.n_held - first
    scale = np.ones(W.shape[1])
    least = np.finfo(np.float32).eps * np.trace(C)
    for _ in range(ROUNDS):
        for j in range(n_held, W.shape[1]):
            if C[j, j] <= least:  # an unused topic
                continue
            slope = W @ C[:, j] - P[:, j - n_held]
            new = column_step(W[:, j], (slope, C[j, j]), state.penalties)
            norm = float(np.linalg.norm(new))
            if norm > 0:
                W[:, j] = new / norm
                C[j] *= norm
                C[:, j] *= norm
                P[:, j - n_held] *= norm
                scale[j] *= norm
    state.change = float(np.linalg.norm(W[:, n_held:] - state.own) / np.linalg.norm(state.own))
    state.W = np.hstack([state.W[:, : state.n_held], W[:, n_held:]])
    state.scale = np.concatenate([np.ones(first), scale])


def column_step(w: np.ndarray, error: tuple[np.ndarray, float], penalties: Penalties) -> np.ndarray:
    """Move a column of norm 1 to lower the objective.

    Without penalties, it moves to its minimum, else by a step that is halved until the objective decreases. ``error``
    holds the gradient and the curvature of half the squared error.
    """
    slope, curvature = error
    if penalties.a == 0 and penalties.g == 0:
        return np.asarray(np.maximum(w - slope / curvature, 0))
    more, bound = penalties.slope(w)
    move = (slope + more) / (curvature + bound)
    before = penalties.value(w)
    for _ in range(HALVINGS):
        new = np.maximum(w - move, 0)
        norm = float(np.linalg.norm(new))
        if norm > 0:
            d = new - w
            if slope @ d + curvature / 2 * (d @ d) + penalties.value(new / norm) <= before:
                return np.asarray(new)
        move = move / 2
    return w


def unit(W: np.ndarray) -> np.ndarray:
    """Normalise the columns of W to norm 1."""
    return np.asarray(W / np.maximum(np.linalg.norm(W, axis=0), TINY))
