"""A small store that speaks as much S3 as a data set needs, and misbehaves on demand."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 2
"""Files in one page of a listing."""


class FakeS3:
    """Buckets in memory.

    Attributes:
        url: the endpoint.
        buckets: files by bucket and key.
        log: method and path of each request, with its range.
        faults: of the next requests, one each: an error code with its status ("503 SlowDown"), "cut" (half of the body,
            then the end), "stall" (half of the body, then nothing), "reset" (no answer), "short" (a correct answer of
            a shorter file), "replaced" (afterwards the file is another one, its bytes reversed), or "ok".
        always: the fault of all requests that have none of their own.
        delay_s: before each answer.
        silent: keys that no request for is answered.
        most_at_once: largest number of requests that were answered at a time.
    """

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, bytes]] = {"bucket": {}}
        self.log: list[str] = []
        self.faults: deque[str] = deque()
        self.always = "ok"
        self.delay_s = 0.0
        self.silent: set[str] = set()
        self.most_at_once = 0
        self.lock = threading.Lock()
        self.num_open = 0
        store = self

        class Bound(_Handler):
            fake = store

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def files(self) -> dict[str, bytes]:
        return self.buckets["bucket"]


@contextlib.contextmanager
def fake_s3() -> Iterator[FakeS3]:
    fake = FakeS3()
    thread = threading.Thread(target=fake.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.silent.clear()
        fake.server.shutdown()
        fake.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeS3
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def _answer(self, method: object) -> None:
        fake, spans = self.fake, self.headers.get("Range", "")
        with fake.lock:
            fake.log.append(f"{self.command} {unquote(urlsplit(self.path).path)} {spans}".strip())
            self.fault = fake.faults.popleft() if fake.faults else fake.always
            fake.num_open += 1
            fake.most_at_once = max(fake.most_at_once, fake.num_open)
        try:
            self.sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            time.sleep(fake.delay_s)
            while unquote(urlsplit(self.path).path).partition("/bucket/")[2] in fake.silent:
                time.sleep(0.05)
            if self.fault == "reset":
                self.close_connection = True
            elif self.fault[:3].isdigit():
                self._error(int(self.fault[:3]), self.fault[4:])
            else:
                bucket, _, key = unquote(urlsplit(self.path).path)[1:].partition("/")
                if bucket in fake.buckets:
                    method(fake.buckets[bucket], key)  # type: ignore[operator]
                else:
                    self._error(404, "NoSuchBucket")
        finally:
            with fake.lock:
                fake.num_open -= 1

    def _get(self, files: dict[str, bytes], key: str) -> None:
        if not key:
            return self._list(files)
        if key not in files:
            return self._error(404, "NoSuchKey")
        data = files[key]
        data = data[: len(data) // 2] if self.fault == "short" else data
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match is None:
            return self._send(200, data, {"ETag": f'"{hash(data)}"'})
        start, stop = int(match[1]), min(int(match[2]) + 1, len(data))
        if start >= len(data):
            return self._error(416, "InvalidRange")
        if self.fault == "replaced":
            files[key] = data[::-1]
        span = f"bytes {start}-{stop - 1}/{len(data)}"
        return self._send(206, data[start:stop], {"Content-Range": span, "ETag": f'"{hash(data)}"'})

    def _list(self, files: dict[str, bytes]) -> None:
        query = parse_qs(urlsplit(self.path).query)
        prefix, after = query.get("prefix", [""])[0], query.get("continuation-token", [""])[0]
        keys = sorted(key for key in files if key.startswith(prefix) and key > after)
        items = "".join(
            f"<Contents><Key>{quote(key)}</Key><Size>{len(files[key])}</Size></Contents>" for key in keys[:PAGE]
        )
        more = len(keys) > PAGE
        token = f"<NextContinuationToken>{escape(keys[PAGE - 1])}</NextContinuationToken>" if more else ""
        self._send(
            200,
            f"<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>{str(more).lower()}</IsTruncated>{token}"
            f"{items}</ListBucketResult>".encode(),
            {"Content-Type": "application/xml"},
        )

    def _put(self, files: dict[str, bytes], key: str) -> None:
        files[key] = self.sent
        self._send(200, b"", {"ETag": '"x"'})

    def _delete(self, files: dict[str, bytes], key: str) -> None:
        files.pop(key, None)
        self._send(204, b"", {})

    def _error(self, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>a message of the store</Message></Error>" if code else ""
        self._send(status, text.encode(), {"Content-Type": "application/xml"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.fault in ("cut", "stall"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            time.sleep(3.0 if self.fault == "stall" else 0)
        else:
            self.wfile.write(body)
