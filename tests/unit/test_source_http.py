"""Sources over HTTP: by ranges, from a server of this process, as fsspec asks for them."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from hydrax_gpu import DataGroup, Dataloader, SourceChanged, SourceError, sources
from tests.source_files import COUNT, make, numbers

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
asyn = pytest.importorskip("fsspec.asyn")
pytest.importorskip("aiohttp", reason="fsspec reads over HTTP by aiohttp, which is not installed")

SPECS = {"x": ((6,), np.float32, np.float32), "y": ((), np.int32, np.int32)}


class Server(ThreadingHTTPServer):
    """Serves a folder; it knows what was asked for, and can be told to refuse."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.served: list[tuple[str, int]] = []
        """Path and number of bytes of each answer to a GET."""
        self.broken = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """HEAD and GET with one range (RFC 9110, section 14), and entity tags."""

    # a connection for each answer: with more, they would stay open
    protocol_version = "HTTP/1.0"
    server: Server

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def answer(self, head: bool) -> None:
        path = self.server.folder / self.path.lstrip("/")
        if self.server.broken or not path.is_file():
            self.send_response(503 if self.server.broken else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        status, content_range = 200, ""
        if (found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))) is not None:
            first, last = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
            status, content_range = 206, f"bytes {first}-{last}/{len(data)}"
            part = data[first : last + 1]
        else:
            part = data
        self.send_response(status)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hash(data)}"')
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if not head:
            self.server.served.append((path.name, len(part)))
            self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: it would be printed."""


@pytest.fixture(scope="module", autouse=True)
def _loop() -> None:
    """fsspec has one event loop, which it never gives back: it is not to be taken for something left behind."""
    asyn.get_loop()


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        # fsspec keeps its clients for as long as the process lives
        fsspec.filesystem("http").clear_instance_cache()
        gc.collect()
        for _ in range(3):  # a turn of its loop ends a connection, the next one closes the socket
            asyn.sync(asyn.get_loop(), asyncio.sleep, 0)
        server.shutdown()
        thread.join()
        server.server_close()  # waits for the threads that answer


def test_items_are_read_by_ranges_and_failures_are_those_of_items(tmp_path: Path) -> None:
    make("tar", tmp_path)
    for index in tmp_path.glob("*.hgindex"):
        index.unlink()
    x, y = numbers()
    with serving(tmp_path) as server:
        source = sources.TarSource(
            f"{server.url}/shard-{{0..1}}.tar", fields={"x": "x.npy", "y": "cls"}, index_folder=tmp_path / "indexes"
        )
        assert len(source) == COUNT and not [name for name, _ in server.served if name.endswith("hgindex")]
        server.served.clear()
        group = DataGroup(4, source, loader_arrays=SPECS, shuffle_first=True, remainder="short")
        with Dataloader(
            source.loader(), group, executor="thread", loader_count=2, on_error="raise", end_at=("epoch", 1)
        ) as loader:
            rows = 0
            for batch in loader:
                assert np.array_equal(batch.arrays["x"], x[list(batch.indices)])
                assert batch.arrays["y"].tolist() == y[list(batch.indices)].tolist()
                rows += len(batch.indices)
        assert rows == COUNT
        # two members of each sample, and nothing of what lies between them
        assert len(server.served) == 2 * COUNT
        assert max(size for _, size in server.served) < 200

        again = sources.TarSource(
            f"{server.url}/shard-{{0..1}}.tar", fields={"x": "x.npy", "y": "cls"}, index_folder=tmp_path / "indexes"
        )
        reader, item = again.reader, again[0]
        assert np.array_equal(reader(item)["x"], x[0])
        server.broken = True
        with pytest.raises(SourceError, match=r"shard-0.tar.*it cannot be read"):
            reader(item)
        server.broken = False
        assert np.array_equal(reader(item)["x"], x[0])

        archive = tmp_path / "shard-0.tar"
        archive.write_bytes(b"\1" + archive.read_bytes()[1:])  # of the same size: only the entity tag tells
        source.reader._begin()  # as in a worker that begins: what is open is not asked about again
        with pytest.raises(SourceChanged, match="has changed"):
            source.load(0)
        with pytest.raises(FileNotFoundError):
            sources.TarSource(f"{server.url}/none.tar")
