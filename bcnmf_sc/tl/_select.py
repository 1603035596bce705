"""Choose alpha and the numbers of topics from the data, and say how far the result can be trusted. No labels are used.

What predicts without labels is the held-out gain ratio: by what share of its null deviance the target topics bring held-out
target cells closer, over the same for held-out background cells.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from ..engine import ensemble
from ._problem import VANISHED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..engine import Run
    from ..engine.ensemble import Gain, Model
    from ._problem import Contrast, Problem

BACKGROUND_TOPICS = (5, 10, 20, 40)
"""Numbers of background topics that are tried."""


def choose_background_topics(
    problem: Problem,
    contrast: Contrast,
    fold: np.ndarray,
    *,
    n_topics: int,
    basis: Literal["split", "shared"],
    grid: Sequence[int] = BACKGROUND_TOPICS,
    random_state: int,
    run: Run,
) -> tuple[int, pd.DataFrame, str]:
    """Return the number with the best held-out gain ratio, the table, and the reason in words."""
    most = min(int(problem.design.background.sum()) // 2, len(problem.genes))
    grid = [n for n in grid if n <= most] or [max(1, most // 2)]
    models = [problem.model(contrast, n_topics, n, basis) for n in grid]
    gains = ensemble.select(problem.source, models, fold, random_state=random_state, run=run)
    table = pd.DataFrame([{"n_background_topics": n} | summary(g) for n, g in zip(grid, gains, strict=True)])
    best = int(table["gain_ratio"].idxmax())
    reason = (
        f"{grid[best]} background topics have the largest held-out gain ratio, {table['gain_ratio'][best]:.3g}, "
        f"of {', '.join(map(str, grid))}."
    )
    return grid[best], table, reason


def summary(gains: Sequence[Gain]) -> dict[str, float]:
    """Mean held-out figures over folds."""
    mean = {name: float(np.mean([getattr(g, name) for g in gains])) for name in ("target", "background")}
    explained = {f"explained_{part}": float(np.mean([getattr(g, f"explained_{part}") for g in gains])) for part in mean}
    ratio = mean["target"] / max(mean["background"], 1e-12)
    return {"gain_ratio": ratio, "gain_target": mean["target"], "gain_background": mean["background"], **explained}
