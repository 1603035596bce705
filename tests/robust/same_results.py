"""Are the results of a commit and of this checkout the same to the bit, and are files written then read now?

``python tests/robust/same_results.py --base 8637285 --data FOLDER`` checks the commit out into a temporary folder, runs
the same fits there and here, compares every array, and opens, shows and reports on the files that the commit wrote.
Exits with 1 where anything differs. Kang's data are read from the folder; without them those fits are left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
KANG = "kang_ifnb_muscat.h5ad"
SPLIT = {"background_key": "condition", "background": "ctrl", "target": "stim", "progress": False}
FITS = {
    "kang_plain": ("bcnmf", KANG, {"n_topics": 6, "n_background_topics": 0, "max_iter": 150, **SPLIT}),
    "kang_split": ("bcnmf", KANG, {"n_topics": 4, "n_background_topics": 6, "max_iter": 100, **SPLIT}),
    "kang_nb": (
        "bcnmf",
        KANG,
        {"n_topics": 4, "n_background_topics": 0, "likelihood": "nb", "max_iter": 60, **SPLIT},
    ),
    "deltanmf": (
        "deltanmf",
        "simulated_programs",
        {
            "condition_key": "condition",
            "control": "ctrl",
            "n_topics_control": 4,
            "n_topics_case": 2,
            "max_iter": 60,
            "progress": False,
        },
    ),
    "gpnsf": ("gpnsf", "simulated_spatial", {"n_topics": 3, "max_iter": 30, "progress": False}),
}
SIZES = {
    "simulated_programs": {"n_control": 300, "n_case": 200, "n_genes": 200},
    "simulated_spatial": {"n_side": 10, "n_genes": 40, "n_peaks": 50, "n_patterns": 3},
}


def fit_all(folder: Path, data: Path | None) -> None:
    """Fit with the package on the path, and write what comes out."""
    import warnings

    import anndata

    import bcnmf_sc as bc

    warnings.simplefilter("ignore")
    for name, (function, source, arguments) in FITS.items():
        if source != KANG:
            adata = getattr(bc.datasets, source)(**SIZES[source])
        elif data is None:
            continue
        else:
            adata = anndata.read_h5ad(data / KANG)
        getattr(bc.tl, function)(adata, random_state=0, **arguments)
        adata.write(folder / (name + (".h5mu" if hasattr(adata, "mod") else ".h5ad")))


def arrays(file: Path) -> dict[str, bytes]:
    """Every data set of an HDF5 file that holds numbers, as bytes by its path; what names the package is left out."""
    import h5py
    import numpy as np

    found: dict[str, bytes] = {}

    def visit(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset) and np.issubdtype(node.dtype, np.number) and "/params/" not in f"/{name}":
            found[name] = np.asarray(node).tobytes()

    with h5py.File(file) as content:
        content.visititems(visit)
    return found


def reads(file: Path) -> None:
    """Open a file, show its topics and genes, and write its report."""
    import warnings

    import anndata

    import bcnmf_sc as bc

    warnings.simplefilter("ignore")
    if file.suffix == ".h5mu":
        import mudata

        mdata = mudata.read_h5mu(file)
        bc.pl.lengthscales(mdata, key="gpnsf")
        return
    adata = anndata.read_h5ad(file)
    key = "deltanmf" if file.stem == "deltanmf" else "bcnmf"
    if not (len(bc.get.topics(adata, key=key)) and len(bc.get.top_genes(adata, key=key))):
        msg = f"{file.name} is read, but holds no topics."
        raise SystemExit(msg)
    if key == "bcnmf":
        page = file.with_suffix(".html")
        page.unlink(missing_ok=True)  # packages before the first release took no `overwrite`
        bc.report(adata, page)
        bc.tl.project(adata[:50].copy(), adata)


def in_process(package: Path, action: str, *paths: Path | None) -> None:
    """Run one of the two functions above with the package of a checkout."""
    code = (
        f"import sys; sys.path.insert(0, {str(package)!r}); import runpy; runpy.run_path({__file__!r}, run_name='part')"
    )
    code += f"[{action!r}](*{[str(path) if path else None for path in paths]!r})"
    env = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd=package)


def _fit_all(folder: str, data: str | None) -> None:
    fit_all(Path(folder), Path(data) if data else None)


def _reads(file: str) -> None:
    reads(Path(file))


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="8637285", help="commit to compare with")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("BCNMF_SC_TEST_DATA"), help="folder of the real data"
    )
    args = parser.parse_args()
    data = Path(args.data).resolve() if args.data else None
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        base, then, now = (Path(folder) / name for name in ("base", "then", "now"))
        then.mkdir()
        now.mkdir()
        subprocess.run(
            ["git", "worktree", "add", "--detach", base, args.base], cwd=ROOT, check=True, capture_output=True
        )
        try:
            for _ in range(2):  # once to compile: older commits give other last bits then than with loops from disk
                in_process(base, "_fit_all", then, data)
                in_process(ROOT, "_fit_all", now, data)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", base], cwd=ROOT, check=True)
        for file in sorted(then.iterdir()):
            old, new = arrays(file), arrays(now / file.name)
            lost = sorted(set(old) - set(new))
            different = [name for name in sorted(old) if name in new and old[name] != new[name]]
            wrong += len(lost) + len(different)
            print(f"{file.name}: {len(old)} arrays, {len(different)} differ, {len(lost)} are gone {different + lost}")
            in_process(ROOT, "_reads", file)
            print(f"{file.name}: written by {args.base}, read now")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
