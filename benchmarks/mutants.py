"""Break the solver, the likelihoods and the kernels on purpose, one line at a time: which faults do the tests not see?

Each mutant is one replacement in a copy of the package; the engine's tests run against it until the first one fails. A
mutant that passes them all has survived, and says which test is missing. Needs a checkout (the tests are not in the
wheel). By default a dozen, spread over the list; ``--full`` runs all.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from _common import table, verdict

ROOT = Path(__file__).parent.parent
TESTS = [
    f"tests/engine/{name}.py"
    for name in ("test_likelihoods", "kernels/test_overdispersed", "bcnmf/test_solver", "test_checkpoint")
]
MUTANTS = {
    "bcnmf/solver.py": [
        ("(sums.p_x + n_y), np.broadcast_to(n_x + sums.p_y", "(sums.p_x + sums.p_y), np.broadcast_to(n_x + n_y"),
        ("return W * (sums.p_x + n_y)", "return W * sums.p_x"),
        ("np.broadcast_to(n_x + sums.p_y, W.shape)", "np.broadcast_to(n_x, W.shape)"),
        ("up, down = up + past[0], down + past[1]", "up, down = up + past[0], down"),
        ("W = state.W + beta * np.maximum(state.W - state.W_prev, 0)", "W = state.W + beta * (state.W_prev - state.W)"),
        ("check = state.n_iter == 1 or", "check ="),
        ("cold=state.n_iter == 1", "cold=False"),
        ("refine = refine_on > 0 and", "refine = False and"),
        ("state.momentum = 1.0 if turned else momentum", "state.momentum = momentum"),
        ("state.max_beta /= 2", "state.max_beta /= 1"),
        ("state.change = state.W, new, change", "state.change = new, new, change"),
        (
            "state.scale = np.append(np.ones(n_frozen), scale)",
            "state.scale = np.append(np.ones(n_frozen), 0 * scale + 1)",
        ),
        ("state.weight = down * state.scale", "state.weight = down"),
        ("loss_x - alpha_loss_y, change", "loss_x - loss_y, change"),
        ("W = np.where(expressed[:, None], W, 0.0)\n", "W = np.where(expressed[:, None], W, W)\n"),
        ("np.maximum(W / scale, LOADINGS_FLOOR)", "W / scale"),
        ("min((momentum - 1) / ahead, max_beta)", "(momentum - 1) / ahead"),
        ("state.change > run.tol", "state.change > 10 * run.tol"),
        ("state.n_iter < run.max_iter", "state.n_iter <= run.max_iter"),
        ("time.monotonic() < deadline", "True"),
        ("checkpoint.write(partial(save, source, state), state.n_iter, run.checkpoint_every)", "pass"),
        ("converged=state.change <= run.tol", "converged=True"),
        ("transform(source, state.likelihood, state.W, project", "transform(source, likelihood, state.W, project"),
        ("steps=USAGE_STEPS, tol=tol, cold=True", "steps=2, tol=tol, cold=True"),
        ("np.array(likelihood.name), *rounded, *parameters", "np.array(likelihood.name), *rounded"),
        ("np.array(likelihood.name), *rounded, *parameters", "np.array(likelihood.name), *parameters"),
    ],
    "likelihoods.py": [
        ("return (x - mu) ** 2 / 2", "return (x - mu) ** 2"),
        ("return _x_log_ratio(x, mu) - x + mu", "return _x_log_ratio(x, mu) + mu"),
        ("return (x + self.theta) / (mu + self.theta)", "return self.theta / (mu + self.theta)"),
        ("- (x + self.theta) * log_ratio", "- self.theta * log_ratio"),
        ("zero = -xp.log(self.pi + (1 - self.pi) * xp.exp(log_q))", "zero = -log_q"),
        ("dropout *= self._odds(x, mu)", "dropout *= 0"),
        ("return omega * slope, omega * curvature, 1 - omega", "return slope, curvature, 1 - omega"),
        ("np.clip(dropouts / n_cells, *DROPOUT_BOUNDS)", "np.clip(dropouts, *DROPOUT_BOUNDS)"),
        ("xp.where(x > 0, 0.0, self.pi / (1 - self.pi))", "self.pi / (1 - self.pi)"),
        ("return NegativeBinomial(_of(self.theta, genes))", "return self"),
        ("return theta * slope, theta * slope +", "return slope, theta * slope +"),
        ("np.sign(slope))", "0.0)"),
        ("np.clip(step, -1, 1)", "step"),
        ("1 / theta) * (1 - q)", "1 / theta) * q"),
        ("return x * x", "return x"),
    ],
    "kernels/cpu.py": [
        ("np.maximum(new, USAGE_FLOOR * new.mean(1, keepdims=True), out=new)", "pass"),
        ("momentum[active[turned]] = 1.0", "pass"),
        ("rows.H[used] = h\n", "rows.H[:] = h\n"),
        ("(background > 0) @ cells", "background @ cells"),
        ("p.T @ (weight[:, None] * h)", "p.T @ h"),
        ("self.n_sums[part] += (weight[:, None] * h).T @ n", "self.n_sums[part] = (weight[:, None] * h).T @ n"),
        ("return weight @ h", "return h.sum(0)"),
        ("h + todo.W.dtype.type(todo.beta) * np.maximum(h - before, 0)", "h"),
        ("n[cells, x.indices] = here.n(x.data, mu_x)", "pass"),
        ("here.loss(x.data, mu_x) - here.loss(zero, mu_x)", "here.loss(x.data, mu_x)"),
        ("weight[cells] * (at_values - as_zeros)", "weight[cells] * at_values"),
        ("terms.flush()", "pass"),
    ],
}


def survives(file: str, old: str, new: str) -> bool | None:
    """Whether all tests pass with the replacement; None where there is nothing to replace."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("bcnmf_sc", "tests"):
            shutil.copytree(ROOT / part, Path(folder) / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        path = Path(folder) / "bcnmf_sc" / "engine" / file
        text = path.read_text()
        if old not in text:
            return None
        path.write_text(text.replace(old, new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS]
        run = subprocess.run(command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
        if run.returncode not in {0, 1}:
            raise RuntimeError(run.stdout.decode()[-2000:])
        return run.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all mutants in place of every fifth")
    parser.add_argument("--only", help="those whose replaced text contains this")
    args = parser.parse_args()
    mutants = [(file, *each) for file, pairs in MUTANTS.items() for each in pairs]
    if args.only:
        mutants = [each for each in mutants if args.only in each[1]]
    elif not args.full:
        mutants = mutants[::5]
    rows, survivors = [], 0
    for file, old, new in mutants:
        outcome = survives(file, old, new)
        if outcome is None:
            msg = f"Nothing to replace in {file}: {old!r}. Bring the list up to date."
            raise SystemExit(msg)
        survivors += outcome
        if outcome:
            print(f"  survived: {file}: {old} -> {new}", flush=True)
        rows.append([file, new.strip(), "survived" if outcome else "killed"])
    table("Mutants", ["file", "broken line", "outcome"], rows)
    verdict(f"survivors of {len(rows)}", survivors, 0, at_least=False)


if __name__ == "__main__":
    main()
