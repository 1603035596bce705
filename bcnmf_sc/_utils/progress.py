"""Progress bars: on a terminal and in a notebook, after two seconds of work."""

from __future__ import annotations

import sys
import warnings
from typing import Any


def progress_bar(iterable: Any = None, *, show: bool, **how: Any) -> Any:
    """Make a tqdm bar that appears after two seconds of work in an interactive session."""
    from tqdm import TqdmWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # in a notebook without ipywidgets, where the bar is text
        from tqdm.auto import tqdm
    return tqdm(iterable, disable=not (show and watched()), delay=2, **how)


def watched() -> bool:
    """Say whether someone can see the bar: stderr is a terminal, or the session is a notebook."""
    if sys.stderr is not None and sys.stderr.isatty():
        return True
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config
