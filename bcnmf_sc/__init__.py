"""Background-contrastive non-negative matrix factorisation for single-cell data."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import datasets, get, likelihoods, metrics, pl, pp, tl
    from ._report import report
    from ._settings import settings

__all__ = ["datasets", "get", "likelihoods", "metrics", "pl", "pp", "report", "settings", "tl"]
__version__ = version("bcnmf-sc")


def __getattr__(name: str) -> Any:
    """Import a submodule when it is first used, so that a worker that needs only the engine loads nothing else."""
    if name in ("report", "settings"):
        return getattr(import_module(f"._{name}", __name__), name)
    if name in __all__:
        return import_module(f".{name}", __name__)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
