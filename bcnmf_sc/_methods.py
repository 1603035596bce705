"""The factorisations of the package, one row each: all that is known of them outside their own folders.

A method is its folder in `engine/`, its folder in `tl/` and its row here; `tl`, the command line, the report,
`metrics.compare` and what is removed before a fit is stored read the rows. A method is imported when it is asked for.
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
    """What `report` says of a fit of the method."""

    question: str
    """What was asked, with the number of cells of each role, ``{column}``, ``{side}`` (its first side) and ``{who}``
    (what the second side is) to be filled in."""
    paper: str
    """To cite beside the software."""
    again: str
    """Function of `tl` that shows how stable the topics are."""
    contrast: bool = False
    """Whether a background can be checked and an alpha chosen."""
    tables: Mapping[str, str] = field(default_factory=dict)
    """Captions of the tables of `uns` that no other method has."""


@dataclass(frozen=True)
class Method:
    """A function of `tl` that factorises."""

    name: str
    """Of the function; it is also stored as ``params["method"]`` of a fit."""
    module: str
    """The module of the package that has it."""
    command: str | None = None
    """Its subcommand of the command line, if it has one."""
    summary: str = ""
    """What it does, in a line, as `--help` says it."""
    multimodal: bool = False
    """Whether it takes a MuData, too."""
    sides: tuple[str, str, str] | None = None
    """Arguments that name a column of `obs`, the category to compare with, and the category of interest."""
    kinds: tuple[str, ...] = ("target",)
    """Kinds of the topics that are sought; others are a home for what is not."""
    obs: tuple[str, ...] = ()
    """Columns it writes for cells, after the key. What is named here is removed before any fit is stored."""
    var: tuple[str, ...] = ()
    """Columns it writes for genes."""
    obsm: tuple[str, ...] = ()
    """Arrays it writes beside the usage."""
    compared: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Its names in `metrics.compare`, and the arguments that each of them sets."""
    report: Report | None = None
    """None if `report` does not show it."""

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
        report=Report("Which gene programs describe the {target} cells that were learned from?", BCNMF, again="nmf"),
    ),
    Method(
        "bcnmf",
        "tl._bcnmf.fit",
        command="fit",
        summary="Find topics of the target cells that the background cells do not have.",
        multimodal=True,
        sides=("background_key", "background", "target"),
        obs=("role", "target_share", "enriched", "pvalue"),
        var=("suppressed",),
        compared={
            "bcnmf": {"n_background_topics": 0, "sample_key": None},
            "bcnmf_split": {"basis": "split", "alpha": None},  # alpha is of the plain contrast
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
        summary="Find topics of the controls, then those that the cases have beside them.",
        sides=("condition_key", "control", "case"),
        kinds=("control", "case"),
        obs=("role",),
        var=("deviation",),
        report=Report(
            "Do the {case} cases use the programs of the {control} controls ({column!r} is {side}) in other "
            "proportions, and which programs do they have beside them?",
            DELTANMF,
            again="deltanmf",
            tables={
                "shift": "Control topics: how cases use them against controls",
                "emergence": "Case topics: how cases and controls use them",
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
    """Return what any method writes to a slot, after the key."""
    return tuple(dict.fromkeys(name for method in METHODS for name in getattr(method, slot)))


def method_of(record: Mapping[str, Any]) -> Method:
    """Return the method that made a stored fit; one that its record does not name is told by what it holds."""
    params = record.get("params", {})
    told = "gpnsf" if "posterior" in record else "bcnmf" if "background_key" in params else "nmf"
    name = str(params.get("method", told))
    found = next((method for method in METHODS if method.name == name), None)
    if found is None:
        names = ", ".join(repr(method.name) for method in METHODS)
        msg = f"`key` must name a fit of {names}, got one of {name!r}. Update bcnmf_sc, or fit anew."
        raise UserError(msg)
    return found
