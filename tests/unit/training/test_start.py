import hashlib
import json
import subprocess
import sys

import pytest

from raylg.errors import ConfigError
from raylg.schema import override, to_mapping
from raylg.training import run_directory
from raylg.training.config import RunConfig
from raylg.training.start import check_start, start_file, start_hash


@pytest.fixture
def run(tmp_path):
    """A run directory with two checkpoints."""
    for pairs in (10, 20):
        checkpoint = tmp_path / "run" / "checkpoints" / run_directory.name(pairs)
        checkpoint.mkdir(parents=True)
        (checkpoint / "lightglue.pth").write_bytes(b"weights after %d pairs" % pairs)
        (checkpoint / "config.json").write_text(json.dumps(to_mapping(RunConfig())))
    return tmp_path / "run"


def starting(path, option="train.init_from", **changes):
    return override(RunConfig(), {option: str(path), **{key.replace("__", "."): v for key, v in changes.items()}})


def test_weights_are_found(run):
    last = run / "checkpoints" / run_directory.name(20) / "lightglue.pth"
    first = run / "checkpoints" / run_directory.name(10)
    assert start_file(RunConfig()) is None and start_hash(RunConfig()) is None
    assert start_file(starting(run)) == last
    assert start_file(starting(first)) == first / "lightglue.pth"
    assert start_file(starting(last, "model.matcher.weights")) == last
    assert start_hash(starting(run)) == hashlib.sha256(b"weights after 20 pairs").hexdigest()


@pytest.mark.parametrize(
    ("option", "there", "message"),
    [
        ("train.init_from", "nowhere", r"train\.init_from = .*nowhere': no such file or folder"),
        ("model.matcher.weights", "nowhere.pth", r"model\.matcher\.weights = .*nowhere\.pth': no such file or folder"),
        ("model.matcher.weights", "run", r"model\.matcher\.weights = .*: a folder; .*train\.init_from"),
        ("train.init_from", "", r"train\.init_from: .*no checkpoint in it"),
    ],
)
def test_weights_that_are_not_there(run, option, there, message):
    with pytest.raises(ConfigError, match=message):
        check_start(starting(run.parent / there, option))


def test_architecture_is_compared_before_anything_is_loaded(run, tmp_path):
    check_start(starting(run))
    check_start(starting(run, optim__lr=1.0, model__matcher__filter_threshold=0.5, model__matcher__init="identity"))
    with pytest.raises(ConfigError) as caught:
        check_start(starting(run, model__matcher__num_layers=3, model__extractor__name="superpoint"))
    name, layers = str(caught.value).splitlines()
    assert name.endswith("its matcher has model.extractor.name = sift, the run superpoint")
    assert layers.endswith(
        "its matcher has model.matcher.num_layers = 9, the run 3; set model.extractor.name=sift "
        "model.matcher.num_layers=9, or start from other weights"
    )
    for content in ("[]", "no JSON", None):  # beside weights of others
        (tmp_path / "bare.pth").touch()
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        check_start(starting(tmp_path / "bare.pth", "model.matcher.weights", model__matcher__num_layers=3))


def test_weights_may_have_one_origin_only():
    with pytest.raises(ConfigError, match=r"train\.init_from = 'a' and model\.matcher\.weights = 'b': both"):
        override(RunConfig(), {"train.init_from": "a", "model.matcher.weights": "b"})


def test_module_is_free_of_torch():
    code = "import sys, raylg.training.start; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
