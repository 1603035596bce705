"""The mouse protein data, read from the publisher's own file in a folder or downloaded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from .._utils.checks import number
from .._utils.download import data_folder, download
from .._utils.errors import UserError

if TYPE_CHECKING:
    import os

logger = logging.getLogger(__name__)

_MICE_FILE = "mice_protein.csv"
_MICE_URL = "https://www.openml.org/data/get_csv/17928620/phpchCuL5"
_MICE_LABELS = {"Genotype": "genotype", "Treatment": "treatment", "Behavior": "behaviour", "class": "class"}


def mice_protein(path: str | os.PathLike[str] | None = None, *, max_missing: float = 0.1) -> AnnData:
    """Read cortical protein levels of 72 mice: Down syndrome model or control, with and without context learning.

    The data of Higuera et al. 2015 (PLoS ONE 10, e0129126, doi:10.1371/journal.pone.0129126), used in section 2.3 of
    the bcNMF paper: 77 proteins, 15 replicates of each mouse. Replicates are not independent, so score by mouse. The
    published values are preprocessed in three steps:

    1. proteins with more than a share `max_missing` of missing values are dropped;
    2. missing values are imputed by the median of the mouse's other replicates, or else of the protein;
    3. each protein is scaled to the range from 0 to 1, because a few published values are negative and the proteins'
       scales differ a hundredfold. `.var["minimum"]` and `.var["maximum"]` allow undoing this.

    Parameters
    ----------
    path
        The table as CSV, in the layout of UCI's ``Data_Cortex_Nuclear``. `None` looks for ``mice_protein.csv``, then
        ``Data_Cortex_Nuclear.csv``, in the folder that the environment variable ``BCNMF_SC_DATA`` names, and else
        downloads the table from OpenML (data set 40966) into the cache.
    max_missing
        Largest share of missing values, from 0 to 1, of a protein that is kept.

    Returns
    -------
    AnnData, replicates × proteins, with:

    `.X` : float32 array, `n_obs × n_vars`
        Levels from 0 to 1, with replicates in the order of the file.
    `.obs["mouse"]`, `.obs["genotype"]`, `.obs["treatment"]`, `.obs["behaviour"]`, `.obs["class"]` : categorical
        The mouse; "Control" or "Ts65Dn" (the Down syndrome model); "Saline" or "Memantine"; "C/S" (context before
        shock, which allows learning) or "S/C" (shock before context); the last three combined.
    `.obs["condition"]` : categorical
        "target": S/C with saline, of both genotypes; "background": C/S with saline, genotype Control. Missing in the
        other replicates, which a fit only projects.
    `.var["n_missing"]` : int array
        Number of imputed values.
    `.var["minimum"]`, `.var["maximum"]` : float arrays
        Published values that correspond to 0 and 1.

    Raises
    ------
    ValueError
        `path` is not a file or not this table, or `max_missing` leaves no protein.
    OSError
        The download failed; the message names the file, its address and where to put it by hand.

    Notes
    -----
    UCI publishes the table under CC BY 4.0. No checksum is known: a download is verified by the size that the server
    announces and by the table's columns. Tested on the real table; the download itself is untested.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.mice_protein("mice_protein.csv")  # doctest: +SKIP
    >>> bc.tl.bcnmf(  # doctest: +SKIP
    ...     adata, background_key="condition", background="background", n_topics=5, likelihood="gaussian"
    ... )
    """
    number("max_missing", max_missing, most=1)
    source = Path(path) if path is not None else _find_mice()
    if not source.is_file():
        msg = f"`path` must be a file, got {str(source)!r}, which is not one."
        raise UserError(msg)
    table = _read_mice(source)
    mouse = table.index.str.rsplit("_", n=1).str[0]

    levels = table.drop(columns=list(_MICE_LABELS)).apply(pd.to_numeric, errors="coerce")
    missing = levels.isna()
    kept = missing.mean() <= max_missing
    levels, missing = levels.loc[:, kept], missing.loc[:, kept]
    if levels.shape[1] == 0:
        msg = f"`max_missing` must leave a protein, got {max_missing}: all {len(kept)} miss a larger share."
        raise UserError(msg)
    levels = levels.fillna(levels.groupby(mouse).transform("median")).fillna(levels.median())
    low, high = levels.min(), levels.max()
    if dropped := list(kept.index[~kept]):
        logger.info("Dropped %d proteins with many missing values: %s.", len(dropped), ", ".join(dropped))
    logger.info("Imputed %d missing values of %d.", int(missing.to_numpy().sum()), missing.size)

    labels = table[list(_MICE_LABELS)].rename(columns=_MICE_LABELS).astype("category")
    obs = pd.concat([pd.DataFrame({"mouse": pd.Categorical(mouse)}, index=table.index), labels], axis=1)
    saline = obs["treatment"] == "Saline"
    target, background = saline & (obs["behaviour"] == "S/C"), saline & (obs["class"] == "c-CS-s")
    condition = np.select([target, background], [0, 1], default=-1)
    obs["condition"] = pd.Categorical.from_codes(condition, categories=["target", "background"])
    var = pd.DataFrame({"n_missing": missing.sum(), "minimum": low, "maximum": high})
    var.index = var.index.astype(str)
    obs.index.name = var.index.name = None
    scaled = (levels - low) / (high - low).where(high > low, 1.0)
    return AnnData(scaled.to_numpy(np.float32), obs=obs, var=var)


def _find_mice() -> Path:
    by_hand = data_folder() / "Data_Cortex_Nuclear.csv"
    if by_hand.is_file() and not (data_folder() / _MICE_FILE).is_file():
        return by_hand
    return download(_MICE_URL, _MICE_FILE)


def _read_mice(path: Path) -> pd.DataFrame:
    """Read UCI's table, or OpenML's of the same data, which quotes strings and marks missing values by "?"."""
    try:
        table = pd.read_csv(path, na_values="?", quotechar="'" if b"'" in path.read_bytes() else '"')
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        msg = f"`path` must be a readable CSV table, got {str(path)!r}: {error}"
        raise UserError(msg) from error
    needed = ["MouseID", *_MICE_LABELS]
    lacking = [name for name in needed if name not in table]
    if lacking:
        got = f"{str(path)!r} without {', '.join(lacking)}"
        msg = f"`path` must have the columns of UCI's Data_Cortex_Nuclear, got {got}."
        raise UserError(msg)
    return table.set_index("MouseID")
