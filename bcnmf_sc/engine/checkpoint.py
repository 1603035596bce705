"""Interrupt a long fit and take it up again: the state of the solver in a file."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .._utils.errors import UserError
from .._utils.files import Held, Stopped, check_place, replacing
from .kernels.block import Rows

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

    from .bcnmf.solver import State
    from .likelihoods import Likelihood
    from .rows.sources import RowSource

_NUMBERS = ("momentum", "max_beta", "calmest", "change", "n_iter")
_ARRAYS = ("W", "W_prev", "scale", "weight")


@dataclass
class Checkpoint:
    """A file that holds the state of one fit. Without a path, it does nothing.

    As a context it holds Ctrl-C, or another signal to stop that Python acts on, back until the iteration is done and
    saved, so that the state on disk is a whole one.
    """

    path: Path | None
    identity: str
    """Of the fit that the file belongs to: its data, where it starts, and under which weights."""
    _held: Held = field(default_factory=Held, repr=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None, *what: Any) -> Checkpoint:
        """Set up a checkpoint of the fit that `what` describes."""
        if path is None:
            return cls(None, "")
        place = check_place(path, "checkpoint")
        digest = hashlib.sha256()
        for part in what:
            digest.update(np.ascontiguousarray(part).tobytes())
        return cls(place, digest.hexdigest())

    @property
    def interrupted(self) -> bool:
        """Whether the fit was asked to stop."""
        return self._held.number != 0

    def save(self, source: RowSource, state: State) -> None:
        """Write the state of the solver; where interrupted, stop here."""

        def content(file: BinaryIO) -> None:
            parameters = {"likelihood_" + f.name: getattr(state.likelihood, f.name) for f in fields(state.likelihood)}
            np.savez(
                file,
                identity=np.array(self.identity),
                H=source.gather(state.rows, "H"),
                H_prev=source.gather(state.rows, "H_prev"),
                loss=np.array(state.loss),
                numbers=np.array([getattr(state, name) for name in _NUMBERS]),
                **{name: getattr(state, name) for name in _ARRAYS},
                **parameters,
            )

        self.write(content, state.n_iter)

    def write(self, content: Callable[[BinaryIO], None], n_iter: int) -> None:
        """Write what `content` writes, then put it in the place of the last one; where interrupted, stop here."""
        if self.path is not None and n_iter:
            with replacing(self.path) as unfinished, unfinished.open("wb") as file:
                content(file)
        if self.interrupted:
            msg = (
                f"The fit was interrupted after {n_iter} iterations. The same call takes it up from {str(self.path)!r}."
            )
            raise Stopped(msg, self._held.number)

    def restore(self, source: RowSource, state: State, target: np.ndarray, background: np.ndarray) -> bool:
        """Set the state of the solver to what the file holds; False where there is none yet."""

        def content(file: BinaryIO) -> dict[str, Any]:
            with np.load(file, allow_pickle=False) as arrays:
                stored = {name: arrays[name] for name in arrays.files}
            needed = ("H", "H_prev", "loss", "numbers", *_ARRAYS)
            likelihood = _with(state.likelihood, stored)
            return {name: stored[name] for name in needed} | {"identity": stored["identity"], "likelihood": likelihood}

        stored = self.read(content)
        if stored is None:
            return False
        n_cells, n_topics = source.shape[0], state.W.shape[1]
        shapes = {"W": state.W.shape, "W_prev": state.W.shape, "scale": (n_topics,), "H": (n_cells, n_topics)}
        shapes["H_prev"] = (n_cells if len(stored["H_prev"]) else 0, n_topics)
        for name, shape in shapes.items():
            if stored[name].shape != shape:  # the kernels do not look
                msg = f"`checkpoint` {str(self.path)!r} holds {name} of shape {stored[name].shape}, not {shape}."
                raise UserError(msg)
        for name, value in zip(_NUMBERS, stored["numbers"].tolist(), strict=True):
            setattr(state, name, type(getattr(state, name))(value))
        for name in _ARRAYS:
            setattr(state, name, stored[name])
        state.loss, state.likelihood = stored["loss"].tolist(), stored["likelihood"]
        weights = (target.astype(source.dtype), background.astype(source.dtype))
        state.rows = source.place(Rows, *weights, stored["H"], stored["H_prev"], np.zeros(0))
        return True

    def read(self, content: Callable[[BinaryIO], dict[str, Any]]) -> dict[str, Any] | None:
        """Return what `content` reads, which holds its ``identity``; None where there is no file yet."""
        if self.path is None or not self.path.exists():
            return None
        try:
            with self.path.open("rb") as file:
                with zipfile.ZipFile(file) as archive:  # both kinds of state are
                    if damaged := archive.testzip():
                        raise zipfile.BadZipFile(damaged)
                file.seek(0)
                stored = content(file)
            identity = str(stored["identity"])
        except Exception as error:  # a damaged or foreign file can end in anything
            if isinstance(error, OSError) and error.errno:  # the system's, not one of the content
                msg = f"`checkpoint` {str(self.path)!r} cannot be read: {error.strerror}."
                raise OSError(msg) from error
            msg = f"`checkpoint` {str(self.path)!r} is not a whole checkpoint. Name another file, or remove it."
            raise UserError(msg) from error
        if identity != self.identity:
            msg = (
                f"`checkpoint` {str(self.path)!r} belongs to another fit (other data, weights, topics or seed). "
                "Name another file, or remove it."
            )
            raise UserError(msg)
        return stored

    def __enter__(self) -> Self:
        """Hold Ctrl-C back."""
        if self.path is not None:
            self._held.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Let Ctrl-C through again."""
        self._held.__exit__()


def _with(likelihood: Likelihood, stored: dict[str, np.ndarray]) -> Likelihood:
    parameters = {f.name: stored["likelihood_" + f.name] for f in fields(likelihood)}
    return type(likelihood)(**parameters)
