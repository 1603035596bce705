"""Registry of the package's factorisations: all that the rest of the package knows of them.

A method consists of its folder in `engine/`, its folder in `tl/` and its row here. The rows are read by `tl`, the
command line, the report, `metrics.compare` and the removal of an earlier fit. Methods are imported on first use.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._utils.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BCNMF = (
    "Yixuan Li, Archer Y. Yang, Yue Li. Disentangling Shared and Target-Enriched Topics via Background-Contrastive "
    "Non-negative Matrix Factorization. arXiv:2602.22387 (2026)."
)
DELTANMF = (
    "Anish Karpurapu, Charles A. Gersbach, Rohit Singh. DeltaNMF: A Two-Stage Neural NMF for Differential Gene "
    "Program Discovery. bioRxiv (2026). doi:10.64898/2026.01.22.701049."
)


@dataclass(frozen=True)
class Report:
    """Texts of `report` for a fit of the method."""

    question: str
    """The question, a template with the number of cells of each role, ``{column}``, ``{side}`` (its first side) and
    ``{who}`` (its second side)."""
    paper: str
    """Citation in addition to the software's."""
    again: str
    """Function of `tl` that measures the stability of the topics."""
    contrast: bool = False
    """Whether a background can be checked and an alpha selected."""
    tables: Mapping[str, str] = field(default_factory=dict)
    """Captions of tables in `uns` specific to the method."""


@dataclass(frozen=True)
class Method:
    """A function of `tl` that factorises."""

    name: str
    """Name of the function; also stored as ``params["method"]`` of a fit."""
    module: str
    """Module of the package that defines it."""
    command: str | None = None
    """Its subcommand on the command line, if any."""
    summary: str = ""
    """One-line summary for `--help`."""
    multimodal: bool = False
    """Whether it also accepts a MuData."""
    sides: tuple[str, str, str] | None = None
    """Arguments for a column of `obs`, the reference category, and the category of interest."""
    kinds: tuple[str, ...] = ("target",)
    """Kinds of the topics of interest; other kinds absorb the remaining variation."""
    obs: tuple[str, ...] = ()
    """Suffixes of the columns it writes for cells. They are removed before any fit is stored."""
    var: tuple[str, ...] = ()
    """Suffixes of the columns it writes for genes."""
    obsm: tuple[str, ...] = ()
    """Arrays it writes in addition to the usage."""
    compared: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Its names in `metrics.compare`, with the arguments that each sets."""
    report: Report | None = None
    """None if `report` does not support it."""

    @property
    def function(self) -> Callable[..., Any]:
        """The function itself."""
        return getattr(import_module(f".{self.module}", __package__), self.name)


METHODS = (
    Method(
        "nmf",
        "tl._bcnmf.fit",
        obs=("role",),
        compared={"nmf": {}},
        report=Report("Which gene programs describe the {target} cells of the fit?", BCNMF, again="nmf"),
    ),
    Method(
        "bcnmf",
        "tl._bcnmf.fit",
        command="fit",
        summary="Find topics of the target cells that the background cells do not have.",
        multimodal=True,
        sides=("background_key", "background", "target"),
        obs=("role", "target_share", "enriched", "pvalue", "padj"),
        var=("suppressed",),
        compared={
            "bcnmf": {"n_background_topics": 0, "sample_key": None},
            "bcnmf_split": {"basis": "split", "alpha": None},  # `alpha` applies to the plain contrast only
            "bcnmf_shared": {"basis": "shared"},
        },
        report=Report(
            "Which gene programs do the {target} target cells ({who}) have that the {background} background cells "
            "({column!r} is {side}) do not have?",
            BCNMF,
            again="consensus",
            contrast=True,
        ),
    ),
    Method(
        "deltanmf",
        "tl._deltanmf.fit",
        command="deltanmf",
        summary="Find topics of the controls, then additional topics of the cases.",
        sides=("condition_key", "control", "case"),
        kinds=("control", "case"),
        obs=("role",),
        var=("deviation",),
        report=Report(
            "Do the {case} cases use the programs of the {control} controls ({column!r} is {side}) in different "
            "proportions, and which additional programs do they have?",
            DELTANMF,
            again="deltanmf",
            tables={
                "shift": "Control topics: usage in cases against controls",
                "emergence": "Case topics: usage in cases and controls",
            },
        ),
    ),
    Method(
        "gpnsf",
        "tl._gpnsf.fit",
        command="gpnsf",
        summary="Find topics whose usage varies smoothly over space.",
        multimodal=True,
        kinds=("spatial", "nonspatial"),
        obs=("size_factor",),
        var=("dispersion", "sd"),
        obsm=("sd",),
    ),
)


def fields_written(slot: str) -> tuple[str, ...]:
    """Return the suffixes that any method writes to a slot."""
    return tuple(dict.fromkeys(name for method in METHODS for name in getattr(method, slot)))


def method_of(record: Mapping[str, Any]) -> Method:
    """Return the method of a stored fit; if its record does not name one, it is inferred from the record's contents."""
    params = record.get("params", {})
    told = "gpnsf" if "posterior" in record else "bcnmf" if "background_key" in params else "nmf"
    name = str(params.get("method", told))
    found = next((method for method in METHODS if method.name == name), None)
    if found is None:
        names = ", ".join(repr(method.name) for method in METHODS)
        msg = f"`key` must name a fit of {names}, got one of {name!r}. Update bcnmf_sc, or fit again."
        raise UserError(msg)
    return found
