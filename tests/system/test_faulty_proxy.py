"""The proxy breaks what it is told to break, and nothing else: otherwise the tests of faults would show nothing."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.system.faulty_proxy import MESSAGES, Fault, FaultyProxy, faulty_proxy
from tests.system.s3_server import S3Server

BODY = bytes(range(256)) * 40


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3_server.endpoint) as started:
        yield started


@pytest.fixture
def signed(s3_server: S3Server, bucket: str, proxy: FaultyProxy) -> str:
    """Path and query of a signed GET of BODY through the proxy."""
    through = S3Server(proxy.url)
    through.put(bucket, "a/b c+d.bin", BODY)  # names that must be quoted
    url = through.client().generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "a/b c+d.bin"})
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


def get(proxy: FaultyProxy, path: str, timeout: float = 5) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(proxy.url).port or 0, timeout=timeout)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read()


def test_signed_requests_pass_unharmed(s3_server: S3Server, bucket: str, proxy: FaultyProxy, signed: str) -> None:
    assert get(proxy, signed) == (200, BODY)
    through = S3Server(proxy.url)
    assert through.get(bucket, "a/b c+d.bin") == BODY == s3_server.get(bucket, "a/b c+d.bin")
    assert through.keys(bucket) == {"a/b c+d.bin": len(BODY)}
    assert through.client().head_object(Bucket=bucket, Key="a/b c+d.bin")["ContentLength"] == len(BODY)
    part = through.client().get_object(Bucket=bucket, Key="a/b c+d.bin", Range="bytes=10-19")["Body"].read()
    assert part == BODY[10:20]
    through.client().delete_object(Bucket=bucket, Key="a/b c+d.bin")
    assert s3_server.keys(bucket) == {}
    assert (proxy.count("PUT"), proxy.count("HEAD"), proxy.count("DELETE")) == (1, 1, 1)
    assert proxy.count("GET", "b c+d") == 3 and proxy.faults() == []


@pytest.mark.parametrize("code", sorted(MESSAGES))
def test_errors_reach_the_client_by_their_code(bucket: str, proxy: FaultyProxy, signed: str, code: str) -> None:
    proxy.plan(Fault("error", status=403, code=code, path=bucket))
    with pytest.raises(ClientError) as caught:
        S3Server(proxy.url).get(bucket, "a/b c+d.bin")
    assert caught.value.response["Error"]["Code"] == code
    assert S3Server(proxy.url).get(bucket, "a/b c+d.bin") == BODY  # once


def test_faults_of_the_body(proxy: FaultyProxy, signed: str) -> None:
    proxy.plan(
        Fault("truncate"), Fault("short"), Fault("corrupt"), Fault("stall_midway"), Fault("stall"), Fault("reset")
    )
    with pytest.raises(http.client.IncompleteRead) as cut:
        get(proxy, signed)
    assert cut.value.partial == BODY[: len(BODY) // 2]
    assert get(proxy, signed) == (200, BODY[: len(BODY) // 2])
    status, wrong = get(proxy, signed)
    assert status == 200 and len(wrong) == len(BODY)
    assert sum(a != b for a, b in zip(wrong, BODY, strict=True)) == 1
    for _ in range(2):
        with pytest.raises(TimeoutError):
            get(proxy, signed, timeout=0.3)
    with pytest.raises(ConnectionResetError):
        get(proxy, signed)
    assert get(proxy, signed) == (200, BODY)
    assert proxy.faults() == ["truncate", "short", "corrupt", "stall_midway", "stall", "reset"]


def test_delay_and_drip(proxy: FaultyProxy, signed: str) -> None:
    proxy.plan(Fault("delay", seconds=0.3), Fault("drip", seconds=0.05))
    start = time.monotonic()
    assert get(proxy, signed) == (200, BODY)
    assert 0.3 <= time.monotonic() - start < 2
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(proxy.url).port or 0, timeout=1)
    connection.request("GET", signed)
    assert connection.getresponse().read(5) == BODY[:5]  # something moves, but BODY would take minutes


def test_a_lost_reply_was_obeyed_and_a_reset_was_not(s3_server: S3Server, bucket: str, proxy: FaultyProxy) -> None:
    proxy.plan(Fault("reset", times=2), Fault("lost_reply", times=2))  # the client repeats once by itself
    for written in ({}, {"new": 3}):
        with pytest.raises(BotoCoreError):
            S3Server(proxy.url).put(bucket, "new", b"123")
        assert s3_server.keys(bucket) == written
    assert proxy.faults() == ["reset", "reset", "lost_reply", "lost_reply"]


def test_the_server_asks_for_the_key(s3_server: S3Server, bucket: str) -> None:
    thief = S3Server(s3_server.endpoint, secret="wrong")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        thief.keys(bucket)
    assert s3_server.secret not in repr(s3_server)
