"""Files in buckets of S3-compatible stores: each request is repeated with back-off, and all ends by a deadline.

s3fs finds the credentials, connects, and runs all requests of a process in one thread. Bodies are taken from its
client and go piece by piece to where they belong in the result, which costs half the time of its own `cat_file`.
"""

from __future__ import annotations

import asyncio
import functools
import io
import itertools
import os
import random
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import botocore.exceptions as boto
import s3fs
from aiobotocore.httpsession import AIOHTTPSession

from raylg.data import stopping
from raylg.data.config import StorageConfig
from raylg.data.refusals import NO_FILE, NO_RANGE, TRANSIENT, code, describe, is_transient, reason
from raylg.errors import ConfigError, EnvironmentUnfitError, ShardError

T = TypeVar("T")

PART_BYTES = 8 * 2**20
"""A file is read in ranges of this size."""
BUFFER_BYTES = 2**20
"""Received ahead per request; aiohttp's 64 KB make it stop and go (measured: 15 % of the rate)."""
FIRST_DELAY_S, LONGEST_DELAY_S = 0.2, 8.0
"""Between attempts; doubled each time and drawn between half and whole, so that clients do not come back together."""
UNREACHABLE_ATTEMPTS = 5
"""Connections that fail before the first answer ever: the endpoint is mistyped rather than restarting."""
WRONG_SIZES = 3
"""Times that a file must be found in another size than expected before that counts."""
LATE_S = 5.0
"""The thread of the requests may be late by this much."""


class _Session(AIOHTTPSession):  # type: ignore[misc]  # published without type information
    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        session._read_bufsize = BUFFER_BYTES  # no public door; without effect the transfer is slower, not wrong
        return session


@dataclass
class _Work:
    """One file or listing that is worked on."""

    key: str
    """bucket/key."""
    verb: str
    deadline: float
    """In seconds of the monotonic clock."""
    attempts: int = 0
    """That have failed."""
    cause: str = "not over by then"

    @property
    def target(self) -> dict[str, str]:
        bucket, _, key = self.key.partition("/")
        return {"Bucket": bucket, "Key": key}


class _Sending(io.BytesIO):
    """A body that knows when its last bytes were taken."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.moved = time.monotonic()

    def read(self, size: int | None = -1, /) -> bytes:
        self.moved = time.monotonic()
        return super().read(size)


class BucketFiles:
    """Files of all buckets at one endpoint, for the process that made it; keys are bucket/key."""

    def __init__(self, config: StorageConfig) -> None:
        """Nothing is sent before the first use.

        Raises:
            ConfigError: AWS_ENDPOINT_URL holds credentials.
        """
        endpoint = config.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint and "@" in endpoint:
            raise ConfigError("AWS_ENDPOINT_URL must be without credentials: set AWS_ACCESS_KEY_ID instead")
        self._config, self._endpoint = config, endpoint or "AWS"
        self._random = random.Random()
        self._answered = False
        """Whether the store has ever answered."""
        self._fs = s3fs.S3FileSystem(
            endpoint_url=endpoint,
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={
                "connect_timeout": config.timeout_s,
                "read_timeout": config.timeout_s,
                "max_pool_connections": config.parallel_reads,
                "retries": {"total_max_attempts": 1},
                "http_session_cls": _Session,
                # Checksums beyond the signature's, which other stores than AWS may not know.
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
        )
        weakref.finalize(self, _release, self._fs, os.getpid())

    def read(self, key: str, size: int | None) -> bytes:
        """See `Storage.read`."""
        return self._run(self._read, key, "read", size)

    def write(self, key: str, data: bytes) -> None:
        """See `Storage.write`."""
        self._run(self._write, key, "written", data)

    def size(self, key: str) -> int | None:
        """See `Storage.size`."""
        return self._run(self._size, key, "found", None)

    def sizes(self, prefix: str) -> dict[str, int]:
        """See `Storage.sizes`; keys are bucket/key."""
        return self._run(self._sizes, prefix, "listed", None)

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        self._run(self._delete, key, "deleted", None)

    def _run(self, work: Callable[[_Work, Any], Coroutine[Any, Any, T]], key: str, verb: str, argument: Any) -> T:
        """Run in the thread of the requests until it is done, the deadline is over, or this thread shall stop."""
        started = _Work(key, verb, time.monotonic() + self._config.deadline_s)
        running = asyncio.run_coroutine_threadsafe(work(started, argument), self._fs.loop)
        try:
            return stopping.result(running, started.deadline + LATE_S)
        except TimeoutError as error:  # the thread of the requests hangs
            raise self._too_late(started) from error
        finally:
            running.cancel()

    async def _read(self, work: _Work, size: int | None) -> bytes:
        for _ in range(WRONG_SIZES):
            wanted = await self._size(work, None) if size is None else size
            if wanted is None:
                raise _missing(work)
            buffer = io.BytesIO(bytes(wanted))  # never copied: it becomes the result
            with buffer.getbuffer() as target:
                found = await self._parts(work, target)
            if len(found) == 1 and found[0][0] == wanted:
                return buffer.getvalue()
        total = next((total for total, _ in found if total != wanted), wanted)
        raise ShardError(
            f"s3://{work.key}: {'fewer' if total is None else total} bytes, but {wanted} were expected; it was cut or "
            "replaced after it was written; copy it there again"
        )

    async def _parts(self, work: _Work, target: memoryview) -> list[tuple[int | None, str]]:
        """Fill `target` with all ranges of a file at a time; what `_part` returns, without repetitions."""
        starts = range(0, max(len(target), 1), PART_BYTES)  # an empty file must be there, too
        tasks = [asyncio.ensure_future(self._part(work, target, start)) for start in starts]
        try:
            return list(dict.fromkeys(await asyncio.gather(*tasks)))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # nobody writes from here on

    async def _part(self, work: _Work, target: memoryview, start: int) -> tuple[int | None, str]:
        """Fill a range of `target`.

        Returns:
            Bytes of the whole file (None: it ends before the range) and its version. Where it has another size than
            `target`, nothing is filled.

        Raises:
            ShardError: no such file.
        """
        end = min(start + PART_BYTES, len(target))

        async def request(client: Any) -> tuple[int | None, str]:
            response = await client.get_object(**work.target, Range=f"bytes={start}-{start + PART_BYTES - 1}")
            body, total, position = response["Body"], _total(response), start
            try:
                if total == len(target):
                    async for block, _ in body.raw_stream.content.iter_chunks():
                        position += len(block)
                        if position > end:
                            break
                        target[position - len(block) : position] = block
                    if position != end:
                        raise OSError(f"{position - start} bytes instead of {end - start}")
            finally:
                body.close()  # an unfinished connection is of no more use; a finished one is kept
            return total, response.get("ETag", "")

        try:
            return await self._repeat(work, request, NO_FILE | NO_RANGE)
        except boto.ClientError as error:
            if code(error) in NO_FILE:
                raise _missing(work) from error
            return (0 if start == 0 else None), ""  # no byte 0: an empty file

    async def _size(self, work: _Work, _: None) -> int | None:
        async def request(client: Any) -> int:
            # Not a HEAD request: its answer has no room for the reason of a refusal.
            response = await client.get_object(**work.target, Range="bytes=0-0")
            try:
                await response["Body"].read()
            finally:
                response["Body"].close()
            return _total(response)

        try:
            return await self._repeat(work, request, NO_FILE | NO_RANGE)
        except boto.ClientError as error:
            return None if code(error) in NO_FILE else 0

    async def _sizes(self, work: _Work, _: None) -> dict[str, int]:
        bucket, prefix = work.target["Bucket"], work.target["Key"]
        found: dict[str, int] = {}
        position: dict[str, str] = {}

        async def request(client: Any) -> Any:
            return await client.list_objects_v2(Bucket=bucket, Prefix=prefix, **position)

        while True:
            page = await self._repeat(work, request)
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):  # marks a folder
                    found[f"{bucket}/{item['Key']}"] = item["Size"]
            if not page.get("IsTruncated"):
                return found
            position = {"ContinuationToken": page["NextContinuationToken"]}

    async def _write(self, work: _Work, data: bytes) -> None:
        async def request(client: Any) -> None:
            body = _Sending(data)
            sending = asyncio.ensure_future(client.put_object(**work.target, Body=body))
            try:
                while not sending.done():
                    left = body.moved + self._config.timeout_s - time.monotonic()
                    if left <= 0:  # aiohttp watches what it receives only
                        raise TimeoutError
                    await asyncio.wait([sending], timeout=left)
                await sending
            finally:
                sending.cancel()

        await self._repeat(work, request)

    async def _delete(self, work: _Work, _: None) -> None:
        async def request(client: Any) -> None:
            await client.delete_object(**work.target)

        try:
            await self._repeat(work, request, NO_FILE)
        except boto.ClientError:
            return  # nothing to delete

    async def _repeat(
        self, work: _Work, request: Callable[[Any], Awaitable[T]], expected: frozenset[str] = frozenset()
    ) -> T:
        """Send a request until it succeeds.

        Raises:
            ClientError: the store's answer is one of the `expected` codes.
            EnvironmentUnfitError: it refuses for good, or the deadline is over.
        """
        delay = FIRST_DELAY_S
        for attempt in itertools.count(1):
            try:
                async with asyncio.timeout(work.deadline - time.monotonic()), _slots(self._config.parallel_reads):
                    result = await request(await self._fs.set_session())
                self._answered = True
                return result
            except boto.ClientError as error:
                self._answered = True
                if code(error) in expected:
                    raise
                if not is_transient(error):
                    raise self._refused(work, error) from error
                cause: Exception = error
            except TRANSIENT as error:
                if isinstance(error, boto.SSLError) or self._is_unreachable(work, error, attempt):
                    raise self._refused(work, error) from error
                cause = error
            except (boto.BotoCoreError, ValueError) as error:  # before anything is sent
                raise self._refused(work, error) from error
            wait = delay * self._random.uniform(0.5, 1)
            work.attempts += 1
            if time.monotonic() < work.deadline:  # otherwise the earlier cause says more
                work.cause = describe(cause)
            if time.monotonic() + wait >= work.deadline:
                raise self._too_late(work) from cause
            await asyncio.sleep(wait)
            delay = min(2 * delay, LONGEST_DELAY_S)
        raise AssertionError("unreachable")

    def _is_unreachable(self, work: _Work, error: Exception, attempt: int) -> bool:
        if self._answered or not isinstance(error, (boto.EndpointConnectionError, boto.ConnectTimeoutError)):
            return False  # a store that has answered before is being restarted
        elapsed = time.monotonic() - (work.deadline - self._config.deadline_s)
        return attempt >= UNREACHABLE_ATTEMPTS or elapsed > 2 * self._config.timeout_s

    def _refused(self, work: _Work, error: Exception) -> EnvironmentUnfitError:
        return EnvironmentUnfitError(f"s3://{work.key}: cannot be {work.verb} at {self._endpoint}: {reason(error)}")

    def _too_late(self, work: _Work) -> EnvironmentUnfitError:
        return EnvironmentUnfitError(
            f"s3://{work.key}: not {work.verb} within data.storage.deadline_s = {self._config.deadline_s:g} s; "
            f"{work.attempts} requests failed, the last one with: {work.cause}; check the network and the store at "
            f"{self._endpoint}, or allow more time"
        )


def _total(response: dict[str, Any]) -> int:
    """Bytes of the whole file of which the response holds a range."""
    return int(response.get("ContentRange", "").rpartition("/")[2] or response["ContentLength"])


def _missing(work: _Work) -> ShardError:
    return ShardError(f"s3://{work.key}: no such file; copy it there again")


_inherited: list[s3fs.S3FileSystem] = []


def _release(fs: s3fs.S3FileSystem, process: int) -> None:
    if process != os.getpid():
        _inherited.append(fs)  # its sockets and thread are those of the process this one was forked from


def _slots(count: int) -> asyncio.Semaphore:
    """What a request of this process needs to be sent."""
    return _slots_of(os.getpid(), count)


@functools.cache
def _slots_of(process: int, count: int) -> asyncio.Semaphore:
    assert process == os.getpid()  # a fork must not go on with the parent's
    return asyncio.Semaphore(count)
