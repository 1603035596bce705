"""Import time of the package with all its parts against scanpy's: pairs of processes, the median of their ratios.

Bar: less than 1.5, and torch not imported.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import numpy as np
from _common import table, verdict

CODE = """
import resource, sys, time
start = time.perf_counter()
from {module} import *
wall = time.perf_counter() - start
used = resource.getrusage(resource.RUSAGE_SELF)
print(wall, used.ru_utime + used.ru_stime, int("torch" in sys.modules))
"""


def imported(module: str) -> list[float]:
    """Wall seconds of the import, CPU seconds of the process, and whether torch was imported."""
    code = [sys.executable, "-c", CODE.format(module=module)]
    return [float(word) for word in subprocess.run(code, capture_output=True, text=True, check=True).stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--full", action="store_true", help="25 pairs")
    args = parser.parse_args()
    modules = ("scanpy", "bcnmf_sc")
    for module in modules:
        imported(module)  # byte code and file cache
    pairs = range(25 if args.full else args.pairs)
    times = np.array([[imported(module) for module in modules] for _ in pairs])  # pairs x modules x figures
    median = np.median(times, axis=0)
    ratio = np.median(times[:, 1, :2] / times[:, 0, :2], axis=0)
    table(
        f"Import, {len(pairs)} pairs, median",
        ["", "wall s", "CPU s of the process", "torch imported"],
        [[module, *median[k, :2], bool(median[k, 2])] for k, module in enumerate(modules)]
        + [["ratio, median of pairs", *ratio, ""]],
    )
    verdict("CPU time, bcnmf_sc / scanpy", ratio[1], 1.5, at_least=False)
    verdict("torch imported by bcnmf_sc", times[:, 1, 2].max(), 0, at_least=False)


if __name__ == "__main__":
    main()
