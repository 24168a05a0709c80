"""Worker processes: what they are set up to, and that they end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from raylg.errors import ConfigError, EnvironmentUnfitError
from raylg.processes import apart, prepare_worker


def state() -> tuple[int, bool]:
    return torch.get_num_threads(), signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_one_thread_and_deaf_to_the_keyboard() -> None:
    with ProcessPoolExecutor(1, get_context("spawn"), prepare_worker) as pool:
        assert pool.submit(state).result() == (1, True)


PROGRAM = """
    import multiprocessing, os, sys, time
    from raylg.processes import prepare_worker

    def work():
        prepare_worker()
        print(os.getpid(), flush=True)
        time.sleep(600)

    if __name__ == "__main__":
        multiprocessing.get_context("spawn").Process(target=work).start()
"""


def test_no_life_after_the_parent(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PROGRAM))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        status = Path(f"/proc/{int(parent.stdout.readline())}/status")
        assert status.exists()
        parent.kill()
    end = time.monotonic() + 10
    while status.exists() and "\nState:\tZ" not in status.read_text():
        assert time.monotonic() < end, "lives on"
        time.sleep(0.05)


def where(number: int) -> tuple[int, int]:
    return number, os.getpid()


def refuse(reason: str) -> None:
    raise ConfigError(reason)


def die(signum: int) -> None:
    os.kill(os.getpid(), signum)


def test_a_process_of_its_own() -> None:
    number, process = apart(where, 3)
    assert number == 3 and process != os.getpid()
    assert not Path(f"/proc/{process}").exists()


def test_errors_of_another_process_arrive() -> None:
    with pytest.raises(ConfigError, match="not that way"):
        apart(refuse, "not that way")


def test_a_killed_process_is_said_to_be() -> None:
    with pytest.raises(EnvironmentUnfitError, match="die: its process was killed, most likely for lack of memory"):
        apart(die, signal.SIGKILL)
