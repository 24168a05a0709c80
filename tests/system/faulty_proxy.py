"""An HTTP proxy that stands before a server and breaks what the test tells it to break.

It passes the Host header on as it came, so that requests signed for the proxy's address stay valid.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote, urlsplit

FaultKind = Literal[
    "error", "reset", "lost_reply", "stall", "stall_midway", "drip", "truncate", "short", "corrupt", "delay"
]
HOP_BY_HOP = frozenset({"connection", "expect", "keep-alive", "transfer-encoding"})

MESSAGES = {
    "ExpiredToken": "The provided token has expired.",
    "RequestTimeTooSkewed": "The difference between the request time and the current time is too large.",
    "SignatureDoesNotMatch": "The request signature we calculated does not match the signature you provided.",
    "AccessDenied": "Access Denied",
    "NoSuchBucket": "The specified bucket does not exist",
    "SlowDown": "Please reduce your request rate.",
    "InternalError": "We encountered an internal error. Please try again.",
}


@dataclass
class Fault:
    """What happens to the next requests that fit.

    error: answered with `status` and an S3 error document of `code`, without asking the server.
    reset: the connection is reset; the server never hears of the request.
    lost_reply: the server does as it is told, then the connection is reset.
    stall: nothing is ever answered.
    stall_midway: half of the body is sent, then nothing more.
    drip: the body comes one byte in `seconds`, so that something always moves.
    truncate: the head announces the whole body, half of it is sent, then the connection is closed.
    short: half of the body, announced as if it were the whole.
    corrupt: a byte in the middle of the body is another one; length and headers are as they were.
    delay: the request is passed on after `seconds`.
    """

    kind: FaultKind
    times: int | None = 1
    """Number of requests; None for all."""
    method: str = ""
    """Only this method; empty for all."""
    path: str = ""
    """Only paths (with query) that contain this."""
    status: int = 503
    code: str = "SlowDown"
    seconds: float = 0.1

    def fits(self, method: str, path: str) -> bool:
        return self.times != 0 and self.method in ("", method) and self.path in path


@dataclass(frozen=True)
class Request:
    """What a client asked for and what the plan did to it."""

    method: str
    path: str
    """Decoded, with query."""
    fault: FaultKind | None
    at: float
    """Monotonic seconds."""


class FaultyProxy:
    """Faults are taken in the order in which they were planned; requests that none fits pass unharmed."""

    def __init__(self, target: str) -> None:
        """Listen on a free port of loopback and pass on to `target`, such as http://127.0.0.1:8333."""
        address = urlsplit(target)
        self.target = (address.hostname or "", address.port or 80)
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self._plan: list[Fault] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True, name="faulty-proxy").start()

    def plan(self, *faults: Fault) -> None:
        """Add faults."""
        with self._lock:
            self._plan.extend(faults)

    def heal(self) -> None:
        """Forget the faults that are left, and what was counted."""
        with self._lock:
            self._plan.clear()
            self.requests.clear()

    def count(self, method: str = "", path: str = "") -> int:
        """Requests so far of a method, with a path that contains `path`; empty fits all."""
        with self._lock:
            return sum(method in ("", request.method) and path in request.path for request in self.requests)

    def faults(self) -> list[FaultKind]:
        """Faults that happened, in order."""
        with self._lock:
            return [request.fault for request in self.requests if request.fault is not None]

    def take(self, method: str, path: str) -> Fault | None:
        """Note a request; the fault that is due for it."""
        with self._lock:
            fault = next((fault for fault in self._plan if fault.fits(method, path)), None)
            if fault is not None and fault.times is not None:
                fault.times -= 1
            self.requests.append(Request(method, path, None if fault is None else fault.kind, time.monotonic()))
            return fault

    def close(self) -> None:
        """Stop listening; stalled requests end."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def faulty_proxy(target: str) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that give up are what the tests are about; anything else is printed as usual."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@dataclass
class _Reply:
    status: int
    reason: str
    headers: Message | list[tuple[str, str]]
    body: bytes


def _handler(proxy: FaultyProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        plan = proxy

    return Handler


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client; each of its requests is a connection to the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    plan: FaultyProxy

    def do(self) -> None:
        body = self._body()
        fault = self.plan.take(self.command, unquote(self.path))
        kind = None if fault is None else fault.kind
        if fault is None:
            self._answer(self._ask(body))
        elif kind == "error":
            self._answer(_error(fault))
        elif kind == "reset":
            self._reset()
        elif kind == "lost_reply":
            self._ask(body)
            self._reset()
        elif kind == "stall":
            self._stall()
        elif kind == "delay":
            self.plan.closing.wait(fault.seconds)
            self._answer(self._ask(body))
        else:
            self._break(self._ask(body), fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do

    def log_message(self, format: str, *args: object) -> None:
        """Silence: the tests look at `requests`."""

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _ask(self, body: bytes) -> _Reply:
        upstream = http.client.HTTPConnection(*self.plan.target, timeout=30)
        with contextlib.closing(upstream):
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP | {"content-length"}:
                    upstream.putheader(name, value)
            if body or self.command in ("PUT", "POST"):
                upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body or None)
            response = upstream.getresponse()
            return _Reply(response.status, response.reason, response.headers, response.read())

    def _head(self, reply: _Reply) -> None:
        self.send_response_only(reply.status, reply.reason)
        for name, value in reply.headers.items() if isinstance(reply.headers, Message) else reply.headers:
            # The length that the server announces for HEAD is that of the object; the body here is empty.
            if name.lower() not in HOP_BY_HOP and (name.lower() != "content-length" or self.command == "HEAD"):
                self.send_header(name, value)
        if self.command != "HEAD" and reply.status not in (204, 304):
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()

    def _answer(self, reply: _Reply) -> None:
        self._head(reply)
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def _break(self, reply: _Reply, fault: Fault) -> None:
        middle = len(reply.body) // 2
        if fault.kind == "short":
            reply.body = reply.body[:middle]
            self._answer(reply)
            return
        if fault.kind == "corrupt":
            changed = bytes([reply.body[middle] ^ 0x40]) if reply.body else b""
            reply.body = reply.body[:middle] + changed + reply.body[middle + 1 :]
            self._answer(reply)
            return
        self._head(reply)
        if fault.kind == "drip":
            for byte in reply.body:
                self.wfile.write(bytes([byte]))
                if self.plan.closing.wait(fault.seconds):
                    break
            self.close_connection = True
            return
        self.wfile.write(reply.body[:middle])
        self.wfile.flush()
        self.close_connection = True
        if fault.kind == "stall_midway":
            self._stall()

    def _stall(self) -> None:
        """Nothing moves until the proxy closes or the client gives up."""
        self.close_connection = True
        self.connection.settimeout(0.1)
        while not self.plan.closing.is_set():
            with contextlib.suppress(TimeoutError):
                if not self.connection.recv(1):
                    return

    def _reset(self) -> None:
        """Closing with a linger time of 0 sends RST instead of FIN."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()  # it shares the socket, which closes with the last of the two
        self.connection.close()


def _error(fault: Fault) -> _Reply:
    text = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{fault.code}</Code>'
        f"<Message>{MESSAGES.get(fault.code, fault.code)}</Message><RequestId>0</RequestId></Error>"
    )
    return _Reply(
        fault.status, http.client.responses[fault.status], [("Content-Type", "application/xml")], text.encode()
    )
