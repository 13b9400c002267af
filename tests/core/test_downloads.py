"""Downloads from a local server that the test starts."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from core.downloads import fetch
from core.errors import UserError

CONTENT = bytes(range(256)) * 9000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def address(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served/weights.pth").write_bytes(CONTENT)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "served")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/weights.pth"
    server.shutdown()
    server.server_close()


def test_fetched_once_and_whole(address, tmp_path, capsys):
    """Catches a file cut between chunks, a missing progress bar, or a second download of an existing file."""
    path = tmp_path / "deep/weights.pth"
    assert fetch(address, path, SHA256) == path
    assert path.read_bytes() == CONTENT
    printed = capsys.readouterr().err
    assert address in printed and "100%" in printed
    assert fetch("http://127.0.0.1:1/nobody", path, SHA256) == path


def test_other_content_is_refused_and_not_left_behind(address, tmp_path):
    """Catches a file with a wrong checksum that stays on disk and is used later."""
    path = tmp_path / "weights.pth"
    with pytest.raises(UserError, match=f"expected 00 but got {SHA256}.*put the file whose SHA-256 is 00 at"):
        fetch(address, path, "00")
    assert not path.exists() and list(tmp_path.iterdir()) == [tmp_path / "served"]
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="damaged or another file"):
        fetch(address, path, SHA256)


@pytest.mark.parametrize("broken", ["http://127.0.0.1:1/weights.pth", "http://no.such.host.invalid/w.pth", "{}x"])
def test_offline_says_what_to_put_where(address, tmp_path, broken):
    """Catches a traceback of the HTTP library, or a message without the address, the checksum or the place."""
    url = broken.format(address)
    path = tmp_path / "weights.pth"
    with pytest.raises(UserError) as error:
        fetch(url, path, SHA256)
    assert all(part in str(error.value) for part in (url, SHA256, str(path))) and "\n" not in str(error.value)
    assert not path.exists()
