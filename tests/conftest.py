"""What the tests share: simulated data, kinds of arrays, the folder of real data, files served on this machine."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import settings
from matplotlib import pyplot as plt
from scipy import sparse

import bcnmf_sc as bc

mpl.use("Agg")
# how long an example takes is the machine's affair: the first one pays for what is compiled and set up
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture
def adata():
    """Simulated counts: 1,000 cells x 500 genes, case and ctrl, with the truth."""
    return bc.datasets.simulated()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of the real data, which are not part of the project."""
    folder = Path(os.environ.get("BCNMF_SC_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"The real data are missing: {folder}. Set BCNMF_SC_TEST_DATA.")
        pytest.skip(f"No real data at {folder}. Set BCNMF_SC_TEST_DATA to run this test.")
    return folder


@pytest.fixture(params=["array", "csr", "csc"])
def array_type(request):
    """Turn a dense array into each kind that a fit accepts in memory."""
    return {"array": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_array}[request.param]


@pytest.fixture
def cautions():
    """What the report says against trusting a stored analysis, as sentences."""
    from bcnmf_sc._report._analysis import Analysis
    from bcnmf_sc._report._cautions import reasons

    def said(adata, key="bcnmf"):
        found = reasons(Analysis(adata, key, adata.uns[key], 10, None))
        return [reason.text for reason in found if reason.level != "good"]

    return said


@pytest.fixture(autouse=True)
def _plots_return_their_axes(monkeypatch):
    monkeypatch.setattr(bc.settings, "autoshow", False)
    yield
    plt.close("all")


class Files(http.server.SimpleHTTPRequestHandler):
    """The files of a folder; the paths that are asked for are noted down."""

    def __init__(self, *args, seen, **kwargs):
        self.seen = seen
        super().__init__(*args, **kwargs)

    def log_message(self, *_):
        self.seen.append(self.path)


@pytest.fixture
def serve():
    """Serve a folder, or what a handler with a list `seen` answers; gives the address and that list."""
    running = []

    def start(what):
        seen = []
        handler = functools.partial(Files, directory=what) if isinstance(what, Path) else what
        httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, seen=seen))
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((httpd, thread))
        return f"http://127.0.0.1:{httpd.server_address[1]}", seen

    yield start
    for httpd, thread in running:
        httpd.shutdown()
        thread.join()
        httpd.server_close()
