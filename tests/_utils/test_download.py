"""Downloads that break off, archives that are not what they should be, matrices that do not fit."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import tarfile
import zipfile

import numpy as np
import pytest
from scipy import sparse

from bcnmf_sc._utils.download import BLOCK, download, members, opened, read_matrix_market

CONTENT = np.random.default_rng(0).bytes(5 * BLOCK)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Flaky(http.server.BaseHTTPRequestHandler):
    """Breaks off after two blocks; goes on where it is asked to if `ranges`, else starts again."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args, ranges, limit, seen):
        self.ranges, self.limit, self.seen = ranges, limit, seen
        super().__init__(*args)

    def do_GET(self):
        asked = self.headers.get("Range")
        self.seen.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        # the first answer stops short; without ranges the later ones are whole
        self.wfile.write(body[: self.limit] if self.ranges or len(self.seen) == 1 else body)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def flaky(serve, monkeypatch, tmp_path):
    monkeypatch.setenv("BCNMF_SC_DATA", str(tmp_path / "cache"))

    def start(*, ranges, limit=2 * BLOCK):
        address, seen = serve(functools.partial(Flaky, ranges=ranges, limit=limit))
        return f"{address}/file.bin", seen

    return start


def test_goes_on_where_the_connection_broke(flaky):
    url, seen = flaky(ranges=True)
    assert download(url, "file.bin", SHA256).read_bytes() == CONTENT
    assert seen == [None, f"bytes={2 * BLOCK}-", f"bytes={4 * BLOCK}-"]


def test_starts_again_where_the_server_knows_no_ranges(flaky):
    url, seen = flaky(ranges=False)
    assert download(url, "file.bin", SHA256).read_bytes() == CONTENT
    assert seen == [None, f"bytes={2 * BLOCK}-"]


def test_gives_up_when_nothing_more_comes(flaky, tmp_path):
    url, seen = flaky(ranges=True, limit=0)
    with pytest.raises(OSError, match=r"file.bin could not be downloaded from http.*put it at .*cache.file.bin"):
        download(url, "file.bin")
    assert seen == [None]
    assert list((tmp_path / "cache").iterdir()) == []


def test_checksum_failure_keeps_nothing(flaky, tmp_path):
    url, _ = flaky(ranges=True)
    with pytest.raises(ValueError, match=r"file.bin from http.* is not the published file: .*Nothing was kept"):
        download(url, "file.bin", "0" * 64)
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_is_there_is_taken_as_it_is(flaky, tmp_path):
    url, seen = flaky(ranges=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file.bin").write_text("by hand")
    assert download(url, "file.bin", SHA256).read_text() == "by hand"
    assert seen == []


def _archive(path, names, content=b"x"):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz") as archive:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_members_by_name_without_unpacking(tmp_path, kind):
    path = _archive(tmp_path / f"a.{kind}", ["deep/down/matrix.mtx", "deep/down/genes.tsv.gz"], gzip.compress(b"x"))
    with members(path) as open_file:
        assert open_file("genes.tsv").read() == b"x"
        assert gzip.decompress(open_file("matrix.mtx").read()) == b"x"
        with pytest.raises(ValueError, match=r"must hold one file 'barcodes.tsv', got 0 in .*deep/down/matrix.mtx"):
            open_file("barcodes.tsv")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    _archive(path, ["a/matrix.mtx", "b/matrix.mtx"])
    with members(path) as open_file, pytest.raises(ValueError, match=r"must hold one file 'matrix.mtx', got 2"):
        open_file("matrix.mtx")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("member", ["../matrix.mtx", "a/../../matrix.mtx", "/tmp/matrix.mtx"])
def test_members_that_leave_the_folder_are_refused(tmp_path, kind, member):
    inner = tmp_path / "inner"
    inner.mkdir()
    path = _archive(inner / f"a.{kind}", ["genes.tsv", member])
    with pytest.raises(ValueError, match="must contain files of its own folder only, got the member"), members(path):
        pass
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [path.name]


def test_links_in_an_archive_are_no_files(tmp_path):
    (tmp_path / "secret").write_text("s")
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo("matrix.mtx")
            info.type, info.linkname = kind, str(tmp_path / "secret")
            archive.addfile(info)
    with members(path) as open_file, pytest.raises(ValueError, match=r"must hold one file 'matrix.mtx', got 0"):
        open_file("matrix.mtx")


def test_a_link_in_a_zip_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text("s")
    info = zipfile.ZipInfo("matrix.mtx")
    info.create_system, info.external_attr = 3, 0o120777 << 16  # a symbolic link, as Unix packs it
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, str(tmp_path / "secret"))
    with members(tmp_path / "a.zip") as open_file:
        assert open_file("matrix.mtx").read().decode() == str(tmp_path / "secret")


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "gz"])
def test_files_cut_short(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "gz":
        path.write_bytes(gzip.compress(CONTENT))
    else:
        _archive(path, ["matrix.mtx"], CONTENT)
    path.write_bytes(path.read_bytes()[:-100_000])

    def read():
        if kind == "gz":
            with opened(path) as stream:
                stream.read()
        else:
            with members(path) as open_file:
                open_file("matrix.mtx").read()

    with pytest.raises(ValueError, match=rf"a.{kind} must be readable, got .*Was the download cut short"):
        read()


MATRIX = b"%%MatrixMarket matrix coordinate integer general\n%made up\n3 4 5\n1 1 7\n3 1 1\n2 3 2\n1 4 3\n3 4 4\n"
DENSE = np.array([[7, 0, 1], [0, 0, 0], [0, 2, 0], [3, 0, 4]])


def test_matrix_market():
    counts = read_matrix_market(io.BytesIO(MATRIX), "m", (3, 4))
    assert sparse.isspmatrix_csr(counts)
    assert counts.dtype == np.float32
    np.testing.assert_array_equal(counts.toarray(), DENSE)
    keep = np.array([False, True, False, True])
    np.testing.assert_array_equal(read_matrix_market(io.BytesIO(MATRIX), "m", (3, 4), keep=keep).toarray(), DENSE[keep])


@pytest.mark.parametrize(
    ("text", "shape", "match"),
    [
        (MATRIX, (3, 5), "must match its gene and cell tables, 3 x 5, got 3 x 4"),
        (MATRIX[:-6], (3, 4), "must be a complete Matrix Market file, got: .*Was the download cut short"),
        (MATRIX[:70], (3, 4), "must be a complete Matrix Market file"),
        (MATRIX[:55], (3, 4), "must be a complete Matrix Market file"),
        (MATRIX + b"1 1 1\n", (3, 4), "must be a complete Matrix Market file"),
        (MATRIX.replace(b"3 4 4", b"3 5 4"), (3, 4), "must be a complete Matrix Market file"),
        (MATRIX.replace(b"3 4 4", b"3 4 x"), (3, 4), "must be a complete Matrix Market file"),
        (MATRIX.replace(b"coordinate", b"array"), (3, 4), "must be a sparse Matrix Market file"),
        (b"<html>", (3, 4), "must be a sparse Matrix Market file, got one that begins with b'<html>'"),
    ],
)
def test_matrix_market_rejects(text, shape, match):
    with pytest.raises(ValueError, match=match):
        read_matrix_market(io.BytesIO(text), "m", shape)


def test_matrix_market_cut_short_in_an_archive(tmp_path):
    path = tmp_path / "m.mtx.gz"
    path.write_bytes(gzip.compress(MATRIX)[:-12])
    with pytest.raises(ValueError, match=r"m.mtx.gz must be .*Was the download cut short"), opened(path) as stream:
        read_matrix_market(stream, "m.mtx.gz", (3, 4))
