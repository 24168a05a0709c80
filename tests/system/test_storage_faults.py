"""Faults between client and server: repeated to success, or refused with one clear error; never a wrong sample."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from raylg.batch import PairBatch
from raylg.data.cache import ShardCache
from raylg.data.config import StorageConfig
from raylg.data.manifest import MANIFEST_NAME, Manifest
from raylg.data.reader import ShardReader
from raylg.data.storage import Storage
from raylg.errors import EnvironmentUnfitError, RaylgError, ShardError
from tests.system.faulty_proxy import Fault, FaultKind, FaultyProxy, faulty_proxy
from tests.system.s3_server import S3Server
from tests.system.small_shards import assert_identical, damaged, data_config, epoch, write_data_set

BODY = random.Random(0).randbytes(100_000)
LARGE = random.Random(1).randbytes(20_000_000)
PATIENT = {"timeout_s": 1.0, "deadline_s": 60.0}  # never reached, on a busy machine neither
IMPATIENT = {"timeout_s": 0.3, "deadline_s": 1.2}


@pytest.fixture
def proxy(s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The endpoint of all storage in these tests."""
    with faulty_proxy(s3_server.endpoint) as started:
        monkeypatch.setenv("AWS_ENDPOINT_URL", started.url)
        yield started


@pytest.fixture
def storage(bucket: str, proxy: FaultyProxy) -> Storage:
    return Storage(f"s3://{bucket}/set", StorageConfig(**PATIENT))


@pytest.fixture
def impatient(bucket: str, proxy: FaultyProxy) -> Storage:
    return Storage(f"s3://{bucket}/set", StorageConfig(**IMPATIENT))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest, list[PairBatch]]:
    """A data set on the local disk and an epoch of its batches: what every reader must give."""
    folder = tmp_path_factory.mktemp("local") / "set"
    manifest = write_data_set(folder)
    return folder, manifest, list(epoch(folder, data_config(folder.parent / "cache")))


@pytest.fixture
def remote(local: tuple[Path, Manifest, list[PairBatch]], s3_server: S3Server, bucket: str, proxy: FaultyProxy) -> str:
    """URL of the same data set in the bucket."""
    for file in local[0].iterdir():
        s3_server.put(bucket, f"set/{file.name}", file.read_bytes())
    return f"s3://{bucket}/set"


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def refused(where: str, action: Callable[[], object], seconds: float, kind: type[RaylgError]) -> str:
    """The message of the one error, which is short, says where, and gives nothing away."""
    with within(seconds), pytest.raises(RaylgError) as caught:
        action()
    message = str(caught.value)
    assert caught.type is kind, message
    assert where in message and len(message) < 600 and "\n" not in message and "Traceback" not in message, message
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert variable not in os.environ or os.environ[variable] not in message
    return message


def burst(times: int | None = 1) -> dict[str, Fault]:
    return {
        "error 500": Fault("error", times, status=500, code="InternalError"),
        "error 503": Fault("error", times, status=503, code="SlowDown"),
        "reset": Fault("reset", times),
        "lost reply": Fault("lost_reply", times),
        "stall": Fault("stall", times),
        "stall midway": Fault("stall_midway", times),
        "truncated": Fault("truncate", times),
    }


BODILESS = ("stall midway", "truncated")  # which do nothing to a reply without body


# ---- Repeated to success ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", burst())
def test_a_burst_of_faults_is_survived(
    s3_server: S3Server, bucket: str, proxy: FaultyProxy, storage: Storage, fault: str
) -> None:
    s3_server.put(bucket, "set/old", BODY)

    def wrong(action: Callable[[], object], had_body: bool = True, times: int = 1) -> object:
        proxy.heal()
        proxy.plan(burst(times)[fault])
        with within(PATIENT["deadline_s"]):
            result = action()
        assert len(proxy.faults()) == times or (not had_body and fault in BODILESS)
        return result

    assert wrong(lambda: storage.read("old", len(BODY)), times=2) == BODY
    assert wrong(lambda: storage.sizes()) == {"old": len(BODY)}
    assert wrong(lambda: storage.size("old"), had_body=False) == len(BODY)
    wrong(lambda: storage.write("new", BODY[::-1]), had_body=False)
    assert s3_server.get(bucket, "set/new") == BODY[::-1]
    wrong(lambda: storage.delete("old"), had_body=False)
    assert s3_server.keys(bucket) == {"set/new": len(BODY)}


@pytest.mark.parametrize("fault", burst())
def test_a_large_file_in_ranges_is_exact_whatever_happens_to_some(
    s3_server: S3Server, bucket: str, proxy: FaultyProxy, storage: Storage, fault: str
) -> None:
    s3_server.put(bucket, "set/large", LARGE)
    proxy.plan(burst(2)[fault])
    with within(PATIENT["deadline_s"]):
        assert storage.read("large", len(LARGE)) == LARGE
    assert len(proxy.faults()) == 2
    assert proxy.count("GET", "large") == 3 + 2  # in several ranges, of which only those that failed are repeated


# ---- Refused with one clear error -----------------------------------------------------------------------------------


OPERATIONS: dict[str, Callable[[Storage], object]] = {
    "read": lambda storage: storage.read("shard", len(BODY)),
    "write": lambda storage: storage.write("shard", BODY[::-1]),
    "sizes": lambda storage: storage.sizes(),
    "size": lambda storage: storage.size("shard"),
    "delete": lambda storage: storage.delete("other"),
}


def refused_by_all(storage: Storage, names: Sequence[str] = tuple(OPERATIONS)) -> dict[str, str]:
    """The messages of operations that run at the same time."""

    def message(name: str) -> str:
        return refused(storage.url, lambda: OPERATIONS[name](storage), 20, EnvironmentUnfitError)

    with ThreadPoolExecutor(len(names)) as threads:
        return dict(zip(names, threads.map(message, names), strict=True))


@pytest.mark.parametrize("fault", [*burst(), "drip"])
def test_what_does_not_end_is_given_up_at_the_deadline(
    s3_server: S3Server, bucket: str, proxy: FaultyProxy, impatient: Storage, fault: str
) -> None:
    s3_server.put(bucket, "set/shard", BODY)
    proxy.plan(Fault("drip", None, seconds=0.1) if fault == "drip" else burst(None)[fault])
    names = ["read", "sizes"] if fault in (*BODILESS, "drip") else list(OPERATIONS)  # others have no body

    for message in refused_by_all(impatient, names).values():
        # From a server that resets all and has never answered one may also learn that nobody is there.
        unreachable = fault in ("reset", "lost reply") and "AWS_ENDPOINT_URL" in message
        assert unreachable or ("deadline_s" in message and proxy.url in message), message
    if fault != "lost reply":
        assert s3_server.keys(bucket) == {"set/shard": len(BODY)}
        assert s3_server.get(bucket, "set/shard") == BODY  # a failed write leaves the old file
    proxy.heal()
    again = Storage(impatient.url, StorageConfig(**PATIENT))
    again.write("shard", BODY[::-1])  # and a repeat goes on
    assert again.read("shard") == BODY[::-1]


@pytest.mark.parametrize(
    ("code", "status", "hint"),
    [
        ("ExpiredToken", 400, "expired"),
        ("ExpiredToken", 403, "expired"),
        ("RequestTimeTooSkewed", 403, "clock"),
        ("SignatureDoesNotMatch", 403, "AWS_SECRET_ACCESS_KEY"),
        ("InvalidAccessKeyId", 403, "AWS_ACCESS_KEY_ID"),
        ("AccessDenied", 403, "denied"),
        ("NoSuchBucket", 404, "no such bucket"),
    ],
)
def test_what_cannot_get_better_is_refused_at_once(
    proxy: FaultyProxy, storage: Storage, code: str, status: int, hint: str
) -> None:
    proxy.plan(Fault("error", None, status=status, code=code))
    for operation in OPERATIONS.values():
        asked = proxy.count()
        message = refused(storage.url, functools.partial(operation, storage), 20, EnvironmentUnfitError)
        assert hint in message and proxy.count() == asked + 1


def test_wrong_keys_of_a_real_server(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    assert all("AWS_SECRET_ACCESS_KEY" in message for message in refused_by_all(storage).values())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong-key")
    other = Storage(storage.url, storage.config)
    assert all("AWS_ACCESS_KEY_ID" in message for message in refused_by_all(other).values())


def test_no_keys_at_all(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    assert all("AWS_ACCESS_KEY_ID" in message for message in refused_by_all(storage).values())


def test_no_such_bucket_on_a_real_server(proxy: FaultyProxy) -> None:
    missing = Storage("s3://no-such-bucket-here/set", StorageConfig(**PATIENT))
    for name, message in refused_by_all(missing).items():
        # This server looks at the right to make buckets before it looks for the bucket.
        assert "no such bucket" in message or (name == "write" and "denied" in message), (name, message)


def test_nobody_listens_at_the_endpoint(bucket: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but not listening: connections are refused
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        lonely = Storage(f"s3://{bucket}/set", StorageConfig(endpoint_url=endpoint, **IMPATIENT))
        for message in refused_by_all(lonely).values():
            assert endpoint in message and ("endpoint_url" in message or "deadline_s" in message), message


def test_no_such_host(bucket: str) -> None:
    lonely = Storage(f"s3://{bucket}/set", StorageConfig(endpoint_url="http://no-such-host.invalid:9", **IMPATIENT))
    assert "no-such-host.invalid" in refused(lonely.url, lonely.sizes, 20, EnvironmentUnfitError)


def test_a_file_that_is_not_there_is_not_asked_for_until_the_deadline(storage: Storage) -> None:
    message = refused(f"{storage.url}/nothing.h5", lambda: storage.read("nothing.h5"), 20, ShardError)
    assert "no such file; copy it there again" in message
    assert storage.size("nothing.h5") is None and storage.sizes() == {}
    storage.delete("nothing.h5")


# ---- Shards: never a wrong sample -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "cache_gb"),
    [
        ("corrupt", 1),
        ("short", 1),
        ("truncate", 1),
        ("stall_midway", 1),
        ("reset", 1),
        ("error", 1),
        ("corrupt", 0),
        ("stall_midway", 0),
    ],
)
def test_an_epoch_through_faults_is_the_epoch_from_disk(
    local: tuple[Path, Manifest, list[PairBatch]],
    remote: str,
    proxy: FaultyProxy,
    tmp_path: Path,
    kind: FaultKind,
    cache_gb: float,
) -> None:
    proxy.plan(Fault(kind, 2, path="shard-1"), Fault(kind, 1, path="shard-3"))
    config = data_config(tmp_path, StorageConfig(cache_gb=cache_gb, **PATIENT))
    with within(2 * PATIENT["deadline_s"]):
        assert_identical(list(epoch(remote, config)), local[2])
    assert proxy.faults() == [kind] * 3


def test_a_storm_of_all_faults(
    local: tuple[Path, Manifest, list[PairBatch]], remote: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    kinds: list[FaultKind] = ["error", "reset", "stall", "truncate", "short", "corrupt", "delay", "lost_reply"]
    for kind in kinds:  # each shard, as often as a reader forgives wrong bytes
        proxy.plan(Fault(kind, 1, path=f"shard-{kinds.index(kind) % 5}"))
    with within(2 * PATIENT["deadline_s"]):
        assert_identical(list(epoch(remote, data_config(tmp_path, StorageConfig(**PATIENT)))), local[2])
    assert sorted(proxy.faults()) == sorted(kinds)


@pytest.mark.parametrize(("kind", "error"), [("corrupt", ShardError), ("short", EnvironmentUnfitError)])
def test_a_shard_that_stays_wrong_is_refused_where_its_batch_is_due(
    local: tuple[Path, Manifest, list[PairBatch]],
    remote: str,
    proxy: FaultyProxy,
    tmp_path: Path,
    kind: FaultKind,
    error: type[RaylgError],
) -> None:
    wrong = "shard-2.h5"
    proxy.plan(Fault(kind, None, path=wrong))
    batches: list[PairBatch] = []
    config = data_config(tmp_path, StorageConfig(timeout_s=0.7, deadline_s=5))
    refused(f"{remote}/{wrong}", lambda: batches.extend(_each(epoch(remote, config), batches)), 40, error)
    assert_identical(batches, local[2][: len(batches)])
    first = next(i for i, batch in enumerate(local[2]) if any(scene == "scene-2" for scene, _, _ in batch.names))
    assert len(batches) == first
    assert not any("scene-2" in path.name for path in tmp_path.rglob("*"))
    proxy.heal()
    assert_identical(list(epoch(remote, config)), local[2])  # nothing wrong was kept


def _each(source: Iterator[PairBatch], into: list[PairBatch]) -> list[PairBatch]:
    for batch in source:
        into.append(batch)
    return []


def test_a_shard_damaged_in_the_bucket_or_missing_from_it(
    local: tuple[Path, Manifest, list[PairBatch]], remote: str, s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    config = data_config(tmp_path, StorageConfig(**PATIENT))
    reader = ShardReader.open(remote, config)
    entry = reader.manifest.shards[2]
    whole = s3_server.get(bucket, f"set/{entry.file}")
    for wrong in (damaged(entry, whole), whole[:-1], whole + b"\0", b""):
        s3_server.put(bucket, f"set/{entry.file}", wrong)
        refused(f"{remote}/{entry.file}", lambda: reader.read(entry), 20, ShardError)
        refused(f"{remote}/{entry.file}", lambda: list(epoch(remote, config)), 20, ShardError)
    s3_server.client().delete_object(Bucket=bucket, Key=f"set/{entry.file}")
    message = refused(f"{remote}/{entry.file}", lambda: reader.read(entry), 20, ShardError)
    assert "prepare" in message
    s3_server.put(bucket, f"set/{entry.file}", whole)
    assert_identical(list(epoch(remote, config)), local[2])


@pytest.mark.parametrize("change", ["num_pairs", "num_images", "split", "scene"])
def test_a_manifest_that_lies_about_a_shard(
    local: tuple[Path, Manifest, list[PairBatch]],
    remote: str,
    s3_server: S3Server,
    bucket: str,
    tmp_path: Path,
    change: str,
) -> None:
    """One wrong byte in the manifest must not drop or invent pairs."""
    text = s3_server.get(bucket, f"set/{MANIFEST_NAME}").decode()
    changed = {
        "num_pairs": text.replace('"num_pairs": 10,', '"num_pairs": 11,', 1),
        "num_images": text.replace('"num_images": 5,', '"num_images": 4,', 1),
        "split": text.replace('"split": "train"', '"split": "val"', 1),
        "scene": text.replace('"scene": "scene-0"', '"scene": "scene-1"', 1),
    }[change]
    assert changed != text
    s3_server.put(bucket, f"set/{MANIFEST_NAME}", changed.encode())
    config = data_config(tmp_path, StorageConfig(**PATIENT))

    def read_all() -> None:
        reader = ShardReader.open(remote, config)
        for entry in reader.manifest.shards:
            reader.read(entry)

    assert "manifest" in refused(remote, read_all, 20, ShardError)


def test_a_manifest_cut_short_or_garbled(remote: str, s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    text = s3_server.get(bucket, f"set/{MANIFEST_NAME}")
    config = data_config(tmp_path, StorageConfig(**PATIENT))
    for wrong in (b"", text[: len(text) // 2], text.replace(b'"shards"', b'"shares"'), b"\xff" + text):
        s3_server.put(bucket, f"set/{MANIFEST_NAME}", wrong)
        refused(f"{remote}/{MANIFEST_NAME}", lambda: ShardReader.open(remote, config), 20, ShardError)
    s3_server.client().delete_object(Bucket=bucket, Key=f"set/{MANIFEST_NAME}")
    assert "prepare" in refused(remote, lambda: ShardReader.open(remote, config), 20, ShardError)


# ---- The cache of a machine -----------------------------------------------------------------------------------------


def shards_in(cache_dir: Path) -> list[Path]:
    return sorted((cache_dir / "shards").glob("*.h5"))


def test_a_second_trial_reads_nothing_but_the_manifest(
    local: tuple[Path, Manifest, list[PairBatch]], remote: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    config = data_config(tmp_path, StorageConfig(**PATIENT))
    assert_identical(list(epoch(remote, config)), local[2])
    assert proxy.count("GET", "shard-") == 5
    proxy.heal()
    assert_identical(list(epoch(remote, config)), local[2])
    assert proxy.count(path="shard-") == 0
    assert 1 <= proxy.count() == proxy.count("GET", MANIFEST_NAME) <= 2
    assert len(shards_in(tmp_path)) == 5


@pytest.mark.parametrize("damage", ["cut short", "emptied", "other bytes", "deleted", "a folder"])
def test_a_damaged_copy_is_replaced(
    local: tuple[Path, Manifest, list[PairBatch]], remote: str, proxy: FaultyProxy, tmp_path: Path, damage: str
) -> None:
    config = data_config(tmp_path, StorageConfig(**PATIENT))
    list(epoch(remote, config))
    copy = shards_in(tmp_path)[1]
    whole = copy.read_bytes()
    if damage in ("deleted", "a folder"):
        copy.unlink()
    if damage == "a folder":
        copy.mkdir()
    if damage in ("cut short", "emptied"):
        os.truncate(copy, len(whole) // 2 if damage == "cut short" else 0)
    if damage == "other bytes":
        copy.write_bytes(whole[:100] + b"x" + whole[101:])
    proxy.heal()
    assert_identical(list(epoch(remote, config)), local[2])
    if damage != "a folder":
        assert proxy.count("GET", "shard-") == 1 and copy.read_bytes() == whole


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for two shards."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_under_the_cache(
    local: tuple[Path, Manifest, list[PairBatch]],
    remote: str,
    tiny_disk: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = data_config(tiny_disk, StorageConfig(**PATIENT))
    with within(PATIENT["deadline_s"]):
        assert_identical(list(epoch(remote, config)), local[2])
    kept = shards_in(tiny_disk)
    assert 1 <= len(kept) <= 2 and not list(tiny_disk.rglob("*.tmp"))
    (tiny_disk / "shards" / "foreign").write_bytes(b"x" * 10_000)
    for path in kept:
        path.unlink()
    with contextlib.suppress(OSError), (tiny_disk / "filler").open("wb") as filler:
        while True:
            filler.write(b"x" * 1024)
            filler.flush()
    caplog.clear()
    with within(PATIENT["deadline_s"]):
        assert_identical(list(epoch(remote, config)), local[2])  # from memory
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and "full" in warnings[0] and str(tiny_disk) in warnings[0], warnings


def test_a_full_disk_under_a_local_folder(tiny_disk: Path) -> None:
    storage = Storage(tiny_disk / "set")
    storage.write("shard", b"old")
    message = refused(str(tiny_disk), lambda: storage.write("shard", BODY), 20, EnvironmentUnfitError)
    assert "full" in message
    assert storage.read("shard") == b"old" and storage.sizes() == {"shard": 3}
    assert [path.name for path in (tiny_disk / "set").iterdir()] == ["shard"]
    storage.write("shard", b"new")
    assert storage.read("shard") == b"new"


def _read_epoch(remote: str, cache_dir: Path, storage: StorageConfig, digests: Any) -> None:
    """One trial, in a process of its own."""
    names = [batch.names for batch in epoch(remote, data_config(cache_dir, storage))]
    digests.put((os.getpid(), repr(names)))


@pytest.mark.slow
def test_processes_that_share_a_cache_read_each_shard_once(
    local: tuple[Path, Manifest, list[PairBatch]], remote: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    proxy.plan(Fault("delay", None, path="shard-", seconds=0.3))  # so that they do meet
    context = multiprocessing.get_context("spawn")
    digests = context.Queue()
    arguments = (remote, tmp_path, StorageConfig(**PATIENT), digests)
    started = [context.Process(target=_read_epoch, args=arguments) for _ in range(2)]
    for process in started:
        process.start()
    found = [digests.get(timeout=60) for _ in started]
    for process in started:
        process.join(30)
        assert process.exitcode == 0
    assert {names for _, names in found} == {repr([batch.names for batch in local[2]])}
    assert proxy.count("GET", "shard-") == 5
    assert proxy.count() == 5 + proxy.count("GET", MANIFEST_NAME)


def _download_for_ever(root: Path, manifest: Manifest, started: Any) -> None:
    def fetch() -> bytes:
        started.set()
        time.sleep(600)
        return b""

    ShardCache(root, 10**9, 60).get(manifest.shards[0], fetch)


@pytest.mark.slow
def test_a_killed_download_holds_up_nobody(
    local: tuple[Path, Manifest, list[PairBatch]], remote: str, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_download_for_ever, args=(tmp_path / "shards", local[1], started))
    process.start()
    assert started.wait(60)
    (tmp_path / "shards" / f".{local[1].shards[0].sha256}.h5.{process.pid}-0.tmp").write_bytes(b"half")
    process.kill()
    process.join()
    with within(PATIENT["deadline_s"]):
        assert_identical(list(epoch(remote, data_config(tmp_path, StorageConfig(**PATIENT)))), local[2])
    assert [path.suffix for path in (tmp_path / "shards").iterdir()] == [".h5"] * 5  # nothing is left of it


def test_a_cache_too_small_for_the_data_set(
    local: tuple[Path, Manifest, list[PairBatch]], remote: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    limit = 2.5 * max(entry.bytes for entry in local[1].shards)
    config = data_config(tmp_path, StorageConfig(cache_gb=limit / 1e9, **PATIENT))
    for _ in range(2):
        assert_identical(list(epoch(remote, config)), local[2])
        assert sum(path.stat().st_size for path in shards_in(tmp_path)) <= limit
    assert len(shards_in(tmp_path)) == 2 and proxy.count("GET", "shard-") > 5
