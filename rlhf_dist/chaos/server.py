"""A reward server that tells the truth until it is told to lie."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DRIP_S, DRIPS = 0.25, 40
HUGE = 64 * 2**20
"""Bytes: far above any `max_kib`."""


def score(prompt: str, answer: str) -> float:
    """A number that depends on the answer alone: its share of different characters."""
    return len(set(answer)) / max(1, len(answer))


class LyingServer(ThreadingHTTPServer):
    """`{"items": [{"prompt", "answer"}]}` by POST, `{"scores": [number]}` back."""

    daemon_threads = True

    def __init__(self) -> None:
        """Listen on a free port of the loopback."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self._lies: list[str] = []
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where to POST."""
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def lie(self, how: str, times: int) -> None:
        """Answer the next requests wrongly: broken, busy, slow, closing, nan, short or huge."""
        with self._lock:
            self._lies = [how] * times

    def be_honest(self) -> None:
        """Forget the lies that are not told yet."""
        with self._lock:
            self._lies.clear()

    @property
    def honest(self) -> bool:
        """Whether every lie has been told."""
        return not self._lies

    def next_lie(self) -> str:
        """How to answer one request; empty: truly."""
        with self._lock:
            return self._lies.pop() if self._lies else ""


class _Handler(BaseHTTPRequestHandler):
    server: LyingServer

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        scores: list[float] = [score(item["prompt"], item["answer"]) for item in asked["items"]]
        lie = self.server.next_lie()
        with suppress(ConnectionError):  # whoever asked has had enough
            self._answer(lie, scores)

    def _answer(self, lie: str, scores: list[float]) -> None:
        if lie == "closing":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif lie == "broken":
            self._reply(b"out of order", status=500)
        elif lie == "busy":
            self._reply(b"", status=503, headers={"Retry-After": "1"})
        elif lie == "slow":
            self._drip()
        elif lie == "huge":
            self._reply(b" " * HUGE)
        else:
            told = [float("nan")] * len(scores) if lie == "nan" else scores[:-1] if lie == "short" else scores
            self._reply(json.dumps({"scores": told}).encode())

    def _reply(self, body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _drip(self) -> None:
        """White space, byte by byte: each read succeeds, and the whole takes longer than a request may."""
        self.send_response(200)
        self.send_header("Content-Length", str(DRIPS))
        self.end_headers()
        for _ in range(DRIPS):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(DRIP_S)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[LyingServer]:
    """A server that answers inside the block."""
    with LyingServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
