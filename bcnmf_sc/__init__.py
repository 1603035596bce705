"""Background-contrastive non-negative matrix factorisation for single-cell data."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import datasets, get, likelihoods, metrics, pl, pp, tl
    from ._report import report

__all__ = ["datasets", "get", "likelihoods", "metrics", "pl", "pp", "report", "tl"]
__version__ = version("bcnmf-sc")


def __getattr__(name: str) -> Any:
    """Import a submodule when it is first used, so that a worker that needs only the engine loads nothing else."""
    if name == "report":
        return import_module("._report", __name__).report
    if name in __all__:
        return import_module(f".{name}", __name__)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
