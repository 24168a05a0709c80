"""Storage: local folders, buckets, what is repeated, what is refused, and what never gets out."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import random
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raylg.data import bucket, storage
from raylg.data.config import StorageConfig
from raylg.data.storage import Storage
from raylg.errors import ConfigError, EnvironmentUnfitError, RaylgError, ShardError
from tests.unit.data.fake_s3 import FakeS3, fake_s3

SECRET = "very-secret-indeed"
LARGE = random.Random(0).randbytes(100_000)
PATIENT = StorageConfig(timeout_s=0.4, deadline_s=20)
IMPATIENT = StorageConfig(timeout_s=0.15, deadline_s=1.5, parallel_reads=16)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setattr(bucket, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(bucket, "PART_BYTES", 30_000)
    with fake_s3() as started:
        monkeypatch.setenv("AWS_ENDPOINT_URL", started.url)
        yield started


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, fake: FakeS3) -> Storage:
    return Storage(tmp_path / "set" if request.param == "local" else "s3://bucket/set/", PATIENT)


def test_write_read_list_delete(folder: Storage) -> None:
    assert folder.sizes() == {}
    assert (folder.size("a.h5"), folder.exists("a.h5")) == (None, False)
    content = {"a.h5": LARGE, "empty": b"", "deep/er/ä b+c%.h5": b"123", "deep.json": b"{}", ".progress/x.json": b"1"}
    for name, data in content.items():
        folder.write(name, b"older")
        folder.write(name, data)
    assert folder.sizes() == {name: len(data) for name, data in content.items()}
    assert set(folder.sizes("deep")) == {"deep/er/ä b+c%.h5", "deep.json"}
    assert set(folder.sizes("deep/")) == {"deep/er/ä b+c%.h5"}
    for name, data in content.items():
        assert folder.size(name) == len(data)
        assert folder.read(name) == folder.read(name, len(data)) == data
    for name in ("empty", "empty", "deep/er/nothing", "a.h5/x"):
        folder.delete(name)
    assert not folder.exists("empty")
    assert "empty" not in folder.sizes()


def test_a_folder_within_a_folder(folder: Storage) -> None:
    folder.join("sub/folder").write("a", b"1")
    assert folder.read("sub/folder/a") == b"1"
    assert folder.join("sub").sizes() == {"folder/a": 1}
    assert folder.join("sub").url == f"{folder.url}/sub"
    assert folder.describe("x.h5") == f"{folder.url}/x.h5"


@pytest.mark.parametrize("name", ["../a", "a/../../b", "a/.."])
def test_names_stay_within_the_folder(folder: Storage, name: str) -> None:
    refused(folder, name)


def test_names_from_the_root_are_none_within_a_folder(tmp_path: Path) -> None:
    refused(Storage(tmp_path), "/etc/passwd")


def refused(folder: Storage, name: str) -> None:
    for call in (folder.read, folder.size, folder.delete, lambda n: folder.write(n, b"")):
        with pytest.raises(ShardError, match="is not a name within this folder"):
            call(name)


def test_a_missing_file(folder: Storage) -> None:
    with pytest.raises(ShardError, match=r"set/a\.h5: no such file"):
        folder.read("a.h5")
    with pytest.raises(ShardError, match=r"set/a\.h5: no such file") as error:
        folder.read("a.h5", 0)
    assert "prepare" not in str(error.value)  # it may be a photograph, or a checkpoint


@pytest.mark.parametrize("wrong", [len(LARGE) - 1, len(LARGE) + 1, 10, 5 * len(LARGE), 0])
def test_another_size_than_expected(folder: Storage, wrong: int) -> None:
    folder.write("a.h5", LARGE)
    with pytest.raises(ShardError, match=rf"a\.h5: (100000|fewer) bytes, but {wrong} were expected"):
        folder.read("a.h5", wrong)
    with pytest.raises(ShardError, match="copy it there again") as error:
        folder.read("a.h5", wrong)
    assert "prepare" not in str(error.value)


def test_pickle_and_fork(folder: Storage) -> None:
    folder.write("a.h5", LARGE)
    image = pickle.dumps(folder)
    assert SECRET.encode() not in image
    again = pickle.loads(image)
    assert (again.url, again.config, again.local) == (folder.url, folder.config, folder.local)
    assert again.read("a.h5") == LARGE
    child = os.fork()
    if child == 0:
        os._exit(0 if folder.read("a.h5") == LARGE else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert folder.read("a.h5") == LARGE


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs://bucket/x", r"gs:// is not supported; give a folder or s3://bucket/folder"),
        ("s3://", "no bucket"),
        ("s3:///x", "no bucket"),
        (f"s3://key:{SECRET}@bucket/x", "AWS_ACCESS_KEY_ID"),
        ("file://tmp/x", "file:///folder"),
        ("file://", "file:///folder"),
    ],
)
def test_urls_that_cannot_be(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        Storage(url)
    assert SECRET not in str(error.value)


def test_forms_of_a_location(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Storage("~/x").local == Path("/home/somebody/x")
    assert Storage("file:///a/b").local == Path("/a/b")
    assert Storage("s3://bucket").url == Storage("s3://bucket/").url == "s3://bucket"
    assert Storage("s3://bucket//a//b/").url == "s3://bucket/a/b"
    assert Storage("s3://bucket").local is None


# Local folders.


def test_a_local_file_is_there_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = Storage(tmp_path)
    local.write("a", b"older")

    def full(descriptor: int) -> None:
        assert (tmp_path / "a").read_bytes() == b"older"
        assert local.sizes() == {"a": 5}  # not the temporary file
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(EnvironmentUnfitError, match=r"a: cannot be written \(No space.*the disk is full: free some"):
        local.write("a", b"newer")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"older")]


def test_folders_behind_links_are_part_of_a_local_folder(tmp_path: Path) -> None:
    elsewhere = Storage(tmp_path / "elsewhere")
    elsewhere.write("a/b", b"12")
    local = Storage(tmp_path / "set")
    local.write("c", b"1")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "linked" / "a" / "round").symlink_to(tmp_path / "set")
    assert local.sizes() == {"c": 1, "linked/a/b": 2}
    assert local.read("linked/a/b") == b"12"


def test_of_two_links_to_a_folder_the_first_by_name_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the file system orders them."""
    Storage(tmp_path / "elsewhere").write("a", b"12")
    (tmp_path / "set").mkdir()
    for name in ("z", "m", "b"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "elsewhere")
    original = os.scandir

    class Ordered:
        reverse = False

        def __init__(self, path: str) -> None:
            self.entries = iter(sorted(original(path), key=lambda entry: entry.name, reverse=self.reverse))

        def __enter__(self) -> Ordered:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __next__(self) -> os.DirEntry[str]:
            return next(self.entries)

    monkeypatch.setattr(os, "scandir", Ordered)
    for reverse in (False, True):
        monkeypatch.setattr(Ordered, "reverse", reverse)
        assert Storage(tmp_path / "set").sizes() == {"b/a": 2}


def test_a_link_to_nothing_is_not_left_out(tmp_path: Path) -> None:
    Storage(tmp_path).write("a/b.jpg", b"1")
    (tmp_path / "a" / "c.jpg").symlink_to(tmp_path / "unmounted" / "c.jpg")
    with pytest.raises(EnvironmentUnfitError, match=r"a/c\.jpg: a link to .*unmounted/c\.jpg, which is not there"):
        Storage(tmp_path).sizes()
    assert Storage(tmp_path).sizes("other") == {}


@pytest.mark.parametrize("where", ["", "a"])
def test_a_folder_that_cannot_be_listed_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    Storage(tmp_path).write("a/b.jpg", b"1")
    original, closed = os.scandir, str(tmp_path / where)

    def scandir(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(EnvironmentUnfitError, match=rf"{closed}: cannot be listed \(Permission denied\); check"):
        Storage(tmp_path).sizes()


def test_a_folder_that_is_deleted_while_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/1", "b/2"):
        Storage(tmp_path).write(name, b"1")
    original = os.scandir

    def scandir(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("a"):
            shutil.rmtree(path)
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert Storage(tmp_path).sizes() == {"b/2": 1}


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EnvironmentUnfitError, match="cannot be written"):
        Storage(tmp_path / "file" / "set").write("a", b"")


# Buckets.


@pytest.fixture
def remote(fake: FakeS3) -> Storage:
    fake.files["set/a.h5"] = LARGE
    return Storage("s3://bucket/set", PATIENT)


@pytest.mark.parametrize("name", ["a//b.jpg", "./a.jpg", "/a.jpg", "a/./b.jpg", "a./b..jpg", "a b/%2e/c.jpg"])
def test_every_key_of_a_bucket_is_a_name(remote: Storage, fake: FakeS3, name: str) -> None:
    """What is listed can be read, though it would be another path on a disk."""
    fake.files[f"set/{name}"] = LARGE
    assert set(remote.sizes()) == {"a.h5", name}
    assert remote.read(name, len(LARGE)) == LARGE
    assert remote.size(name) == len(LARGE)
    remote.write(name, b"1")
    assert fake.files[f"set/{name}"] == b"1" and len(fake.files) == 2
    remote.delete(name)
    assert remote.sizes() == {"a.h5": len(LARGE)}


FAULTS = ["500 InternalError", "503 SlowDown", "503 ", "429 TooManyRequests", "400 RequestTimeout", "cut", "reset"]


@pytest.mark.parametrize("fault", [*FAULTS, "stall", "short"])
@pytest.mark.parametrize("size", [len(LARGE), None])
def test_reading_is_repeated(remote: Storage, fake: FakeS3, fault: str, size: int | None) -> None:
    fake.faults.extend([fault, "ok", fault])
    assert remote.read("a.h5", size) == LARGE
    assert not fake.faults


@pytest.mark.parametrize("fault", [*FAULTS, "400 IncompleteBody"])
def test_writing_listing_and_deleting_are_repeated(remote: Storage, fake: FakeS3, fault: str) -> None:
    fake.faults.extend([fault, fault])
    assert remote.sizes() == {"a.h5": len(LARGE)}
    if fault != "cut":  # a PUT and a DELETE are answered without a body
        fake.faults.extend([fault, fault])
        remote.write("b", LARGE)
        assert fake.files["set/b"] == LARGE
        fake.faults.extend([fault, fault])
        remote.delete("b")
        assert "set/b" not in fake.files
    assert not fake.faults


@pytest.mark.parametrize(
    ("fault", "cause"),
    [("503 SlowDown", r"SlowDown \(HTTP 503\)"), ("stall", "no byte moved"), ("cut", "Error"), ("reset", "Error")],
)
def test_the_deadline_ends_everything(fake: FakeS3, fault: str, cause: str) -> None:
    """The cause is that of the last request; on a machine that stands still, it may be none but the deadline."""
    fake.files["set/a.h5"] = LARGE
    remote = Storage("s3://bucket/set", IMPATIENT)
    assert remote.exists("a.h5")  # connecting for the first time takes a while
    fake.always = fault
    calls: list[Callable[[], object]] = [lambda: remote.read("a.h5"), lambda: remote.read("a.h5", len(LARGE))]
    if fault in ("503 SlowDown", "reset"):
        calls += [lambda: remote.write("b", b"1"), remote.sizes, lambda: remote.size("a.h5")]
    message = rf"s3://bucket/set.*deadline_s = 1\.5 s; [1-9]\d* requests failed.*({cause}|not over by then)"
    started = time.monotonic()
    with ThreadPoolExecutor(len(calls)) as pool:
        for call in [pool.submit(call) for call in calls]:
            with pytest.raises(EnvironmentUnfitError, match=message):
                call.result()
    assert time.monotonic() - started < 6  # the deadline, and what a busy machine adds


def test_an_upload_that_stalls_is_given_up(remote: Storage, fake: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake does not answer while it reads nothing; buffers of the system take less than this body."""
    body, read = bytes(30_000_000), []

    def stalled(handler: object) -> None:
        read.append(1)
        time.sleep(4 if len(read) == 1 else 0)
        original(handler)

    original = fake.server.RequestHandlerClass.do_PUT
    monkeypatch.setattr(fake.server.RequestHandlerClass, "do_PUT", stalled)
    assert remote.exists("a.h5")  # connecting for the first time takes a while
    started = time.monotonic()
    remote.write("b", body)
    assert (len(read), fake.files["set/b"] == body) == (2, True)
    assert time.monotonic() - started < 3.5


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("403 AccessDenied", "access denied; the credentials in use lack the permission"),
        ("403 ", "access denied"),
        ("403 InvalidAccessKeyId", "does not accept the access key; check AWS_ACCESS_KEY_ID"),
        ("403 SignatureDoesNotMatch", "does not accept the access key"),
        ("400 ExpiredToken", "the credentials have expired"),
        ("403 RequestTimeTooSkewed", "the clocks of this machine and of the store differ too much"),
        ("404 NoSuchBucket", "there is no such bucket; create it"),
        ("400 AuthorizationHeaderMalformed", "another region"),
        ("507 XMinioStorageFull", "the store is full"),
        ("405 MethodNotAllowed", r"a message of the store \(MethodNotAllowed \(HTTP 405\)\)"),
    ],
)
def test_refusals_are_said_at_once(remote: Storage, fake: FakeS3, answer: str, message: str) -> None:
    fake.always = answer
    calls = [lambda: remote.read("a.h5"), lambda: remote.size("a.h5"), remote.sizes]
    for call in [*calls, lambda: remote.write("a.h5", b""), lambda: remote.delete("a.h5")]:
        fake.log.clear()
        with pytest.raises(EnvironmentUnfitError, match=f"s3://bucket/set/.*{message}") as error:
            call()
        assert len(fake.log) == 1
        assert SECRET not in str(error.value)


def test_no_credentials(remote: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(EnvironmentUnfitError, match="no credentials; set AWS_ACCESS_KEY_ID"):
        remote.read("a.h5")


def test_an_endpoint_that_never_answered_is_unreachable_soon(fake: FakeS3) -> None:
    fake.server.server_close()
    started = time.monotonic()
    with pytest.raises(EnvironmentUnfitError, match=rf"{fake.url}.*no connection.*check data\.storage\.endpoint_url"):
        Storage("s3://bucket/set", StorageConfig(deadline_s=60)).read("a.h5")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_which_endpoint(fake: FakeS3, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    fake.files["a"] = b"1"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert Storage("s3://bucket", StorageConfig(endpoint_url=fake.url)).read("a") == b"1"
    monkeypatch.setenv(variable, fake.url)
    assert Storage("s3://bucket").read("a") == b"1"
    monkeypatch.setenv(variable, f"http://key:{SECRET}@127.0.0.1:9")
    with pytest.raises(ConfigError, match="without credentials") as error:
        Storage("s3://bucket").read("a")
    assert SECRET not in str(error.value)


def test_a_large_file_is_read_in_ranges_at_a_time(fake: FakeS3) -> None:
    fake.files["a"] = LARGE
    fake.delay_s = 0.05
    remote = Storage("s3://bucket", StorageConfig(parallel_reads=3))
    assert remote.read("a", len(LARGE)) == LARGE
    assert sorted(fake.log) == [
        f"GET /bucket/a bytes={a}-{a + 29_999}" for a in sorted((0, 30_000, 60_000, 90_000), key=str)
    ]
    assert fake.most_at_once == 3


def test_files_of_several_threads_overlap_within_the_limit_of_the_process(fake: FakeS3) -> None:
    for k in range(8):
        fake.files[f"{k}"] = bytes([k]) * 1000
    fake.delay_s = 0.1
    config = StorageConfig(parallel_reads=4)
    folders = [Storage("s3://bucket", config), Storage("s3://bucket", config)]
    assert [folder.read("0", 1000) for folder in folders] == [bytes(1000)] * 2
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda k: folders[k % 2].read(f"{k}", 1000), range(8)))
    assert read == [bytes([k]) * 1000 for k in range(8)]
    assert fake.most_at_once == 4


def test_a_file_that_changes_while_it_is_read_is_not_mixed(fake: FakeS3) -> None:
    fake.files["a.h5"] = LARGE
    fake.faults.append("replaced")
    remote = Storage("s3://bucket", StorageConfig(parallel_reads=1))
    assert remote.read("a.h5", len(LARGE)) == LARGE[::-1]
    assert len(fake.log) == 8  # four ranges of two versions, four of the newer


def test_the_secret_is_nowhere(remote: Storage, fake: FakeS3, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fake.faults.extend(["503 SlowDown", "403 SignatureDoesNotMatch"])
    with pytest.raises(RaylgError) as error:
        remote.read("a.h5")
    for text in (str(error.value), repr(remote), remote.url, caplog.text, repr(vars(remote.config))):
        assert SECRET not in text
