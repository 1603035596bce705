"""Handwritten digits over photographs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import ndimage

from .._utils.checks import number, random_seed, whole_number
from .._utils.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_IMAGE_SIDE = 16
_PHOTO_SHRINK = 2


def digits(
    digits: Sequence[int] = (0, 1),
    *,
    n_background: int | None = None,
    background_scale: float = 0.8,
    random_state: int = 0,
) -> AnnData:
    """Superimpose handwritten digits on photographs: the digit is target-only structure, the photograph nuisance.

    The construction of section 2.2 of the bcNMF paper, from images bundled with scikit-learn. A target image is the
    elementwise maximum of a digit and `background_scale` times a patch of a photograph; a background image is
    `background_scale` times a patch alone. Every patch is used once and assigned to a condition at random, so the
    photographs have the same distribution in both conditions. Images have 16 × 16 pixels with values in [0, 1]; the
    digits are scikit-learn's 8 × 8 images enlarged by cubic splines (clipped to [0, 1]), the photographs are converted
    to grey and averaged over 2 × 2 pixels. Patches lie on a grid with a step of half a patch (finer if more are
    needed), so neighbouring patches overlap.

    Parameters
    ----------
    digits
        Digits, from 0 to 9, to include; all of their images are used (about 180 each).
    n_background
        Number of background images; `None` for two thirds of the number of target images.
    background_scale
        Factor on the values of the photographs, from 0 to 1.
    random_state
        Seed for drawing the patches.

    Returns
    -------
    AnnData, target images first, with:

    `.X` : dense float32 array, `n_obs × 256`
        Pixel values.
    `.obs["condition"]`, `.obs["digit"]` : categorical
        "target" or "background"; the digit as a string, "none" for background images.
    `.var["row"]`, `.var["col"]` : int arrays
        Position of the pixel.
    `.uns["image_shape"]` : int array
        Rows and columns: `adata.X[0].reshape(adata.uns["image_shape"])` is the first image.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.digits()
    >>> adata.obs["condition"].value_counts().to_dict()
    {'target': 360, 'background': 240}
    >>> adata.X[0].reshape(adata.uns["image_shape"]).shape
    (16, 16)
    """
    from sklearn.datasets import load_digits, load_sample_images  # needs Pillow

    shown = list(digits)
    if not shown or not set(shown) <= set(range(10)):
        msg = f"`digits` must be one or more of 0 to 9, got {digits!r}."
        raise UserError(msg)
    number("background_scale", background_scale, most=1)
    random_seed(random_state)
    bundled = load_digits()
    chosen = np.flatnonzero(np.isin(bundled.target, shown))
    n_target = len(chosen)
    if n_background is None:
        n_background = 2 * n_target // 3
    whole_number("n_background", n_background, 1)

    rng = np.random.default_rng(random_state)
    photos = [_shrink(photo @ np.array([0.299, 0.587, 0.114]) / 255.0) for photo in load_sample_images().images]
    patches = background_scale * _patches(rng, photos, n_target + n_background)
    enlarge = (1, _IMAGE_SIDE / 8, _IMAGE_SIDE / 8)
    strokes = ndimage.zoom(bundled.images[chosen] / 16.0, enlarge, order=3, mode="grid-constant", grid_mode=True)
    images = np.concatenate([np.maximum(strokes.clip(0.0, 1.0), patches[:n_target]), patches[n_target:]])

    names = sorted({str(digit) for digit in shown})
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical(
                ["target"] * n_target + ["background"] * n_background, categories=["target", "background"]
            ),
            "digit": pd.Categorical(
                [str(digit) for digit in bundled.target[chosen]] + ["none"] * n_background, categories=[*names, "none"]
            ),
        },
        index=[f"Image {i + 1}" for i in range(len(images))],
    )
    row, col = np.divmod(np.arange(_IMAGE_SIDE**2), _IMAGE_SIDE)
    var = pd.DataFrame(
        {"row": row, "col": col}, index=[f"Pixel {r + 1},{c + 1}" for r, c in zip(row, col, strict=True)]
    )
    flat = np.ascontiguousarray(images.reshape(len(images), -1), dtype=np.float32)
    return AnnData(flat, obs=obs, var=var, uns={"image_shape": np.array([_IMAGE_SIDE, _IMAGE_SIDE])})


def _shrink(photo: NDArray[np.float64]) -> NDArray[np.float64]:
    n_rows, n_cols = (side // _PHOTO_SHRINK for side in photo.shape)
    whole = photo[: n_rows * _PHOTO_SHRINK, : n_cols * _PHOTO_SHRINK]
    return whole.reshape(n_rows, _PHOTO_SHRINK, n_cols, _PHOTO_SHRINK).mean(axis=(1, 3))


def _patches(rng: np.random.Generator, photos: list[NDArray[np.float64]], n: int) -> NDArray[np.float64]:
    """Draw n patches at distinct positions, on the coarsest grid with at least n positions."""
    views = [np.lib.stride_tricks.sliding_window_view(photo, (_IMAGE_SIDE, _IMAGE_SIDE)) for photo in photos]
    step = _IMAGE_SIDE // 2
    while True:
        places = [
            (v, y, x)
            for v, view in enumerate(views)
            for y in range(0, view.shape[0], step)
            for x in range(0, view.shape[1], step)
        ]
        if len(places) >= n:
            break
        if step == 1:
            msg = f"`n_background` must give at most {len(places)} images with the digits, got {n}: no more patches."
            raise UserError(msg)
        step //= 2
    return np.stack([views[v][y, x] for v, y, x in (places[i] for i in rng.permutation(len(places))[:n])])
