"""Small simulated files in the publishers' layouts, for offline tutorials and tests of the parsers."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .._utils.checks import one_of, random_seed
from ._kang import KANG
from ._leukemia import LEUKEMIA
from ._mdd import MDD
from ._mixseq import MIXSEQ, TP53

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

N_GENES = 600
PROGRAM = 20
"""Number of genes of a program, the strongest first; the first carry the known names."""
MARKERS = {
    "pre": "HBG2 HBG1 HBA2 HBA1 HBB ALAS2 CA1 AHSP",
    "post": "MXD1 CLEC2B SAT1 DLK1 GATA2 S100A12 FPR1 CSF3R",
    "p53": "MDM2 CDKN1A TP53I3 FDXR GDF15 RPS27L ZMAT3 SESN1 BBC3 TNFRSF10B",
    "stress": "FOS JUN HSPA1A HSPB1 NR4A1 DUSP1 MT1X MT2A",
    "interferon": "ISG15 IFI6 IFIT1 IFIT2 IFIT3 MX1 OAS1 CXCL10",
}
"""Gene names given to the planted programs."""


def stand_in(name: str, folder: str | os.PathLike[str], *, random_state: int = 0) -> Path:
    r"""Write small simulated files in the layout of a published data set, to be read by the function of its name.

    Allows trying out and testing an analysis without a download: the same function reads the stand-in and the real
    files. The counts have no biological meaning. A cell :math:`i` with the programs :math:`P_i` (of its type, line or
    donor, and those planted in its condition) has the counts

    .. math:: x_{ig} \sim \mathrm{Poisson}\big(\ell_i \textstyle\sum_k H_{ik} W_{gk}\big), \qquad
        H_{ik} > 0 \text{ for } k \in P_i,

    with 600 genes, 20 of them specific to each program. Planted genes carry names known from the real data (hemoglobin
    before the transplant, p53 targets in treated lines with intact TP53, interferon genes), so recovering them shows
    that the code works and nothing about biology.

    Parameters
    ----------
    name
        ``"leukemia"``, ``"mixseq"``, ``"mdd"`` or ``"kang"``.
    folder
        Folder to write to, created if needed. Files of a real data set are never overwritten: a folder that already
        contains one of the file names is an error.
    random_state
        Seed of the simulation.

    Returns
    -------
    The folder. Beside the publisher's files it holds ``gene_biotypes.csv``, for :func:`bcnmf_sc.pp.protein_coding`, and
    ``gene_sets.gmt``, with the planted programs and random sets, for :func:`bcnmf_sc.tl.enrich`.

    Raises
    ------
    ValueError
        `name` is unknown.
    FileExistsError
        A file to be written already exists.

    Examples
    --------
    >>> import tempfile
    >>> import bcnmf_sc as bc
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bc.datasets.leukemia(bc.datasets.stand_in("leukemia", folder)).shape
    (650, 600)
    """
    writers = {"leukemia": _leukemia, "mixseq": _mixseq, "mdd": _mdd, "kang": _kang}
    one_of("name", name, writers)
    random_seed(random_state)
    rng = np.random.default_rng(random_state)
    files, programs, names = writers[name](rng)
    files["gene_biotypes.csv"] = _biotypes(names)
    files["gene_sets.gmt"] = _gene_sets(rng, programs, names)
    place = Path(folder)
    if there := [file for file in files if (place / file).exists()]:
        msg = f"`folder` must not contain {there[0]}, got {str(place)!r}, which does. Choose an empty folder."
        raise FileExistsError(msg)
    place.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (place / file).write_bytes(content)
    return place


class _Genes:
    """The genes' names and programs."""

    def __init__(self, rng: np.random.Generator, programs: Sequence[str]) -> None:
        self.names = [f"GENE{i + 1}" for i in range(N_GENES)]
        self.ids = [f"ENSG{i + 1:011d}" for i in range(N_GENES)]
        places = rng.permutation(N_GENES)[: PROGRAM * len(programs)].reshape(len(programs), PROGRAM)
        self.base = rng.lognormal(0.0, 1.0, N_GENES)
        self.base /= self.base.sum()
        self.members: dict[str, np.ndarray] = {}
        self.profile: dict[str, np.ndarray] = {}
        for program, own in zip(programs, places, strict=True):
            for place, known in zip(own, MARKERS.get(program, "").split(), strict=False):
                self.names[place] = known
            self.members[program] = own
            self.profile[program] = np.zeros(N_GENES)
            self.profile[program][own] = np.sort(rng.dirichlet(np.full(PROGRAM, 2.0)))[::-1]

    def counts(self, rng: np.random.Generator, cells: Sequence[dict[str, float]]) -> np.ndarray:
        """Draw counts, cells x genes, from each cell's shares of programs; the rest is alike in all cells."""
        shares = pd.DataFrame(cells).reindex(columns=list(self.profile)).fillna(0.0).to_numpy()
        mean = shares @ np.array(list(self.profile.values())) + (1 - shares.sum(axis=1, keepdims=True)) * self.base
        return rng.poisson(1200 * rng.lognormal(0.0, 0.3, (len(cells), 1)) * mean)


def _leukemia(rng: np.random.Generator) -> tuple[dict[str, bytes], dict[str, np.ndarray], list[str]]:
    types = [f"type {i + 1}" for i in range(4)]
    genes = _Genes(rng, [*types, "pre", "post"])
    files = {}
    for condition, n in (("pre", 200), ("post", 200), ("healthy", 250)):
        cells = [{str(rng.choice(types)): 0.35} for _ in range(n)]
        for cell in cells:
            if condition in genes.profile and rng.random() < 0.8:  # noqa: PLR2004 (most cells)
                cell[condition] = rng.uniform(0.05, 0.2)
        triplet = _triplet(rng, genes, genes.counts(rng, cells))
        inside = {f"filtered_matrices_mex/hg19/{name}": text for name, text in triplet.items()}
        files[LEUKEMIA[condition].name] = _gzip(_tar(inside))
    return files, genes.members, genes.names


def _mixseq(rng: np.random.Generator) -> tuple[dict[str, bytes], dict[str, np.ndarray], list[str]]:
    intact, mutant = (TP53[status].split() for status in ("wild type", "mutant"))
    lines = np.array([*intact, *mutant])
    genes = _Genes(rng, [*lines, "p53", "stress"])
    files = {}
    for condition, n in (("idasanutlin", 400), ("DMSO", 350)):
        line = rng.choice(lines, n)
        cells = [{str(name): 0.35, "stress": 0.1 * rng.random()} for name in line]
        for cell, name in zip(cells, line, strict=True):
            if condition == "idasanutlin" and name in intact:
                cell["p53"] = rng.uniform(0.08, 0.2)
        triplet = _triplet(rng, genes, genes.counts(rng, cells))
        calls = pd.DataFrame(
            {
                "barcode": triplet["barcodes.tsv"].decode().split(),
                "singlet_ID": [f"{name}_TISSUE" for name in line],
                "cell_quality": rng.choice(["normal", "doublet", "low_quality"], n, p=[0.94, 0.04, 0.02]),
                "DepMap_ID": [f"ACH-{np.flatnonzero(lines == name)[0]:06d}" for name in line],
            }
        )
        triplet["classifications.csv"] = calls.to_csv(index=False).encode()
        archive = MIXSEQ[condition].name
        files[archive] = _zip({f"{archive.removesuffix('.zip')}/{name}": text for name, text in triplet.items()})
    return files, genes.members, genes.names


def _mdd(rng: np.random.Generator) -> tuple[dict[str, bytes], dict[str, np.ndarray], list[str]]:
    donors = {f"F{i + 1}": "Case" if i % 2 else "Control" for i in range(8)}
    genes = _Genes(rng, ["Ast", "Oli", "Mic", "stress", *donors])
    cells, words = [], []
    for donor in [*donors, "M1"]:
        for barcode in _barcodes(rng, 90):
            kind = str(rng.choice(["Ast", "Oli", "Mic"], p=[0.35, 0.55, 0.1]))
            cell = {kind: 0.35}
            if donor in donors:
                cell[donor] = 0.05
            if donors.get(donor) == "Case" and rng.random() < 0.4:  # noqa: PLR2004 (some cells)
                cell["stress"] = rng.uniform(0.05, 0.2)
            cells.append(cell)
            words.append(f"{donor}.{barcode}.{kind}.{kind}1")
    record = [f"^SAMPLE = GSM{i}\n!Sample_title = {name}" for i, name in enumerate(donors)]
    record = [
        f"{head}\n!Sample_characteristics_ch1 = Sex: Female\n!Sample_characteristics_ch1 = group: {donors[donor]}\n"
        for head, donor in zip(record, donors, strict=True)
    ]
    matrix, rows, columns, soft = (file.name for file in MDD)
    files = {
        matrix: _gzip(_matrix_market(genes.counts(rng, cells))),
        rows: _gzip(pd.DataFrame({"x": genes.names}).to_csv().encode()),
        columns: _gzip(pd.DataFrame({"x": words}).to_csv().encode()),
        soft: _gzip(("^SERIES = GSE213982\n" + "".join(record)).encode()),
    }
    return files, genes.members, genes.names


def _kang(rng: np.random.Generator) -> tuple[dict[str, bytes], dict[str, np.ndarray], list[str]]:
    types, donors = ["CD14+ Monocytes", "CD4 T cells", "B cells"], ["101", "107", "1015", "1016"]
    genes = _Genes(rng, [*types, *donors, "interferon"])
    in_tar, tables, shared = {}, [], _barcodes(rng, 1)[0]
    for condition, number, lane in (("ctrl", "GSM2560248", "2.1"), ("stim", "GSM2560249", "2.2")):
        kind, donor = rng.choice(types, 240), rng.choice(donors, 240)
        cells = [{str(k): 0.35, str(d): 0.05} for k, d in zip(kind, donor, strict=True)]
        for cell in cells if condition == "stim" else ():
            cell["interferon"] = rng.uniform(0.05, 0.2)
        barcodes = [shared, *_barcodes(rng, 239)]  # one barcode in both runs, as in the real data
        in_tar[f"{number}_{lane}.mtx.gz"] = _gzip(_matrix_market(genes.counts(rng, cells)))
        in_tar[f"{number}_barcodes.tsv.gz"] = _gzip("\n".join(barcodes).encode())
        index = barcodes if condition == "ctrl" else [shared.replace("-1", "-11"), *barcodes[1:]]
        quality = rng.choice(["singlet", "doublet", "ambs"], 240, p=[0.9, 0.08, 0.02])
        columns = {"tsne1": 0.0, "tsne2": 0.0, "ind": donor, "stim": condition, "cluster": 0, "cell": kind}
        tables.append(pd.DataFrame({**columns, "multiplets": quality}, index=index))
    archive, table, labels = (file.name for file in KANG)
    files = {
        archive: _tar(in_tar),
        table: _gzip(_gene_table(genes)),
        labels: _gzip(pd.concat(tables).to_csv(sep="\t").encode()),
    }
    return files, genes.members, genes.names


def _barcodes(rng: np.random.Generator, n: int) -> list[str]:
    return ["".join(letters) + "-1" for letters in rng.choice(list("ACGT"), (n, 16))]


def _gene_table(genes: _Genes) -> bytes:
    return pd.DataFrame({"id": genes.ids, "symbol": genes.names}).to_csv(sep="\t", header=False, index=False).encode()


def _triplet(rng: np.random.Generator, genes: _Genes, counts: np.ndarray) -> dict[str, bytes]:
    barcodes = "\n".join(_barcodes(rng, len(counts)))
    return {
        "matrix.mtx": _matrix_market(counts),
        "genes.tsv": _gene_table(genes),
        "barcodes.tsv": f"{barcodes}\n".encode(),
    }


def _matrix_market(counts: np.ndarray) -> bytes:
    """Write a Matrix Market file of genes x cells, numbered from 1."""
    cell, gene = np.nonzero(counts)
    head = f"%%MatrixMarket matrix coordinate integer general\n%\n{counts.shape[1]} {len(counts)} {len(cell)}\n"
    rows = pd.DataFrame({"gene": gene + 1, "cell": cell + 1, "count": counts[cell, gene]})
    return head.encode() + rows.to_csv(sep=" ", header=False, index=False).encode()


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _biotypes(names: Sequence[str]) -> bytes:
    kinds = ["lncRNA" if name.startswith("GENE") and i % 10 == 0 else "protein_coding" for i, name in enumerate(names)]
    return pd.DataFrame({"gene_name": list(names), "gene_biotype": kinds}).to_csv(index=False).encode()


def _gene_sets(rng: np.random.Generator, programs: dict[str, np.ndarray], names: Sequence[str]) -> bytes:
    planted = {f"planted: {name}": places for name, places in programs.items() if name in MARKERS}
    random = {f"random {i + 1}": rng.choice(len(names), PROGRAM, replace=False) for i in range(8)}
    lines = ["\t".join([name, "", *(names[i] for i in places)]) for name, places in (planted | random).items()]
    return ("\n".join(lines) + "\n").encode()
