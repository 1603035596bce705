"""How a fit is run: the options that every fit shares, and their checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from .._utils.checks import number, whole_number
from .._utils.errors import UserError, UserTypeError
from .._utils.files import check_place
from ..engine import Run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

LikelihoodName = Literal["gaussian", "poisson", "nb", "zinb"]


class SpatialRunOptions(TypedDict, total=False):
    """How a spatial fit is run."""

    max_iter: int
    """Passes over the spots at most (200)."""
    tol: float
    """Stop when the bound, averaged over 20 passes, rises by less than this share of its size over the next 20 (2e-5),
    and does not fall by more than chance. With 0 all passes are gone through."""
    max_time: float
    """Seconds after which to stop (none)."""
    batch_size: int | None
    """Spots per step (all of them up to 1,000, else 400)."""
    learning_rate: float
    """Step of the optimiser, which falls to a twentieth over ``max_iter`` passes (0.03)."""
    n_samples: int
    """Draws of the usage per step (1)."""
    device: str | None
    """A CUDA device as torch names it, such as ``"cuda"``; the CPU by default."""
    checkpoint: str | PathLike[str] | None
    """File to which the state is written, and from which an interrupted fit is taken up (none)."""
    checkpoint_every: int
    """Passes between two writes (25)."""
    progress: bool
    """Show a progress bar once a fit takes more than two seconds (True)."""


class RunOptions(TypedDict, total=False):
    """How a fit is run; none of it changes what is sought. The same for every fit."""

    max_iter: int
    """Iterations at most (1000)."""
    tol: float
    """Stop when the loadings move by less than this share in one iteration (1e-4)."""
    max_time: float
    """Seconds after which a fit stops (none). Where a call makes several fits, each has as long."""
    accelerate: bool | None
    """Extrapolate the updates. By default where that is safe, up to an effective alpha of 0.5."""
    n_threads: int | None
    """Threads that work on blocks of cells; all that the machine lends by default. The result does not depend on it."""
    device: str | None
    """A CUDA device as torch names it, such as ``"cuda"``; the CPU by default. The result is the same to about 1e-4."""
    batch_size: int | None
    """Cells per block; chosen by default. The result does not depend on it (to about 1e-5)."""
    checkpoint: str | PathLike[str] | None
    """File to which the state of the fit is written, and from which an interrupted fit is taken up (none). Folds,
    restarts and fits that choose a number are not written: they begin anew. Calls that make nothing but such fits
    refuse it: `consensus`, `select_alpha`, `select_n_topics`, `background_check`."""
    checkpoint_every: int
    """Iterations between two writes (50)."""
    client: Any
    """Client of a dask cluster whose workers fit a dask array; the active client by default, if there is one. The
    result does not depend on it (to about 1e-5)."""
    progress: bool
    """Show a progress bar once a fit takes more than two seconds (True)."""


def all_gone_through(run: Run, n_iter: int) -> bool:
    """Say whether a fit has done what it was asked: all iterations, with no rest to come to."""
    return not run.tol and n_iter >= run.max_iter


def run_settings(options: RunOptions, *, accelerate: bool) -> Run:
    """Return the solver's share of the options."""
    names = ("max_iter", "tol", "max_time", "checkpoint", "checkpoint_every")
    given = {name: options[name] for name in names if options.get(name) is not None}  # type: ignore[literal-required]
    if options.get("accelerate") is not None:
        accelerate = bool(options["accelerate"])
    return Run(accelerate=accelerate, progress=options.get("progress", True), **given)


def no_checkpoint(run: RunOptions) -> None:
    """Refuse a checkpoint where many fits are made, of which it could hold one."""
    if run.get("checkpoint") is not None:
        msg = (
            f"`checkpoint` must be None where many fits are made, got {str(run['checkpoint'])!r}: a file holds the "
            "state of one. `max_time` bounds each of them."
        )
        raise UserError(msg)


def check_run(run: Mapping[str, Any], options: type) -> None:
    """Refuse ways to run that are none of the `options`, and values that they cannot have."""
    unknown = set(run) - set(options.__annotations__)
    if unknown:
        msg = f"Unknown argument {sorted(unknown)[0]!r}. Ways to run: {', '.join(options.__annotations__)}."
        raise UserTypeError(msg)
    if run.get("checkpoint") is not None:
        check_place(run["checkpoint"], "checkpoint")
    for name in ("max_iter", "n_threads", "batch_size", "checkpoint_every", "n_samples"):
        if run.get(name) is not None:
            whole_number(name, run[name], 1)
    for name in ("tol", "max_time", "learning_rate"):
        if run.get(name) is not None:
            number(name, run[name], most=np.inf)


class DeltaOptions(RunOptions, total=False):
    """How counts are prepared, a start is found and a fit is run in `deltanmf`; ``accelerate`` has no effect there."""

    library: Literal["median", "tpm", "none"]
    """What each cell's total is scaled to, the median over controls and cases, a million, or nothing (median)."""
    scale: Literal["control", "pooled", "separate", "none"]
    """Deviations that genes are divided by, the controls' in both stages; those of all cells; each stage's own, which
    puts the control topics into other units in the second stage; or none (control)."""
    min_cells: int
    """Genes with a count in fewer control and case cells are left out (3)."""
    exclude_genes: Sequence[str] | None
    """Names of genes to leave out (none)."""
    n_restarts: int
    """Short fits of the controls that the start is made from (3)."""
    start: Literal["consensus", "best"]
    """Start from the median of their matched topics, or from the best of them (consensus)."""
    reuse_control: bool
    """Take `init` as the control topics as they are, and fit the case topics alone (False)."""
