"""A proxy in front of a server on loopback that can be away, frozen, or fail by itself."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

_ERROR = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/xml\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


class Proxy:
    """Hands connections on.

    Args:
        target: Address of the server, `http://host:port`.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self._mode = "there"
        self._open: set[socket.socket] = set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def be(self, mode: str) -> None:
        """Be "there", "away" (connections end), "frozen" (nothing comes), or "failing" (500)."""
        self._mode = mode
        if mode != "there":
            for connection in list(self._open):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.close()
        self.be("away")

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._handle, args=(connection,), daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if self._mode == "failing":
                connection.recv(65536)
                connection.sendall(_ERROR)
            elif self._mode == "frozen":
                while connection.recv(65536):
                    pass
            elif self._mode == "there":
                with socket.create_connection(self._target) as server:
                    self._open |= {connection, server}
                    back = threading.Thread(target=self._pump, args=(server, connection))
                    back.start()
                    self._pump(connection, server)
                    back.join()
                    self._open -= {connection, server}

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxying(target: str) -> Iterator[Proxy]:
    """Runs a proxy inside the block."""
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
