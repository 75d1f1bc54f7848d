"""Fetching weights, against a server of our own: cached, resumed, checked."""

import hashlib
import http.server
import re
import threading

import numpy as np
import pytest

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import zoo

CONTENT = np.random.default_rng(0).bytes(300_000)
DIGITS = hashlib.sha256(CONTENT).hexdigest()[:8]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; the server's `cut` ends the connection after so many bytes, once."""

    def do_GET(self):
        found = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", self.server.etag) == self.server.etag
        start = int(found[1]) if found and self.server.ranges and same else 0
        self.server.starts.append(start)
        if self.path.startswith("/absent"):
            self.send_error(404)
            return
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.send_header("ETag", self.server.etag)
        self.end_headers()
        end, self.server.cut = self.server.cut or len(CONTENT), None
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as found:
        found.cut, found.starts, found.ranges, found.etag = None, [], True, '"one"'
        found.url = f"http://127.0.0.1:{found.server_port}"
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield found
        found.shutdown()


def test_fetched_once(server, tmp_path, monkeypatch):
    name = f"weights-{DIGITS}.pth"
    monkeypatch.setitem(zoo.ZOO, "test/weights", f"{server.url}/{name}")
    path = zoo.fetch("test/weights", tmp_path)
    assert path.read_bytes() == CONTENT and path.name == name
    assert zoo.fetch("test/weights", tmp_path) == path
    assert server.starts == [0]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_goes_on(server, tmp_path, ranges):
    server.cut, server.ranges = 100_000, ranges
    path = tmp_path / "x.pkl"
    with pytest.raises(UserError, match=r"broke off.*put it at .*x\.pkl"):
        zoo.download(f"{server.url}/x.pkl", path)
    assert not path.exists()
    zoo.download(f"{server.url}/x.pkl", path)
    assert path.read_bytes() == CONTENT
    assert server.starts == [0, 100_000 if ranges else 0]


def test_a_file_that_changed_meanwhile_starts_anew(server, tmp_path):
    server.cut = 100_000
    path = tmp_path / "x.pkl"
    with pytest.raises(UserError, match="broke off"):
        zoo.download(f"{server.url}/x.pkl", path)
    server.etag = '"two"'
    zoo.download(f"{server.url}/x.pkl", path)
    assert path.read_bytes() == CONTENT
    assert server.starts == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["x.pkl"]


def test_the_whole_checksum(server, tmp_path, monkeypatch):
    monkeypatch.setitem(zoo.ZOO, "test/weights", f"{server.url}/x.pkl")
    right = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setitem(zoo.SHA256, "test/weights", right[:-1] + ("0" if right[-1] != "0" else "1"))
    with pytest.raises(UserError, match="what came is not that file"):
        zoo.fetch("test/weights", tmp_path)
    monkeypatch.setitem(zoo.SHA256, "test/weights", right)
    assert zoo.fetch("test/weights", tmp_path).read_bytes() == CONTENT


def test_complete_but_not_renamed(server, tmp_path):
    (tmp_path / "x.pkl.part").write_bytes(CONTENT)
    zoo.download(f"{server.url}/x.pkl", tmp_path / "x.pkl")
    assert (tmp_path / "x.pkl").read_bytes() == CONTENT


def test_another_content_is_refused(server, tmp_path):
    with pytest.raises(UserError, match="SHA-256 begins with"):
        zoo.download(f"{server.url}/x-00000000.pth", tmp_path / "x-00000000.pth")
    assert not list(tmp_path.iterdir())


def test_no_such_file_and_no_server(server, tmp_path):
    with pytest.raises(UserError, match="the server answers 404; fetch http"):
        zoo.download(f"{server.url}/absent.pth", tmp_path / "x.pth")
    with pytest.raises(UserError, match="the download broke off"):
        zoo.download("http://127.0.0.1:9/x.pth", tmp_path / "x.pth")
    with pytest.raises(UserError, match="near are detectron2/mask_rcnn_R_50_FPN_3x"):
        zoo.fetch("detectron2/mask_rcnn_R50_FPN_3x", tmp_path)


def test_names_and_addresses():
    for name, url in zoo.ZOO.items():
        assert re.fullmatch(r"\w+/[\w-]+", name) and re.fullmatch(r"https://[\w./-]+", url)
    for name, digits in zoo.SHA256.items():
        assert re.fullmatch("[0-9a-f]{64}", digits)
        assert digits.startswith(zoo._digits(zoo.ZOO[name]))
