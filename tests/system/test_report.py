"""The report in a real browser: nothing is asked for, nothing is complained of, nothing sticks out of a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from raylg.reporting.study_page import write_report
from raylg.search.stored import read_study
from tests.simulated_study import confirm, simulate

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
FLAGS += ["--disable-sync", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--enable-logging=stderr"]
WIDTHS = (1280, 390)
FRAME = """<iframe src="study.html" style="width: {width}px; height: 2000px; border: 0" onload="
const inside = this.contentDocument;
console.log('measured', inside.documentElement.scrollWidth, inside.querySelectorAll('svg.figure').length)"></iframe>
"""
"""Windows of Chromium are at least 500 px wide while a page loads; a frame is not."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = simulate(tmp_path_factory.mktemp("studies"))
    numbers = [record.number for record in read_study(study).ranked if record.state == "complete" and record.number]
    confirm(study, tuple(numbers[:3]))
    return write_report(study).page


def browse(page: Path, folder: Path, width: int) -> tuple[str, set[str], np.ndarray]:
    """Open a page in headless Chromium.

    Returns:
        What its console says, the addresses that it asks for, and a picture of it, float [H, W, 4].
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no browser: chromium is not installed")
    picture, log = folder / "page.png", folder / "net.json"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(page.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    origin = f"http://127.0.0.1:{server.server_port}"
    options = [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},2400", f"--screenshot={picture}"]
    command = [browser, *FLAGS, *options, f"--log-net-log={log}", f"{origin}/{page.name}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    finally:
        server.shutdown()
        server.server_close()
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    requests = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    asked = {each["url"] for each in requests if each.get("initiator") == origin}  # not what the browser itself wants
    return console, asked, matplotlib.image.imread(picture)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_page_opens_without_complaint_or_request(page: Path, tmp_path: Path, width: int) -> None:
    console, asked, pixels = browse(page, tmp_path, width)
    assert (console, asked) == ("", set())
    assert pixels.shape[1] == width
    assert len({tuple(pixel) for pixel in pixels[::40, ::20, :3].reshape(-1, 3).tolist()}) > 5


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_page_is_no_wider_than_the_window(page: Path, tmp_path: Path, width: int) -> None:
    shutil.copy(page, tmp_path / "study.html")
    (tmp_path / "frame.html").write_text(FRAME.format(width=width))
    console, asked, _ = browse(tmp_path / "frame.html", tmp_path, 1400)
    needed, num_figures = map(int, re.search(r"measured (\d+) (\d+)", console).groups())
    assert needed == width
    assert num_figures == page.read_text().count("<svg ") >= 10
    assert "study.html" in {url.rpartition("/")[2] for url in asked}  # so the other test would see a request
