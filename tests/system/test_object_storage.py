"""The whole road over a real S3 server, with real commands that are killed: prepare, check, search, continue."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray  # noqa: F401 - brings its own copy of psutil

from tests.system.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.system.s3_server import S3Server

import psutil  # isort: skip

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0
MINI = [
    "data.mini.num_train_scenes=2",
    "data.mini.num_val_scenes=1",
    "data.mini.num_test_scenes=1",
    "data.mini.views_per_scene=5",
    "data.mini.width=320",
    "data.mini.height=240",
    "data.images_per_shard=3",
]
SEARCH = [
    "data.num_keypoints=64",
    "evaluation.num_keypoints=64",
    "train.num_pairs=24",
    "train.report_every=8",
    "study.budget=2trials",
    "study.scheduler.grace_pairs=8",
]


@dataclass(frozen=True)
class Commands:
    """Starts commands in a folder of their own; whatever is left of them at the end is killed by its process id."""

    folder: Path
    started: list[subprocess.Popen[bytes]]

    def start(self, verb: str, *words: str) -> subprocess.Popen[bytes]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        process = subprocess.Popen(
            [sys.executable, "-m", f"raylg.{verb}", *words],
            env={
                **environment,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "TMPDIR": str(self.folder),
                "COLUMNS": "500",
            },
            cwd=self.folder,
            stdout=(self.folder / "out").open("wb"),
            stderr=subprocess.STDOUT,
        )
        self.started.append(process)
        return process

    def run(self, verb: str, *words: str, code: int = 0) -> str:
        """What a command printed, on one line."""
        process = self.start(verb, *words)
        found = process.wait(PATIENCE)
        printed = self.printed()
        assert found == code, printed
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in printed
        return printed

    def printed(self) -> str:
        return " ".join((self.folder / "out").read_text().split())

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """As by a power cut, for this command: it gets no chance to tidy up."""
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture
def commands() -> Iterator[Commands]:
    folder = Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp"))  # short: Ray puts sockets below it
    run = Commands(folder, [])
    yield run
    for process in run.started:
        if process.poll() is None:
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                child.kill()
            process.wait()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def proxy(s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3_server.endpoint) as started:
        monkeypatch.setenv("AWS_ENDPOINT_URL", started.url)
        yield started


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the same scenes on the local disk."""
    folder = tmp_path_factory.mktemp("prepared")
    words = ["data=mini", *MINI, f"data.cache_dir={folder / 'cache'}", f"out={folder / 'features'}"]
    done = subprocess.run(
        [sys.executable, "-m", "raylg.prepare", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder / "features"


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[bytes], what: str, commands: Commands) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        assert process.poll() is None, f"ended while waiting for {what}: {commands.printed()}"
        time.sleep(0.05)
    raise AssertionError(f"waited in vain for {what}: {commands.printed()}")


def test_prepare_into_a_bucket_is_continued_after_a_kill_and_checked(
    prepared: Path, s3_server: S3Server, bucket: str, proxy: FaultyProxy, commands: Commands
) -> None:
    url, cache = f"s3://{bucket}/sets/features", f"data.cache_dir={prepared.parent / 'cache'}"
    words = ["data=mini", *MINI, cache, f"out={url}"]

    def noted() -> set[str]:
        return {Path(key).stem for key in s3_server.keys(bucket) if ".progress/" in key and key.endswith(".json")}

    proxy.plan(Fault("delay", None, "PUT", ".h5", seconds=0.5))
    first = commands.start("prepare", *words)
    wait_for(lambda: len(noted()) >= 4, first, "four shards", commands)
    commands.kill(first)
    wait_for_silence(proxy)
    before, expected = noted(), json.loads((prepared / "manifest.json").read_text())
    assert len(before) < len(expected["shards"]) and "sets/features/manifest.json" not in s3_server.keys(bucket)

    unfinished = commands.run("prepare", "--check", url, code=3)
    assert "manifest.json" in unfinished and "repeat" in unfinished

    proxy.heal()
    printed = commands.run("prepare", *words)
    assert f"data.path={url}" in printed
    puts = [request.path for request in proxy.requests if request.method == "PUT"]
    again = {Path(path).stem for path in puts if path.endswith(".h5")}
    assert again == {Path(entry["file"]).stem for entry in expected["shards"]} - before  # the others were finished
    manifest = json.loads(s3_server.get(bucket, "sets/features/manifest.json"))
    assert manifest["shards"] == expected["shards"]  # byte for byte what the disk holds
    assert manifest["splits"] == expected["splits"]
    assert {key.rpartition("/")[2] for key in s3_server.keys(bucket)} == {path.name for path in prepared.iterdir()}

    proxy.heal()
    commands.run("prepare", *words)  # nothing is left to do
    assert proxy.count("PUT", ".h5") == 0

    num_pairs = sum(entry["num_pairs"] for entry in expected["shards"])
    assert f"{len(expected['shards'])} shards with {num_pairs} pairs" in commands.run("prepare", "--check", url)

    changed, gone = expected["shards"][0], expected["shards"][2]
    key = f"sets/features/{changed['file']}"
    s3_server.put(bucket, key, s3_server.get(bucket, key)[:-1] + b"\xff")
    s3_server.client().delete_object(Bucket=bucket, Key=f"sets/features/{gone['file']}")
    printed = commands.run("prepare", "--check", url, code=3)
    assert changed["file"] in printed and gone["file"] in printed
    assert not any(entry["file"] in printed for entry in expected["shards"] if entry not in (changed, gone))
    assert f"touch {changed['num_pairs'] + gone['num_pairs']} of {num_pairs} pairs" in printed
    assert "Traceback" not in printed


def test_of_two_commands_into_the_same_place_the_later_one_finishes(
    prepared: Path, s3_server: S3Server, bucket: str, proxy: FaultyProxy, commands: Commands
) -> None:
    url, cache = f"s3://{bucket}/features", f"data.cache_dir={prepared.parent / 'cache'}"
    words = ["data=mini", *MINI, cache, f"out={url}"]
    other = Commands(commands.folder / "other", commands.started)
    other.folder.mkdir()
    proxy.plan(Fault("delay", None, "PUT", ".h5", seconds=1))
    first = commands.start("prepare", *words)
    wait_for(lambda: any("/.progress/" in key for key in s3_server.keys(bucket)), first, "its beginning", commands)
    assert f"data.path={url}" in other.run("prepare", *words)
    assert first.wait(PATIENCE) == 3
    assert "another command has begun to prepare data there" in commands.printed()
    expected = json.loads((prepared / "manifest.json").read_text())
    assert json.loads(s3_server.get(bucket, "features/manifest.json"))["shards"] == expected["shards"]
    proxy.heal()
    commands.run("prepare", *words)  # clears what the first one left
    assert {key.rpartition("/")[2] for key in s3_server.keys(bucket)} == {path.name for path in prepared.iterdir()}
    assert "all there and as written" in commands.run("prepare", "--check", url)


def wait_for_silence(proxy: FaultyProxy) -> None:
    """Until processes of a killed command have noticed that and have ended."""
    deadline, last = time.monotonic() + PATIENCE, -1
    while time.monotonic() < deadline and last != proxy.count():
        last = proxy.count()
        time.sleep(1)


@pytest.mark.ray
def test_a_search_over_a_bucket_is_continued_after_a_kill(
    prepared: Path, s3_server: S3Server, bucket: str, proxy: FaultyProxy, commands: Commands
) -> None:
    for path in prepared.iterdir():
        s3_server.put(bucket, f"sets/features/{path.name}", path.read_bytes())
    url, cache = f"s3://{bucket}/sets/features", commands.folder / "cache"
    words = ["--space", "smoke", "data=shards", f"data.path={url}", *SEARCH, f"data.cache_dir={cache}"]
    study = commands.folder / "studies" / "smoke"

    def finished() -> list[Path]:
        return [path for path in study.glob("trials/*/metrics.jsonl") if '"pairs_seen": 24' in path.read_text()]

    first = commands.start("tune", *words)
    wait_for(finished, first, "a finished trial", commands)
    commands.kill(first)
    before = {path: path.read_bytes() for path in finished()}
    manifest = json.loads((prepared / "manifest.json").read_text())
    kept = len(list((cache / "shards").glob("*.h5")))
    assert kept > 0
    assert proxy.count("GET", ".h5") <= len(manifest["shards"])  # ranks and trials share what one has read

    proxy.heal()
    printed = commands.run("tune", *words)
    assert sorted(path.name for path in (study / "trials").iterdir()) == ["0000", "0001"]
    assert {path: path.read_bytes() for path in before} == before  # what was finished was not repeated
    assert proxy.count("GET", ".h5") <= len(manifest["shards"]) - kept  # what was kept is not read again
    assert "best: trial" in printed and (study / "best.yaml").is_file()
    assert len(list((cache / "shards").glob("*.h5"))) == len(manifest["shards"])

    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    written = [path for path in commands.folder.rglob("*") if path.is_file()]
    assert study / "best.yaml" in written
    assert not [path for path in written if secret in path.read_bytes()]
    assert not [key for key in s3_server.keys(bucket) if secret in s3_server.get(bucket, key)]


@pytest.mark.parametrize("verb", ["prepare", "tune", "check"])
def test_a_mistake_is_answered_at_once(bucket: str, commands: Commands, verb: str) -> None:
    url = "s3://no-such-bucket-here/features"
    words = {
        "prepare": ["prepare", "data=mini", *MINI, f"out={url}"],
        "tune": ["tune", "--space", "smoke", "data=shards", f"data.path={url}"],
        "check": ["prepare", "--check", url],
    }[verb]
    printed = commands.run(*words, code=3)
    assert "no-such-bucket-here" in printed and "Traceback" not in printed
