"""The algorithm: multiplicative updates of usage and loadings under a target and a background weight per cell.

The solver minimises the nested objective (Li et al. 2026, with the inner minimum implied by their updates)

    min_{W >= 0}  f_X(W) - alpha f_Y(W),    f_X(W) = min_{H >= 0} L(X, H W'),    f_Y(W) = min_{H >= 0} L(Y, H W').

In an iteration, every cell's usage takes a step towards fitting that cell, in either condition; then W takes one step
in which the background's two terms are swapped. ``alpha = 0`` is plain NMF, a frozen W projection, and frozen topics
are background topics. The solver is independent of array types and likelihoods.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._utils.errors import UserError
from ..._utils.progress import progress_bar
from ..checkpoint import Checkpoint
from ..kernels._loops import MAX_BETA, TINY
from ..kernels.block import Pass, Rows, Sums, extrapolated
from ..kernels.cpu import sweep
from ..rows.summary import fingerprint

if TYPE_CHECKING:
    from os import PathLike

    from ..likelihoods import Likelihood
    from ..rows.sources import RowSource

LOADINGS_FLOOR = 1e-10
"""Smallest normalised loading of an expressed gene: multiplicative updates could never raise an entry from zero."""
MAX_BETA_UNDER_CONTRAST = 0.9
"""Cap of the extrapolation with a background weight: steps are then no descent steps of one objective."""
UNREST = 4.0
"""Under a contrast, halve the cap of the extrapolation while the change exceeds its minimum so far by this factor."""
USAGE_STEPS = 1000
"""Maximum steps per cell in a projection on given loadings."""
NUMBERS = ("momentum", "max_beta", "calmest", "change", "n_iter")
"""Names of the numbers in the state of a fit."""


@dataclass(frozen=True)
class Run:
    """Run options of a fit. None of them changes the objective."""

    max_iter: int = 1000
    tol: float = 1e-4
    """Stop when the relative change of the loadings (columns summing to 1) in one iteration is smaller."""
    accelerate: bool = True
    """Whether to extrapolate usage and loadings along their last step."""
    usage_tol: float = 1e-4
    """Tolerance for the usage of each cell, at the end."""
    check_every: int = 10
    """Iterations between evaluations of the loss."""
    max_time: float = np.inf
    """Seconds after which to stop."""
    checkpoint: str | PathLike[str] | None = None
    """File to which the state is written, and from which an interrupted fit is resumed."""
    checkpoint_every: int = 50
    progress: bool = False


@dataclass(frozen=True)
class Factors:
    """Result of a fit."""

    W: np.ndarray
    """Loadings, genes x topics, columns sum to 1."""
    H: np.ndarray
    """Usage, cells x topics, of all cells: the optimum at W."""
    cell_loss: np.ndarray
    """Loss of each cell at W and H."""
    weight: np.ndarray
    """Weight of evidence of each loading, genes x topics: the last step's ``N_X + alpha P_Y`` (plus the prior's)."""
    loss: np.ndarray
    """A row per check: iteration, target loss, background loss, contrast ``L(X) - alpha L(Y)``, change of W."""
    n_iter: int
    converged: bool
    change: float
    """Change of W in the last iteration."""
    likelihood: Likelihood
    """The likelihood as given, or with its estimated parameters."""


@dataclass
class State:
    """State between iterations."""

    W: np.ndarray
    W_prev: np.ndarray
    scale: np.ndarray
    rows: Any
    """The cells' `Rows`, as placed by `RowSource.place`."""
    likelihood: Likelihood
    ratio: bool
    """Whether the logarithm of the step is extrapolated: without a contrast."""
    weight: np.ndarray = field(default_factory=lambda: np.zeros(()))
    momentum: float = 1.0
    max_beta: float = MAX_BETA
    """Cap of the extrapolation."""
    calmest: float = np.inf
    """Smallest change of W so far."""
    change: float = np.inf
    n_iter: int = 0
    loss: list[list[float]] = field(default_factory=list)


def fit(
    source: RowSource,
    likelihood: Likelihood,
    n_topics: int,
    *,
    target: np.ndarray,
    background: np.ndarray,
    start: np.ndarray | None = None,
    frozen: np.ndarray | None = None,
    expressed: np.ndarray | None = None,
    prior: np.ndarray | None = None,
    project: np.ndarray | None = None,
    refine: bool = False,
    random_state: int = 0,
    run: Run = Run(),
) -> Factors:
    """Fit loadings that describe the target but not the background.

    Parameters
    ----------
    source
        The data, cells x genes.
    likelihood
        Likelihood of the data.
    n_topics
        Number of free topics.
    target, background
        Weights per cell: 1 for the target's cells; alpha, on the paper's scale (sums over cells), for the background's.
        Cells with neither do not contribute to the fit and are projected on its result.
    start
        Loadings to start from, genes x ``n_topics``; drawn from (0, 1) with ``random_state`` by default. The usage
        starts from the cell's total, spread evenly over the topics.
    frozen
        Fixed loadings, genes x any number, columns summing to 1; they are the first topics of the result.
    expressed
        Bool per gene: genes with a value in any cell; all by default. The others have zero loadings.
    prior
        `Factors.weight` of a fit to earlier cells that ended in ``start``, to update the loadings from both.
    project
        Bool per cell: cells whose usage is computed at the end; all by default. It is zero for the others.
    refine
        Whether to estimate the likelihood's own parameters, one per gene, on the target's cells during the fit.
    random_state
        Seed of the initialisation.
    run
        Run options.
    """
    n_cells, n_genes = source.shape
    expressed = np.ones(n_genes, bool) if expressed is None else expressed
    free = initial_loadings(n_genes, n_topics, random_state) if start is None else start
    frozen = np.zeros((n_genes, 0)) if frozen is None else frozen
    for name, array, shape in (
        ("target", target, (n_cells,)),
        ("background", background, (n_cells,)),
        ("expressed", expressed, (n_genes,)),
        ("start", free, (n_genes, n_topics)),
        ("frozen", frozen, (n_genes, frozen.shape[1])),
    ):
        check_shape(name, array, shape)
    free = normalise(free, expressed)[0]
    W = np.hstack([frozen, free])
    n_frozen = frozen.shape[1]
    past = None
    if prior is not None:
        check_shape("prior", prior, W.shape)
        past = (W * prior, prior)
    numbers = (n_frozen, run.accelerate, refine, expressed, () if prior is None else prior)
    what = () if run.checkpoint is None else identity(source, likelihood)
    checkpoint = Checkpoint.open(run.checkpoint, W, target, background, *numbers, *what)
    plain = not background.any()
    state = restore(checkpoint, source, W.shape[1], [target, background], likelihood, run)
    if state is None:
        make_rows = partial(Rows.of, n_topics=W.shape[1], dtype=source.dtype, prev=run.accelerate, loss=False)
        cap = MAX_BETA if plain else MAX_BETA_UNDER_CONTRAST
        rows = source.place(make_rows, target, background)
        state = State(W, W, np.ones(W.shape[1]), rows, likelihood, ratio=plain, max_beta=cap)
    refine_on = float(target.sum()) if refine else 0.0
    deadline = time.monotonic() + run.max_time
    with (
        checkpoint,
        source.working(),
        progress_bar(show=run.progress, initial=state.n_iter, total=run.max_iter, desc="fit", unit="it") as bar,
    ):
        while state.n_iter == 0 or (
            state.n_iter < run.max_iter and state.change > run.tol and time.monotonic() < deadline
        ):
            iterate(source, state, expressed, past, n_frozen=n_frozen, refine_on=refine_on, run=run)
            checkpoint.write(partial(save, source, state), state.n_iter, run.checkpoint_every)
            bar.set_postfix(change=f"{state.change:.1e}", refresh=False)
            bar.update()
        checkpoint.write(partial(save, source, state), state.n_iter)
    H, cell_loss = transform(source, state.likelihood, state.W, project, tol=run.usage_tol)
    return Factors(
        W=state.W,
        H=H,
        cell_loss=cell_loss,
        weight=state.weight,
        loss=np.array(state.loss).reshape(-1, 5),
        n_iter=state.n_iter,
        converged=state.change <= run.tol,
        change=state.change,
        likelihood=state.likelihood,
    )


def identity(source: RowSource, likelihood: Likelihood) -> list[np.ndarray]:
    """Return a fingerprint of a fit's data and likelihood, independent of the source."""
    parameters = [np.asarray(getattr(likelihood, each.name), np.float32) for each in fields(likelihood)]
    return [np.array(likelihood.name), *fingerprint(source), *parameters]


def save(source: RowSource, state: State) -> dict[str, Any]:
    """Return arrays and numbers from which `restore` resumes the fit."""
    content = {name: getattr(state, name) for name in (*NUMBERS, "W", "W_prev", "scale", "weight", "loss")}
    content |= {name: source.gather(state.rows, name) for name in ("H", "H_prev")}
    return content | {"likelihood_" + f.name: getattr(state.likelihood, f.name) for f in fields(state.likelihood)}


def restore(
    checkpoint: Checkpoint,
    source: RowSource,
    n_topics: int,
    weights: list[np.ndarray],
    likelihood: Likelihood,
    run: Run,
) -> State | None:
    """Return the state stored in a checkpoint; None if there is none yet."""
    n_cells, n_genes = source.shape
    parameters = {f.name: "likelihood_" + f.name for f in fields(likelihood)}
    stored = checkpoint.read(
        dict.fromkeys(("W", "W_prev", "weight"), (n_genes, n_topics))
        | {"scale": (n_topics,), "H": (n_cells, n_topics), "H_prev": (n_cells * run.accelerate, n_topics)}
        | dict.fromkeys(NUMBERS, ())
        | {"loss": (None, 5)}
        | dict.fromkeys(parameters.values()),
        positive=("W", "W_prev", "weight", "scale", "H", "H_prev", *NUMBERS, *parameters.values()),
    )
    if stored is None:
        return None
    for name, key in parameters.items():
        if np.shape(stored[key]) not in ((), (n_genes,)):
            msg = f"`checkpoint` must hold one {name} or one for each of {n_genes} genes, got {np.shape(stored[key])}."
            raise UserError(msg)
    likelihood = type(likelihood)(**{name: stored.pop(key) for name, key in parameters.items()})
    cells = [each.astype(source.dtype) for each in weights]
    rows = source.place(Rows, *cells, stored.pop("H"), stored.pop("H_prev"), np.zeros(0))
    stored["loss"] = stored["loss"].tolist()
    return State(rows=rows, likelihood=likelihood, ratio=not weights[1].any(), **stored)


def iterate(
    source: RowSource,
    state: State,
    expressed: np.ndarray,
    past: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    n_frozen: int = 0,
    refine_on: float = 0.0,
    run: Run,
) -> None:
    """Do one iteration: a usage step of every cell, then one loadings step (paper, sections 4.1, S1 and S2)."""
    beta, momentum = extrapolation(state.momentum, state.max_beta) if run.accelerate else (0.0, 1.0)
    W = extrapolated(state.W, state.W_prev, beta, ratio=state.ratio)
    state.n_iter += 1
    check = state.n_iter == 1 or state.n_iter % run.check_every == 0
    refine = refine_on > 0 and (check or state.n_iter < run.check_every)

    todo = Pass(
        W.astype(source.dtype),
        state.scale,
        beta=beta,
        ratio=state.ratio,
        cold=state.n_iter == 1,
        loss=check,
        evidence=refine,
    )
    sums = source.reduce(partial(sweep, todo=todo, likelihood=state.likelihood), state.rows)
    up, down = loadings_terms(W, sums, state.likelihood)
    if past is not None:
        up, down = up + past[0], down + past[1]
    new = W.copy()
    new[:, n_frozen:], scale = normalise((up / np.maximum(down, TINY))[:, n_frozen:], expressed)

    change = float(np.linalg.norm(new - state.W)) / max(float(np.linalg.norm(state.W[:, n_frozen:])), TINY)
    state.momentum = momentum
    if not state.ratio and np.vdot(new - W, state.W - state.W_prev) < 0:
        state.momentum = 1.0  # the step reverses: restart the extrapolation
    state.calmest = min(state.calmest, change)
    if sums.p_y.shape and change > UNREST * state.calmest:
        state.max_beta /= 2  # extrapolation can keep plain updates from converging: reduce it
    state.W_prev, state.W, state.change = state.W, new, change
    state.scale = np.append(np.ones(n_frozen), scale)
    state.weight = down * state.scale
    if refine:
        state.likelihood = state.likelihood.refined(sums.evidence, refine_on)
    if check:
        loss_x, loss_y, alpha_loss_y = sums.loss
        if state.ratio and state.loss and loss_x > state.loss[-1][1]:
            state.momentum = 1.0  # the extrapolation went too far: restart it
        state.loss.append([state.n_iter, loss_x, loss_y, loss_x - alpha_loss_y, change])


def loadings_terms(W: np.ndarray, sums: Sums, likelihood: Likelihood) -> tuple[np.ndarray, np.ndarray]:
    """Compute ``W * (P_X + alpha N_Y)`` and ``N_X + alpha P_Y``, whose ratio is W's step.

    The step never raises ``L(X) - alpha L(Y)`` at the usage of the sums. Both terms can be accumulated over batches.
    """
    n_x, n_y = (W @ n if likelihood.n_kind == "mu" and n.shape else n for n in (sums.n_x, sums.n_y))
    return W * (sums.p_x + n_y), np.broadcast_to(n_x + sums.p_y, W.shape)


def normalise(W: np.ndarray, expressed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return W with columns that sum to 1 (floored in expressed genes, zero in others), and the factors for H."""
    W = np.where(expressed[:, None], W, 0.0)
    scale = np.maximum(W.sum(0), TINY)
    return np.where(expressed[:, None], np.maximum(W / scale, LOADINGS_FLOOR), 0.0), scale


def extrapolation(momentum: float, max_beta: float) -> tuple[float, float]:
    """Apply Nesterov's rule: return the extrapolation and the next momentum."""
    ahead = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
    return min((momentum - 1) / ahead, max_beta), ahead


def initial_loadings(n_genes: int, n_topics: int, random_state: int) -> np.ndarray:
    """Draw loadings from (0, 1)."""
    return np.random.default_rng(random_state).random((n_genes, n_topics))


def transform(
    source: RowSource,
    likelihood: Likelihood,
    W: np.ndarray,
    cells: np.ndarray | None = None,
    *,
    tol: float = 1e-4,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the usage of cells (all, or those of a bool array) at given loadings, and their loss there.

    Usage is ``argmin_{h >= 0} L(x, W h)``. The result for a cell depends only on W and that cell, and takes one pass
    over the data.
    """
    check_shape("W", W, (source.shape[1], W.shape[1]))
    use = np.ones(source.shape[0]) if cells is None else cells.astype(float)
    check_shape("cells", use, source.shape[:1])
    rows = source.place(
        partial(Rows.of, n_topics=W.shape[1], dtype=source.dtype, prev=False, loss=True), use, np.zeros_like(use)
    )
    todo = Pass(
        W.astype(source.dtype), np.ones(W.shape[1]), steps=USAGE_STEPS, tol=tol, cold=True, sums=False, loss=True
    )
    source.reduce(partial(sweep, todo=todo, likelihood=likelihood), rows)
    return source.gather(rows, "H"), source.gather(rows, "loss")


def check_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise unless an argument has the expected shape."""
    if array.shape != shape:  # the kernels do not check
        msg = f"`{name}` must have shape {shape}, got {array.shape}."
        raise UserError(msg)
