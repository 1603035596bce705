"""How a fit is run: the options that every fit shares, and their checks."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from os import PathLike
from typing import Any, Literal, TypedDict

import numpy as np

from .._utils.checks import number, whole_number
from .._utils.errors import UserError, UserTypeError
from .._utils.files import check_place
from ..engine import LIKELIHOODS, Run
from ..engine.likelihoods import Likelihood as Likelihood
from ..engine.likelihoods import LikelihoodName as LikelihoodName

ELSEWHERE = {
    "n_jobs": "n_threads",
    "n_cpus": "n_threads",
    "n_workers": "n_threads",
    "num_threads": "n_threads",
    "seed": "random_state",
    "rng": "random_state",
    "verbose": "progress",
    "verbosity": "progress",
    "progress_bar": "progress",
    "show_progress": "progress",
    "batch_key": "sample_key",
    "donor_key": "sample_key",
    "use_raw": "layer",
    "use_highly_variable": "mask_var",
    "n_components": "n_topics",
    "n_factors": "n_topics",
    "max_epochs": "max_iter",
    "n_iter": "max_iter",
    "use_gpu": "device",
    "accelerator": "device",
    "inplace": "copy",
    "key": "key_added",
}
"""Names of scanpy, scikit-learn and scvi-tools, and ours."""


class SpatialRunOptions(TypedDict, total=False):
    """How a spatial fit is run.

    Parameters
    ----------
    max_iter
        Passes over the spots at most (200).
    tol
        Stop when the bound, averaged over 20 passes, rises by less than this share of its size over the next 20 (2e-5),
        and does not fall by more than chance. With 0 all passes are made.
    max_time
        Seconds after which to stop (none).
    batch_size
        Spots per step (all of them up to 1,000, else 400).
    learning_rate
        Step of the optimiser, which falls to a twentieth over ``max_iter`` passes (0.03).
    n_samples
        Draws of the usage per step (1).
    device
        A CUDA device as torch names it, such as ``"cuda"``; the CPU by default.
    checkpoint
        File to which the state is written, and from which an interrupted fit is taken up (none).
    checkpoint_every
        Passes between two writes (25).
    progress
        Show a progress bar once a fit takes more than two seconds (True).
    """

    max_iter: int
    tol: float
    max_time: float
    batch_size: int | None
    learning_rate: float
    n_samples: int
    device: str | None
    checkpoint: str | PathLike[str] | None
    checkpoint_every: int
    progress: bool


class RunOptions(TypedDict, total=False):
    """How a fit is run; none of it changes what is sought. The same for every fit.

    Parameters
    ----------
    max_iter
        Iterations at most (1000).
    tol
        Stop when the loadings move by less than this share in one iteration (1e-4).
    max_time
        Seconds after which a fit stops (none). Where a call makes several fits, each has as long.
    accelerate
        Extrapolate the updates. By default where that is safe, up to an effective alpha of 0.5.
    n_threads
        Threads that work on blocks of cells; all that the machine lends by default. The result does not depend on it.
    device
        A CUDA device as torch names it, such as ``"cuda"``; the CPU by default. The result is the same to about 1e-4.
    batch_size
        Cells per block; chosen by default. The result does not depend on it (to about 1e-5).
    checkpoint
        File to which the state of the fit is written, and from which an interrupted fit is taken up (none). Folds,
        restarts and fits that choose a number are not written: they begin anew. Calls that make nothing but such fits
        refuse it: `consensus`, `select_alpha`, `select_n_topics`, `background_check`.
    checkpoint_every
        Iterations between two writes (50).
    client
        Client of a dask cluster whose workers fit a dask array; the active client by default, if there is one. The
        result does not depend on it (to about 1e-5).
    progress
        Show a progress bar once a fit takes more than two seconds (True).
    """

    max_iter: int
    tol: float
    max_time: float
    accelerate: bool | None
    n_threads: int | None
    device: str | None
    batch_size: int | None
    checkpoint: str | PathLike[str] | None
    checkpoint_every: int
    client: Any
    progress: bool


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of a function's arguments; MuData, which need not be installed, is any.

    Types that a module imports for type checkers only are listed here.
    """
    return typing.get_type_hints(function, localns=_typing_names())


def _typing_names() -> dict[str, Any]:
    from anndata import AnnData

    from .._anndata import MaskVar
    from ._design import Contrast, Method

    named = {"AnnData": AnnData, "MaskVar": MaskVar, "Contrast": Contrast, "Method": Method, "MuData": Any}
    named |= {"GeneSets": str | PathLike[str], "Annotation": str | PathLike[str], "RunOptions": RunOptions}
    named |= {"Sequence": Sequence, "Mapping": Mapping, "Likelihood": Likelihood, "LikelihoodName": LikelihoodName}
    return named


def options_of(function: Callable[..., Any]) -> type | None:
    """Return the TypedDict of the options that a function takes beside its arguments, if it takes any."""
    more = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.VAR_KEYWORD]
    return next(iter(typing.get_args(hints(function)[more[0]])), None) if more else None


def arguments(function: Callable[..., Any]) -> set[str]:
    """Name all that a function takes, its options included."""
    return {*inspect.signature(function).parameters, *getattr(options_of(function), "__annotations__", ())}


def all_gone_through(run: Run, n_iter: int) -> bool:
    """Say whether a fit has done what it was asked: all iterations, with no rest to come to."""
    return not run.tol and n_iter >= run.max_iter


def run_settings(options: Mapping[str, Any], *, accelerate: bool) -> Run:
    """Return the solver's share of the options."""
    names = ("max_iter", "tol", "max_time", "checkpoint", "checkpoint_every")
    given = {name: options[name] for name in names if options.get(name) is not None}
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


def no_parameters(given: Mapping[str, Any]) -> None:
    """Refuse parameters of a likelihood, which its object takes."""
    of_kind = {
        kind: [f"{each.name}={given[each.name]!r}" for each in fields(kind) if each.name in given]
        for kind in LIKELIHOODS.values()
    }
    kind, own = max(of_kind.items(), key=lambda item: len(item[1]))
    if own:
        write = f"likelihood=bc.likelihoods.{kind.__name__}({', '.join(own)})"
        msg = f"`{own[0].partition('=')[0]}` must be given to the likelihood, got {own[0]}. Write `{write}`."
        raise UserTypeError(msg)


def did_you_mean(name: str, options: type) -> str:
    """Suggest the argument that other packages call so, or that is written much like it; nothing if there is none."""
    known = [*options.__annotations__, *ELSEWHERE.values(), "n_topics", "n_background_topics", "background_key"]
    found = difflib.get_close_matches(name.lower(), known, 1, 0.75)
    meant = ELSEWHERE.get(name.lower())
    if meant is not None and (meant in options.__annotations__ or meant not in RunOptions.__annotations__):
        found = [meant]
    return f" Did you mean `{found[0]}`?" if found else ""


def check_run(run: Mapping[str, Any], options: type) -> None:
    """Refuse ways to run that are none of the `options`, and values that they cannot have."""
    unknown = set(run) - set(options.__annotations__)
    if unknown:
        if options is RunOptions:
            no_parameters(run)
        name = sorted(unknown)[0]
        ways = ", ".join(options.__annotations__)
        msg = f"Unknown argument {name!r}.{did_you_mean(name, options)} Ways to run: {ways}."
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
    """How counts are prepared, a start is found and a fit is run in `deltanmf`; ``accelerate`` has no effect there.

    Parameters
    ----------
    library
        What each cell's total is scaled to, the median over controls and cases, a million, or nothing (median).
    scale
        Deviations that genes are divided by, the controls' in both stages; those of all cells; each stage's own, which
        puts the control topics into other units in the second stage; or none (control).
    min_cells
        Genes with a count in fewer control and case cells are left out (3).
    exclude_genes
        Names of genes to leave out (none).
    n_restarts
        Short fits of the controls that the start is made from (3).
    start
        Start from the median of their matched topics, or from the best of them (consensus).
    reuse_control
        Take `init` as the control topics as they are, and fit the case topics alone (False).
    """

    library: Literal["median", "tpm", "none"]
    scale: Literal["control", "pooled", "separate", "none"]
    min_cells: int
    exclude_genes: Sequence[str] | None
    n_restarts: int
    start: Literal["consensus", "best"]
    reuse_control: bool
