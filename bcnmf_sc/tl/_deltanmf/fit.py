"""DeltaNMF: topics of the controls, then those that the cases have beside them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.exceptions import ConvergenceWarning

from ... import _anndata
from ..._anndata import MaskVar, Reading
from ..._stored import stored, stored_slot
from ..._utils.checks import listed, number, stack_level, start_loadings, whole_number
from ..._utils.errors import UserError
from ...engine.bcnmf.ensemble import out_of_fold, rough, shares_of, spawn
from ...engine.deltanmf.stages import Stage, fit_stage
from ...pp import _similarity
from .._bcnmf.folds import make_folds
from .._run import DeltaOptions, all_gone_through
from .data import Asked, CaseControl, emergence_table, shift_table

if TYPE_CHECKING:
    from ..._anndata import Data
    from ...engine.rows.sources import RowSource

STAGES: tuple[Literal["control", "case"], ...] = ("control", "case")
WORDS = ("condition_key", "control", "case")


def deltanmf(  # noqa: PLR0913 (what is modelled; how it is run is one group)
    adata: AnnData,
    *,
    condition_key: str,
    control: str | Sequence[str],
    case: str | Sequence[str] | None = None,
    n_topics_control: int = 10,
    n_topics_case: int = 5,
    rel_alpha: float = 0.0,
    rel_gamma: float = 1e-3,
    similarity: _similarity.Similarity | str | None = None,
    sample_key: str | None = None,
    cross_fit: int | None = 5,
    layer: str | None = None,
    mask_var: MaskVar = "auto",
    init: np.ndarray | str | None = None,
    random_state: int = 0,
    key_added: str = "deltanmf",
    copy: bool = False,
    **options: Unpack[DeltaOptions],
) -> AnnData | None:
    r"""Tell a shift of programs that controls have from programs that emerge in cases :cite:p:`karpurapu2026deltanmf`.

    Stage 1 factorises the controls. Stage 2 holds those topics and adds ``n_topics_case`` more, fitted on the cases.
    Cells are scaled to one total and genes to unit variance; then each stage minimises, over its topics :math:`W`
    (columns of norm 1) and the usage :math:`H` of its :math:`n` cells,

    .. math::
        \frac{\lVert X - H W^\top \rVert^2}{m n}
        + \frac{\alpha}{m K} \operatorname{tr}(W^\top L W)
        + \gamma \operatorname{mean}_{ij} (\hat w_{c,i}^\top \hat w_{s,j})^2

    with :math:`L` the Laplacian of the genes' similarity; the last term, in stage 2, keeps case topics apart from
    control topics. Both strengths are relative: at its start a penalty is ``rel_alpha`` or ``rel_gamma`` times the
    squared error. A similarity did not help on simulated data, and strengths above 1e-3 can hurt. More case topics than
    there are programs split some of them: compare a few numbers.

    Parameters
    ----------
    adata
        Cells × genes, counts. ``X`` and layers are only read.
    condition_key
        Column of ``adata.obs`` that tells controls from cases.
    control
        Its category, or categories, of the controls.
    case
        Its category, or categories, of the cases; by default all that are not controls. Cells in neither are projected.
    n_topics_control
        Number of topics of the controls (stage 1).
    n_topics_case
        Number of topics that the cases have beside them (stage 2). 0 ends after stage 1; all other cells are projected.
    rel_alpha
        Strength of the smoothness of topics over similar genes, at least 0; needs ``similarity``.
    rel_gamma
        Strength of the orthogonality of case topics to control topics, at least 0.
    similarity
        Similarity of genes, symmetric and at least 0: what `bcnmf_sc.pp.gene_similarity` returns, a pair of matrix
        (dense or sparse) and gene ids, a DataFrame, or the name of an entry of ``adata.varp``. Genes are matched by
        name; those that it does not know have no similar genes.
    sample_key
        Column of ``adata.obs`` with the donors: the unit of the test of shifts, and of its folds.
    cross_fit
        Number of folds out of which ``shift`` is computed, each fold by topics that have not seen it: controls fit the
        topics that were learned on them better than cases do, which looks like a shift. Takes about as many short fits.
        `None` takes the usage of the fit itself.
    layer
        Layer to read instead of ``adata.X``.
    mask_var
        Genes to use: a bool column of ``adata.var`` or a bool array. ``"auto"`` uses ``highly_variable`` where it is
        present, `None` uses all genes.
    init
        Control topics to start stage 1 from: loadings, genes used × ``n_topics_control``, in counts; or the name of a
        stored factorisation, whose control topics (or all, if it has no kinds) are taken.
    random_state
        Seed of the starts. The result depends on nothing else.
    key_added
        Name under which the results are stored.
    copy
        Return a changed copy instead of changing ``adata``.
    **options
        How counts are prepared, a start is found, and the fit is run: see `DeltaOptions`. Of a ``checkpoint``, each
        stage has its own file, with ``.control`` and ``.case`` after the name.

    Returns
    -------
    `None`, or a changed copy with ``copy=True``. Fields set:

    ``.obsm["X_" + key_added]`` : float32 array, n_obs × n_topics
        Usage of control topics, then case topics, in counts of a cell scaled to the common total: every cell's best fit
        on all topics together.
    ``.varm[key_added]`` : float32 array, n_vars × n_topics
        Loadings in counts, columns sum to 1; genes not used are zero.
    ``.obs[key_added + "_role"]`` : categorical
        ``control``, ``case`` or ``projected``.
    ``.var[key_added + "_deviation"]`` : float32
        Deviation that a gene was divided by; NaN for genes not used.
    ``.uns[key_added]`` : dict
        ``params``; ``topics`` (a row per topic: kind, mean share of usage in cases and controls, log2 of their ratio);
        ``shift`` (a row per control topic, out of fold with ``cross_fit``: its share among the control topics in cases
        and controls, difference, log2 ratio, with ``sample_key`` the donors' mean ``log2_fold_change`` with its 95 %
        interval, test); ``emergence`` (a row per case topic: its share of all usage in cases, and in controls projected
        on it, log2 enrichment, share of cells above the controls' 95 % quantile, closest control topic); ``loss`` (per
        check: iteration, half the squared error of controls and then of cases, the same with penalties, change of the
        loadings); ``n_iter``; ``converged``; ``deviance_explained`` of controls, of cases, and of cases by control
        topics alone, against their mean profile; ``mse``.

    Notes
    -----
    The p-values of ``shift`` are those of `associate` with ``method="moderated"``: log shares of the donors, of which
    those in both conditions are blocks, with variances moderated over the control topics. Without ``sample_key`` cells
    are the unit, which overstates the evidence. Case topics were fitted on the cases, so some enrichment of theirs is
    there by construction: it has no p-value.

    Raises
    ------
    ValueError
        An argument, a column, a layer, a name or a value of the data is not as said above. Nothing has been changed
        then.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated_programs(600, 400, 300, n_shared=4, n_new=1)
    >>> how = {"condition_key": "condition", "control": "ctrl", "sample_key": "donor"}
    >>> bc.tl.deltanmf(adata, n_topics_control=4, n_topics_case=1, **how)
    >>> bc.get.topics(adata, key="deltanmf").index.tolist()
    ['Control 1', 'Control 2', 'Control 3', 'Control 4', 'Case 1']
    >>> bool(adata.uns["deltanmf"]["emergence"].loc["Case 1", "log2_enrichment"] > 1)
    True
    """
    asked = Asked.of(options)
    whole_number("n_topics_control", n_topics_control, 1)
    whole_number("n_topics_case", n_topics_case, 0)
    if cross_fit is not None:
        whole_number("cross_fit", cross_fit, 2)
    for name, strength in (("rel_alpha", rel_alpha), ("rel_gamma", rel_gamma)):
        number(name, strength)
    if rel_alpha and similarity is None:
        msg = f"`similarity` must be given where `rel_alpha` is above 0, got {rel_alpha!r} and none."
        raise UserError(msg)
    if asked.reuse_control and init is None:
        msg = "`init` must be given where `reuse_control` is True, got None."
        raise UserError(msg)
    reading = Reading(
        key_added,
        copy,
        condition_key,
        control,
        case,
        WORDS,
        apart=True,
        needs_target=n_topics_case > 0,
        writes=("role",),
        sample_key=sample_key,
        likelihood="gaussian",
        layer=layer,
        mask_var=mask_var,
        exclude_genes=asked.exclude_genes,
        random_state=random_state,
        run=asked.run,
    )
    read = _anndata.read(adata, reading)
    graph, n_known = _graph(read, similarity)
    init_loadings = _init(read, init, n_topics_control)
    data = CaseControl.of(read, asked)
    for name, n, cells in (("control", n_topics_control, data.control), ("case", n_topics_case, data.case)):
        most = int(min(cells.sum(), (data.deviation > 0).sum()))
        whole_number(f"n_topics_{name}", n, 0, most, f"the smaller of {name} cells and genes used")
    start = None if init_loadings is None else data.scaled_loadings(init_loadings)

    how = Stages(n_topics_control, n_topics_case, graph, float(rel_alpha), float(rel_gamma), asked)
    stages, W = how.fit(data, start, random_state)
    result = data.result(W, n_topics_control)
    shares = result.control_share
    fold = None if cross_fit is None else _folds(data, read.samples, cross_fit, random_state)
    if fold is not None:
        shares = how.control_shares(data, W, fold, start, random_state)
    params = {
        "method": "deltanmf",
        "condition_key": condition_key,
        "control": list(read.design.backgrounds),
        "case": case if case is None or isinstance(case, str) else list(case),
        "n_topics_control": n_topics_control,
        "n_topics_case": n_topics_case,
        "rel_alpha": float(rel_alpha),
        "rel_gamma": float(rel_gamma),
        "n_genes_in_similarity": n_known,
        "sample_key": sample_key,
        "cross_fit": cross_fit,
        "init": "found" if init is None else init if isinstance(init, str) else "given",
        "mask_var": read.params["mask_var"],
    }
    record = {
        "params": data.params | asked.params | params,
        "topics": result.topics(data),
        "shift": shift_table(shares, data, read.samples),
        "loss": _loss_table(stages),
        "n_iter": sum(stage.n_iter for stage in stages.values()),
        "converged": all(stage.converged for stage in stages.values()),
        "deviance_explained": result.explained,
        "mse": result.mse,
    }
    if n_topics_case:
        record["emergence"] = emergence_table(result, data, n_topics_control)
    copied = read.store(
        W=result.loadings,
        H=result.H,
        cells={"role": data.role},
        genes={"deviation": np.where(data.deviation > 0, data.deviation, np.nan)},
        record=record,
    )
    for name, stage in stages.items():
        if not stage.converged and not all_gone_through(asked.run_of(name), stage.n_iter):
            msg = (
                f"The {name} topics still moved by {stage.change:.1e} an iteration after {stage.n_iter} iterations. "
                "Raise `max_iter`, or `tol` if that is close enough. With more topics than the data have programs "
                "there may be little to settle on: try fewer."
            )
            warnings.warn(msg, ConvergenceWarning, stacklevel=stack_level())
    return copied


@dataclass(frozen=True)
class Stages:
    """How the two stages are fitted."""

    n_control: int
    n_case: int
    similarity: Any
    rel_alpha: float
    rel_gamma: float
    asked: Asked

    def fit(
        self, data: CaseControl, start: np.ndarray | None, random_state: int, *, quick: bool = False
    ) -> tuple[dict[str, Stage], np.ndarray]:
        """Fit them to the controls and cases; return the stages that were run, and all loadings.

        If ``quick``, the fit serves out-of-fold scores only.
        """
        runs = {name: rough(self.asked.run_of(name)) if quick else self.asked.run_of(name) for name in STAGES}
        common: dict[str, Any] = {
            "similarity": self.similarity,
            "rel_alpha": self.rel_alpha,
            "random_state": random_state,
        }
        stages: dict[str, Stage] = {}
        held = start
        if not self.asked.reuse_control:
            stages["control"] = fit_stage(
                data.stage("control"),
                self.n_control,
                start=start,
                n_restarts=self.asked.n_restarts,
                consensus=self.asked.start == "consensus",
                run=runs["control"],
                **common,
            )
            held = stages["control"].W
        if self.n_case:
            stages["case"] = fit_stage(
                data.stage("case"), self.n_case, held=held, rel_gamma=self.rel_gamma, run=runs["case"], **common
            )
        W = stages["case"].W if self.n_case else held
        assert W is not None  # for type checkers: one of the stages ran, or `init` was given
        return stages, W

    def control_shares(
        self, data: CaseControl, W: np.ndarray, fold: np.ndarray, start: np.ndarray | None, random_state: int
    ) -> np.ndarray:
        """Return the share of each control topic among them, of every cell by topics that have not seen it.

        Loadings to start from may have seen the cells, so they are used only where they are held.
        """
        given = start if self.asked.reuse_control else None

        def fit_fold(source: RowSource, learn: np.ndarray, out: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
            _, found = self.fit(data.part(source, learn), given, seed, quick=True)
            return found, data.part(source, out).in_counts(found, self.n_control)[1]

        run, seed = self.asked.run_of("case"), spawn(random_state, 2)[1]
        scores = out_of_fold(data.data.source, fit_fold, W, self.n_control, fold, random_state=seed, run=run)
        return shares_of(scores.usage[:, : self.n_control])


def _folds(data: CaseControl, samples: pd.Categorical | None, n_folds: int, random_state: int) -> np.ndarray | None:
    """Deal the cells out to folds, by donor where these are known; `None` where too few are known to test anything."""
    units = np.arange(len(data.case)) if samples is None else samples.codes
    if any(len(np.unique(units[cells & (units >= 0)])) < 2 for cells in (data.control, data.case)):  # noqa: PLR2004
        return None
    return make_folds(data.data.design, samples, n_folds, spawn(random_state, 2)[0])


def _loss_table(stages: dict[str, Stage]) -> pd.DataFrame:
    """Put the stages one after the other, under the names that `pl.loss` draws: the controls are the background."""
    rows, before = [], 0
    for name, stage in stages.items():
        table = pd.DataFrame(
            stage.loss, columns=["iteration", "loss", "objective", "smoothness", "orthogonality", "change"]
        )
        table["iteration"] += before
        table.insert(1, "target", table["loss"] if name == "case" else np.nan)
        table.insert(2, "background", table["loss"] if name == "control" else np.nan)
        rows.append(table.drop(columns="loss"))
        before += stage.n_iter
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def _graph(data: Data, similarity: Any) -> tuple[Any, int]:
    """Return the similarity of the genes used, and how many of them it knows."""
    if similarity is None:
        return None, 0
    adata = data.adata
    if isinstance(similarity, str):
        if similarity not in adata.varp:
            msg = f"`similarity` {similarity!r} is not in `adata.varp`. Present: {listed(adata.varp.keys())}."
            raise UserError(msg)
        similarity = adata.varp[similarity], adata.var_names
    return _similarity.align(similarity, adata.var_names[data.genes])


def _init(data: Data, init: np.ndarray | str | None, n_topics: int) -> np.ndarray | None:
    """Return the loadings to start from, in counts, of the genes used."""
    if isinstance(init, str):
        topics = stored(data.adata, init)["topics"]
        W = np.asarray(stored_slot(data.adata, "varm", init), np.float64)[data.genes]
        if (topics.get("kind") == "control").any():
            W = W[:, (topics["kind"] == "control").to_numpy()]
        init = W
    return start_loadings(init, len(data.genes), n_topics)
