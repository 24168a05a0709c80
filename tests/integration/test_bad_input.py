"""Bad input gets one clear error at once: exit code 2, nothing started, nothing written, no torch and no Ray loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raylg import evaluate, prepare, train, tune
from raylg.__main__ import main as raylg
from raylg.models.published import SUPERPOINT_WEIGHTS

REPOSITORY = Path(__file__).resolve().parents[2]
SPACE = ["--space", "gt_thresholds"]
HANGS = 20.0
"""Seconds; an answer takes about one, on a machine that does nothing else."""


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory and empty caches, so that no feature that is already there hides a mistake."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Runs a command that must be refused; returns the lines of its errors."""

    def run(main: Callable[[list[str]], int], *words: str) -> list[str]:
        before = sorted(tmp_path.rglob("*"))
        assert main(list(words)) == 2
        printed, told = capsys.readouterr()
        assert printed == ""
        assert sorted(tmp_path.rglob("*")) == before
        lines = told.splitlines()
        assert lines and all(line.startswith("error: ") for line in lines)
        return [line.removeprefix("error: ") for line in lines]

    return run


Refused = Callable[..., list[str]]


def space_file(text: str) -> str:
    path = Path("mine.yaml")
    path.write_text("parameters:\n  optim.lr: " + text + "\n")
    return str(path)


def workspace_without_depth() -> Path:
    """The text files of a sparse model and an empty folder of images."""
    root = Path("scan")
    (root / "sparse").mkdir(parents=True)
    (root / "images").mkdir()
    (root / "sparse/cameras.txt").write_text("1 PINHOLE 64 48 60 60 32 24\n")
    for name in ("images", "points3D"):
        (root / f"sparse/{name}.txt").write_text("")
    return root


def damaged_weights(tmp_path: Path) -> Path:
    """A file under the name that a download of `open` is kept under."""
    path = tmp_path / "cache/raylg/weights" / SUPERPOINT_WEIGHTS["open"].url.rsplit("/", 1)[-1]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a download")
    return path


def test_unknown_space(refused: Refused) -> None:
    (line,) = refused(tune.main, "--space", "lr_sb")
    assert line.startswith("--space lr_sb: no such search space") and line.endswith("did you mean 'lr_bs'?")


@pytest.mark.parametrize("main", [tune.main, train.main, prepare.main], ids=["tune", "train", "prepare"])
def test_misspelt_keys_and_wrong_types_all_at_once(main: Callable[[list[str]], int], refused: Refused) -> None:
    space = SPACE if main is tune.main else []
    lines = refused(main, *space, "optim.rl=1", "data.batch_size=many", "trian.num_pairs=3")
    assert len(lines) == 3
    assert any(line.startswith("optim.rl: unknown key") and line.endswith("did you mean 'lr'?") for line in lines)
    assert any(line.startswith("trian: unknown key") and line.endswith("did you mean 'train'?") for line in lines)
    assert "data.batch_size = 'many': expected int, got str" in lines


def test_low_not_below_high(refused: Refused) -> None:
    for low, high in (("1e-3", "1e-5"), ("1e-3", "1e-3")):
        (line,) = refused(tune.main, "--space", space_file(f"{{type: float, low: {low}, high: {high}}}"))
        assert line.startswith("search space mine: optim.lr: low = 0.001 must be below high = ")


def test_log_range_from_zero(refused: Refused) -> None:
    (line,) = refused(tune.main, "--space", space_file("{type: float, low: 0.0, high: 1e-3, log: true}"))
    assert line.startswith("search space mine: optim.lr: low = 0.0: must be above 0 for log: true")


def test_several_mistakes_of_a_space_at_once(refused: Refused) -> None:
    lines = refused(
        tune.main, "--space", space_file("{type: float, low: 1, high: 0}\n  data.batchsize: {type: choice}\nbase: 3")
    )
    for part in ("optim.lr: low = 1 must be below high = 0", "data.batchsize: values = None", "unknown key 'base'"):
        assert any(part in line for line in lines), part


@pytest.mark.parametrize("word", ["optim.lr=1e-4", "+optim.lr=1e-4"])
def test_searched_key_fixed_on_the_command_line(word: str, refused: Refused) -> None:
    (line,) = refused(tune.main, "--space", "lr_bs", word)
    assert "optim.lr is searched over 2e-05..0.003 log and also fixed on the command line to 0.0001" in line


@pytest.mark.parametrize("main", [tune.main, train.main, prepare.main], ids=["tune", "train", "prepare"])
@pytest.mark.parametrize("source", ["colmap", "shards"])
def test_missing_data_folder(main: Callable[[list[str]], int], source: str, refused: Refused) -> None:
    space = SPACE if main is tune.main else []
    (line,) = refused(main, *space, f"data={source}", "data.path=nowhere")
    assert line.startswith("data.path: nowhere ")
    (line,) = refused(main, *space, f"data={source}")
    assert line == f"data.path = []: must be given for data.source={source}: data.path=FOLDER"


@pytest.mark.parametrize("main", [tune.main, prepare.main], ids=["tune", "prepare"])
def test_workspace_without_depth(main: Callable[[list[str]], int], refused: Refused) -> None:
    root = workspace_without_depth().resolve()
    (line,) = refused(main, *(SPACE if main is tune.main else []), "data=colmap", f"data.path={root}")
    assert line.startswith(f"{root}: no depth map of any image")
    assert f"colmap patch_match_stereo --workspace_path {root}" in line


def test_manifest_of_another_format(refused: Refused) -> None:
    Path("shards").mkdir()
    Path("shards/manifest.json").write_text(json.dumps({"format": 7}))
    (line,) = refused(tune.main, *SPACE, "data=shards", "data.path=shards")
    assert line == "data.path: shards/manifest.json: shards of format 7, but this version reads format 1"


def test_weights_with_a_wrong_hash(tmp_path: Path, refused: Refused) -> None:
    path = damaged_weights(tmp_path)
    (line,) = refused(tune.main, *SPACE, "model/extractor=superpoint", "model.extractor.weights=open")
    assert line.startswith(f"{path}: git blob ")
    assert f"is not the published {SUPERPOINT_WEIGHTS['open'].git_blob}; delete the file" in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model/extractor=superpoint"], "model.extractor.weights = null: superpoint needs weights"),
        (["model/extractor=superpoint", "model.extractor.weights=opne"], "did you mean 'open'?"),
        (["model.matcher.weights=nowhere.pth"], "model.matcher.weights = 'nowhere.pth': no such file"),
        (["train.init_from=runs/none"], "train.init_from = 'runs/none': no such file or folder"),
        (["train.init_from=."], "train.init_from: .: no checkpoint in it"),
        (["train.init_from=a", "model.matcher.weights=b"], "both give the weights to start from; keep one"),
    ],
)
def test_missing_weights(words: list[str], expected: str, refused: Refused) -> None:
    (line,) = refused(tune.main, *SPACE, *words)
    assert expected in line


@pytest.mark.parametrize("main", [tune.main, train.main], ids=["tune", "train"])
def test_weights_of_another_architecture(main: Callable[[list[str]], int], refused: Refused) -> None:
    """Before anything is extracted or loaded, from the configuration beside them."""
    checkpoint = Path("run/checkpoints/pairs-000000000064")
    checkpoint.mkdir(parents=True)
    (checkpoint / "lightglue.pth").touch()
    stored = {"model": {"extractor": {"name": "superpoint"}, "matcher": {"num_layers": 9, "num_heads": 4}}}
    (checkpoint / "config.json").write_text(json.dumps(stored))
    words = ["train.init_from=run", "model.matcher.num_layers=3", "model.matcher.num_heads=4"]
    name, layers = refused(main, *(SPACE if main is tune.main else []), *words)
    assert name == f"{checkpoint}/lightglue.pth: its matcher has model.extractor.name = superpoint, the run sift"
    assert "model.matcher.num_layers = 9, the run 3; set model.extractor.name=superpoint" in layers


def test_names_of_scenes_that_are_numbers(refused: Refused) -> None:
    (line,) = refused(prepare.main, "data=megadepth", "data.path=here", "data.split.val=[0016,5006]")
    assert line == "data.split.val[1] = 5006: expected str, got int; quote it: '5006'"


def test_original_pixels_of_drawn_views(refused: Refused) -> None:
    words = ["data=images", "data.path=photographs", "evaluation.pixels=original"]
    (line,) = refused(tune.main, *SPACE, *words)
    assert line.startswith("evaluation.pixels = 'original': views of photographs are drawn at the size")


def test_check_and_prepare_at_once(refused: Refused) -> None:
    (line,) = refused(prepare.main, "--check", "shards", "out=there", "data.path=here")
    assert line.startswith("--check shards and data.path=, out=: --check verifies the shards in its own folder")


def test_check_of_no_data_set(refused: Refused) -> None:
    Path("empty").mkdir()
    (line,) = refused(prepare.main, "--check", "empty")
    assert line.startswith("empty holds no manifest.json")
    (line,) = refused(prepare.main, "--check", "nowhere")
    assert line.startswith("nowhere does not exist")


def test_more_workers_than_the_machine_has(refused: Refused) -> None:
    words = ["scale.num_workers=4096", "data.batch_size=4096", "scale.gpus_per_worker=0"]
    (line,) = refused(tune.main, *SPACE, *words)
    assert line.startswith("scale.num_workers = 4096 with scale.cpus_per_worker = 1 needs 4096 CPU cores, this machine")
    assert refused(train.main, *words) == [line]
    clash, same = refused(tune.main, "--space", "lr_bs", *words)  # both at once
    assert "data.batch_size is searched over" in clash and same == line
    (line,) = refused(tune.main, *SPACE, "scale.num_workers=4096")
    assert "data.batch_size = 32: must be a multiple of scale.num_workers = 4096" in line


def test_objective_that_nothing_gives(refused: Refused) -> None:
    Path("photographs").mkdir()
    images = ["data=images", "data.path=photographs"]
    (line,) = refused(tune.main, "--space", "lr_bs", *images, "study.objective=val/auc@5")
    assert line.startswith("study.objective = 'val/auc@5': the pairs of data.source=images are scored by homography")
    (line,) = refused(tune.main, *SPACE, "study.objective=val/corner_auc@3")
    assert "data.source=mini are scored by pose; choose one of val/auc@5" in line
    (line,) = refused(tune.main, *SPACE, "study.objective=megadepth1500/auc@5")
    assert line == "benchmarks.megadepth1500.path = null: give the folder of the benchmark megadepth1500"
    configured = "benchmarks.megadepth1500.path=nowhere"  # then it is the objective
    assert "benchmarks.megadepth1500.path: nowhere is missing" in refused(tune.main, *SPACE, configured)[0]
    (line,) = refused(tune.main, *SPACE, "study.objective=hpatches/auc@5")
    assert line.startswith("study.objective = 'hpatches/auc@5': must be null or one of val/auc@5")


@pytest.mark.parametrize("main", [tune.main, train.main], ids=["tune", "train"])
def test_benchmark_of_evaluate_given_to_another_command(main: Callable[[list[str]], int], refused: Refused) -> None:
    (line,) = refused(main, *(SPACE if main is tune.main else []), "benchmark=megadepth1500")
    assert line.startswith("benchmark = 'megadepth1500': ") and "evaluation.benchmarks=[megadepth1500]" in line


def test_evaluate(tmp_path: Path, refused: Refused) -> None:
    assert refused(evaluate.main) == ["no checkpoint given: give one checkpoint, run or .pth file"]
    assert refused(evaluate.main, "a", "b") == ["a b: give one checkpoint, run or .pth file"]
    assert refused(evaluate.main, "nowhere") == ["nowhere: no such checkpoint, run directory or weights file"]
    assert "no checkpoint in it" in refused(evaluate.main, str(tmp_path / "here"))[0]
    Path("lightglue.pth").write_bytes(b"")
    assert "did you mean 'lr'?" in refused(evaluate.main, "lightglue.pth", "optim.rl=3")[0]
    (line,) = refused(evaluate.main, "lightglue.pth", "data=shards", "data.path=nowhere")
    assert line.startswith("data.path: nowhere does not exist")
    benchmark = ("benchmark=megadepth1500", "benchmarks.megadepth1500.path=nowhere")
    assert "nowhere is missing; expected is" in refused(evaluate.main, "lightglue.pth", *benchmark)[0]
    (line,) = refused(evaluate.main, "lightglue.pth", *benchmark, "--split", "val")
    assert line == "--split val and benchmark=megadepth1500: give one of them"


@pytest.mark.parametrize(
    "words", [[], ["--space"], ["--space", "lr_bs", "--bogus"], ["--space", "lr_bs", "--config"]], ids=" ".join
)
def test_wrong_flags(words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        tune.main(words)
    assert stop.value.code == 2
    assert "usage: python -m raylg.tune" in (told := capsys.readouterr().err) and "error: " in told
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("verb", ["prepare", "tune", "train", "evaluate"])
def test_help_of_each_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        raylg([verb, "--help"])
    assert stop.value.code == 0
    printed, told = capsys.readouterr()
    assert printed.startswith(f"usage: python -m raylg.{verb} ") and told == ""
    assert "key=value sets a field" in printed and "--config-dir" in printed


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]], ids=" ".join)
def test_help_lists_the_verbs(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert raylg(words) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {verb} " in printed for verb in ("prepare", "tune", "train", "evaluate"))


def test_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert raylg(["nonsense", "optim.lr=3"]) == 2
    printed, told = capsys.readouterr()
    assert printed == "" and told.startswith("error: raylg nonsense: no such verb\n")


def test_verb_passes_words_and_exit_code_on(refused: Refused) -> None:
    assert "did you mean 'lr'?" in refused(raylg, "train", "optim.rl=3")[0]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python as a user starts it."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=HANGS, check=False)


@pytest.fixture
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


@pytest.mark.usefixtures("_importable")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["raylg.tune", "--space", "lr_sb"], "did you mean 'lr_bs'?"),
        (["raylg", "tune", "--space", "lr_bs", "optim.rl=1"], "did you mean 'lr'?"),
    ],
    ids=["module", "verb"],
)
def test_as_a_user_does(arguments: list[str], expected: str) -> None:
    done = run("-m", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert expected in done.stderr
    assert list(Path().iterdir()) == []


@pytest.mark.usefixtures("_importable")
def test_answers_without_torch_and_ray(tmp_path: Path) -> None:
    """One process after another would take long: all of them in one that has loaded nothing before."""
    damaged_weights(tmp_path)
    root = workspace_without_depth()
    Path("lightglue.pth").write_bytes(b"")
    tune_words = [
        ["--space", "lr_sb"],
        ["--space", "lr_bs", "optim.lr=1e-4"],
        [*SPACE, "optim.rl=1"],
        [*SPACE, "data=colmap", f"data.path={root}"],
        [*SPACE, "data=shards", "data.path=nowhere"],
        [*SPACE, "model/extractor=superpoint", "model.extractor.weights=open"],
        [*SPACE, "scale.num_workers=4096", "data.batch_size=4096"],
        [*SPACE, "study.objective=megadepth1500/auc@5", "benchmarks.megadepth1500.path=nowhere"],
    ]
    commands = [("tune", words) for words in tune_words]
    commands.append(("train", ["data=shards", "data.path=nowhere"]))
    commands.append(("prepare", ["data=colmap", "data.path=nowhere"]))
    commands.append(("evaluate", ["lightglue.pth", "data=shards", "data.path=nowhere"]))
    script = f"""
import importlib, sys
for verb, words in {commands!r}:
    code = importlib.import_module("raylg." + verb).main(words)
    print(verb, code, *sorted({{"torch", "ray"}} & set(sys.modules)))
"""
    done = run("-c", script)
    assert done.stdout.splitlines() == [f"{verb} 2" for verb, _ in commands], done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("12", "study.budget = 12: expected text"),
        ("12x", "budget = '12x': expected a number with s, min, h, d, gpuh or trials"),
        ("[12h,30min]", "limits seconds twice; keep one"),
        ("1.5trials", "expected a whole number of trials, above 0"),
        ("0h", "expected above 0"),
        ("[]", "budget = []: expected a number"),
    ],
)
@pytest.mark.parametrize("plan", [[], ["--plan"]], ids=["search", "plan"])
def test_budgets(budget: str, expected: str, plan: list[str], refused: Refused) -> None:
    (line,) = refused(tune.main, *SPACE, *plan, f"study.budget={budget}")
    assert expected in line


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("val/loss", "study.objective = 'val/loss': must be null or one of val/auc@5"),
        ("val/corner_auc@3", "the pairs of data.source=mini are scored by pose; choose one of val/auc@5"),
        ("megadepth1500/auc@5", "benchmarks.megadepth1500.path = null: give the folder of the benchmark"),
    ],
)
def test_objectives(objective: str, expected: str, refused: Refused) -> None:
    (line,) = refused(tune.main, *SPACE, f"study.objective={objective}")
    assert expected in line


def test_a_parameter_that_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Decay never begins without a decay, so that its start cannot matter; said before anything is rendered."""
    text = "{type: float, low: 1e-5, high: 1e-3, log: true}\n  optim.decay_start: {type: float, low: 0, high: 1}"
    path = space_file(text)
    assert tune.main(["--space", path, "optim.decay=none"]) == 2
    printed, told = capsys.readouterr()
    assert printed == ""
    assert told.startswith("error: search space mine: optim.decay_start: 0.0 and 1.0 give the same result, bit for bit")
    assert not list(tmp_path.rglob("*.h5")) and not Path("studies").exists()


def test_plan_of_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is rendered and no study is made; the last line is the command that starts it."""
    small = ["data.num_keypoints=64", "evaluation.num_keypoints=64", "study.budget=3trials"]
    words = ["--space", "smoke", "--plan", *small]
    assert tune.main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("plan of studies/smoke: nothing was started") for line in printed)
    assert printed[-1] == "next: python -m raylg.tune " + " ".join(word for word in words if word != "--plan")
    assert not list(tmp_path.rglob("*.h5")) and not Path("studies").exists()


def test_starting_over_where_there_is_no_study(capsys: pytest.CaptureFixture[str]) -> None:
    """What is no study is neither renamed nor written into, and nothing is rendered before that is said."""
    other = Path("studies/smoke/thesis.txt")
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    assert tune.main(["--space", "smoke", "--fresh"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: studies/smoke: is no study and stays where it is")
    assert [path for path in Path.cwd().rglob("*") if path.is_file()] == [other.resolve()]
