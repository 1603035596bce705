"""Progress bars: on a terminal and in a notebook, after two seconds of work."""

from __future__ import annotations

import warnings
from typing import Any


def progress_bar(iterable: Any = None, *, show: bool, **how: Any) -> Any:
    """Make a tqdm bar that appears after two seconds of work in an interactive session."""
    from tqdm import TqdmWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # in a notebook without ipywidgets, where no bar is shown
        from tqdm.auto import tqdm
    return tqdm(iterable, disable=None if show else True, delay=2, **how)
