"""From words and YAML files to the configuration of a command, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from raylg import config
from raylg.errors import ConfigError
from raylg.schema import to_mapping
from raylg.search.space import SearchSpace
from raylg.training.config import RunConfig

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs"
CHOICES = sorted(
    str(path.relative_to(CONFIGS).with_suffix(""))
    for path in CONFIGS.rglob("*/*.yaml")
    if path.relative_to(CONFIGS).parts[0] != "cluster"
)
SPACES = sorted(path.stem for path in (REPOSITORY / "search_spaces").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the source tree is found unless a test makes it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def problems(words: list[str], file: str | None = None, folder: str | None = None) -> list[str]:
    """Lines of the one error that `words` get."""
    with pytest.raises(ConfigError) as caught:
        config.load(words, file, folder)
    return str(caught.value).splitlines()


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_defaults_are_the_small_road() -> None:
    loaded = config.load([])
    assert (loaded.data.source, loaded.model.extractor.name, loaded.model.matcher.init) == ("mini", "sift", "identity")
    assert loaded.train.num_pairs == yaml.safe_load((CONFIGS / "train/quick.yaml").read_text())["num_pairs"]
    assert list(loaded.study.budget) == yaml.safe_load((CONFIGS / "study/default.yaml").read_text())["budget"]
    assert loaded.seed == 0 and loaded.out is None
    assert type(loaded.run) is RunConfig
    assert loaded.run.train is loaded.train


@pytest.mark.parametrize("choice", CHOICES)
def test_every_shipped_file_composes_and_is_in_effect(choice: str, tmp_path: Path) -> None:
    group, _, name = choice.rpartition("/")
    needs = {f"data/{source}": f"data.path={tmp_path}" for source in ("colmap", "images", "megadepth", "shards")}
    needs["evaluation/full"] = "model/extractor=superpoint"  # of which more keypoints are kept
    words = [f"{group}={name}", *([needs[choice]] if choice in needs else [])]
    loaded = to_mapping(config.load(words))
    content = yaml.safe_load((CONFIGS / f"{choice}.yaml").read_text())
    content.pop("defaults", None)
    place = [] if group == "experiment" else group.split("/")
    for key in place:
        loaded = loaded[key]
    assert_laid_over(content, loaded)


def assert_laid_over(wanted: dict, found: dict) -> None:
    for key, value in wanted.items():
        if isinstance(value, dict):
            assert_laid_over(value, found[key])
        else:
            assert found[key] == value, key


def test_all_kinds_of_files_are_tried_above() -> None:
    assert {choice.rpartition("/")[0] for choice in CHOICES} >= {
        "data",
        "evaluation",
        "experiment",
        "model/extractor",
        "model/matcher",
        "study",
        "train",
    }


def test_experiment_changes_other_groups_and_words_come_last() -> None:
    loaded = config.load(["experiment=posed", "train.num_pairs=7", "study.budget=2trials"])
    assert (loaded.model.extractor.name, loaded.model.matcher.num_layers) == ("superpoint", 9)
    assert (loaded.train.num_pairs, loaded.study.limits.trials, loaded.train.precision) == (7, 2, "bfloat16")


def test_values_keep_their_types() -> None:
    loaded = config.load(
        [
            "optim.lr=2e-4",
            "optim.ema_pairs=3",
            "optim.clip_grad_norm=null",
            "train.checkpointed=true",
            "data.split.val=[a,b]",
            "data.split.test=c",
            "data.cache_dir=/some where/else",
            "study.name=007x",
        ]
    )
    assert loaded.optim.lr == 2e-4
    assert loaded.optim.ema_pairs == 3.0 and isinstance(loaded.optim.ema_pairs, float)
    assert loaded.optim.clip_grad_norm is None
    assert loaded.train.checkpointed is True
    assert loaded.data.split.val == ("a", "b") and loaded.data.split.test == ("c",)
    assert loaded.data.cache_dir == "/some where/else"
    assert loaded.study.name == "007x"


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_hydra_s_plus_signs_change_nothing(plus: str) -> None:
    assert config.load([f"{plus}optim.lr=0.5"]).optim.lr == 0.5
    assert config.load([f"{plus}train.num_pairs=5"]).train.num_pairs == 5


def test_one_path_or_several() -> None:
    assert config.load(["data=colmap", "data.path=scans"]).data.path == ("scans",)
    assert config.load(["data=colmap", "data.path=[a,b/c]"]).data.path == ("a", "b/c")


def test_all_mistakes_are_told_at_once_with_the_nearest_names() -> None:
    lines = problems(["optim.rl=1", "data.bach_size=3", "optm.lr=1", "seed=x", "train.checkpointed=1"])
    assert len(lines) == 5
    for start, end in (
        ("optim.rl: unknown key", "did you mean 'lr'?"),
        ("data.bach_size: unknown key", "did you mean 'batch_size'?"),
        ("optm: unknown key", "did you mean 'optim'?"),
        ("seed = 'x'", "expected int, got str"),
        ("train.checkpointed = 1", "expected bool, got int"),
    ):
        assert any(line.startswith(start) and line.endswith(end) for line in lines), start


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["optim.lr=fast"], "optim.lr = 'fast': expected float, got str"),
        (["optim.lr="], "optim.lr = '': expected float, got str"),
        (["data.batch_size=1.5"], "data.batch_size = 1.5: expected int, got float"),
        (["model.matcher=null"], "model.matcher = None: expected a group of keys"),
        (["optim.name=adm"], "did you mean 'adam'"),
        (["data=colmap"], "data.path = []: must be given for data.source=colmap: data.path=FOLDER"),
        (["data=shards", "data.path=[a,b]"], "one folder for shards"),
        (["data=colmp"], "there are colmap, images, megadepth, mini, shards; did you mean 'colmap'?"),
        (["data=null"], "data=null: no such choice; there are colmap, images, megadepth, mini, shards"),
        (["data=[mini,colmap]"], "data=[mini,colmap]: no such choice"),
        (["model=small"], "model=small: no such choice"),
        (["model/matcher=huge"], "model/matcher=huge: no such choice; there are lightglue, small"),
        (["cluster=on_premise"], "Could not override 'cluster'"),
        (["optim.lr"], "'optim.lr': expected key=value"),
        (["=3"], "'=3': expected key=value"),
        (["data.path=[a"], "quote values with blanks or commas"),
        (["optim.lr=1e-4,2e-4"], "'optim.lr=1e-4,2e-4': sweeps belong into a search space, give one value"),
        (["seed=range(3)"], "sweeps belong into a search space"),
        (["data=mini,colmap"], "sweeps belong into a search space"),
        (["~optim.nothing"], "'optim.nothing' does not exist"),
        (["optim.lr=${optim.nothing}"], "Interpolation key 'optim.nothing' not found"),
    ],
)
def test_wrong_words(words: list[str], expected: str) -> None:
    assert expected in "\n".join(problems(words))


def test_several_wrong_choices_and_several_wrong_words_at_once() -> None:
    assert len(problems(["data=colmp", "evaluation=quik"])) == 2
    assert len(problems(["nonsense", "optim.lr=1,2"])) == 2


def test_a_deleted_group_falls_back_to_the_dataclass() -> None:
    assert config.load(["~train"]).train == RunConfig().train


def test_file_is_laid_over_the_defaults_and_words_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "best.yaml", "seed: 7\noptim: {lr: 2e-5, decay: linear}\ndata: {batch_size: 8}\n")
    loaded, default = config.load(["optim.decay=exp"], file), config.load([])
    assert (loaded.seed, loaded.optim.lr, loaded.optim.decay, loaded.data.batch_size) == (7, 2e-5, "exp", 8)
    assert loaded.data.source == default.data.source
    assert loaded.optim.warmup_pairs == default.optim.warmup_pairs
    assert loaded.train == default.train


def test_whole_configuration_survives_a_file(tmp_path: Path) -> None:
    loaded = config.load(["experiment=posed", "optim.lr=2e-5", "data.split.val=[a]"])
    file = write(tmp_path / "config.yaml", yaml.safe_dump(to_mapping(loaded)))
    assert config.load([], file) == loaded


def test_file_is_also_found_by_name(tmp_path: Path) -> None:
    write(tmp_path / "mine/fast.yaml", "seed: 3\n")
    assert config.load([], "fast", str(tmp_path / "mine")).seed == 3


def test_group_and_file_may_not_both_decide(tmp_path: Path) -> None:
    file = write(tmp_path / "best.yaml", "data: {batch_size: 8}\nmodel: {matcher: {num_layers: 3}}\n")
    (line,) = problems(["data=mini", "model/matcher=small"], file)
    assert line.startswith("data=, model/matcher=: ")
    assert "change single ones with data.KEY=VALUE, model.matcher.KEY=VALUE" in line
    assert config.load(["train=full"], file).train.num_pairs == 2_000_000  # a group that the file leaves alone


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"optim: [1", "not readable as YAML"),
        (b"name: \xe9", "not readable as YAML"),
        (b"- 1\n- 2\n", "expected a mapping of keys, found list"),
        (b"optim: {rl: 1}\nsead: 3\n", "did you mean 'lr'?"),
        (b"optim: 3\n", "optim"),
        (b"defaults: [nowhere]\n", "nowhere"),
    ],
)
def test_wrong_files(tmp_path: Path, content: bytes, expected: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_bytes(content)
    assert expected in "\n".join(problems([], str(file)))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "--config nowhere.yaml: no such file" in problems([], "nowhere.yaml")[0]
    assert "no such file" in problems([], str(tmp_path))[0]
    assert problems([], None, "nowhere") == ["--config-dir nowhere: no such folder"]


@pytest.mark.parametrize("inside", ["", "configs"])
def test_folders_are_asked_in_order(tmp_path: Path, inside: str) -> None:
    write(tmp_path / "here/configs/optim/quick.yaml", "warmup_pairs: 22\n")
    assert config.load([]).optim.warmup_pairs == 22  # the working directory before the source tree
    given = tmp_path / "given"
    write(given / inside / "optim/quick.yaml", "warmup_pairs: 11\n")
    assert config.load([], None, str(given)).optim.warmup_pairs == 11  # the given folder before both
    assert config.load([], None, "../given").optim.warmup_pairs == 11
    assert config.load([], None, str(given)).train.num_pairs == config.load([]).train.num_pairs  # the rest is shipped


def test_choices_of_all_folders_are_known(tmp_path: Path) -> None:
    write(tmp_path / "given/data/scans.yaml", "source: colmap\npath: [scans]\n")
    assert config.load(["data=scans"], None, str(tmp_path / "given")).data.path == ("scans",)
    (line,) = problems(["data=scan"], None, str(tmp_path / "given"))
    assert "colmap, images, megadepth, mini, scans, shards; did you mean 'scans'?" in line


def test_unrelated_configs_in_the_working_directory_do_no_harm(tmp_path: Path) -> None:
    default = config.load([])
    write(tmp_path / "here/configs/nginx.yaml", "server: 1\n")
    assert config.load([]) == default


def test_fixed_paths_are_those_of_the_words() -> None:
    assert config.fixed_paths(["optim.lr=1", "++seed=2", "data=mini"]) == {"optim.lr", "seed", "data"}


@pytest.mark.parametrize("words", [[], ["experiment=posed"]], ids=["default", "posed"])
@pytest.mark.parametrize("name", SPACES)
def test_every_shipped_space_fits_the_shipped_configurations(name: str, words: list[str]) -> None:
    found, mapping = config.load_space(name)
    space = SearchSpace.parse(mapping, found)
    space.validate(config.load(words).run, config.fixed_paths(words))
    assert space.name == name and space.baseline


def test_space_by_path_and_numbers_as_numbers(tmp_path: Path) -> None:
    text = "parameters:\n  optim.lr: {type: float, low: 2e-5, high: 1e-3, log: true}\n"
    file = write(tmp_path / "spaces/mine.yaml", text)
    name, mapping = config.load_space(file)
    assert name == "mine"
    assert mapping["parameters"]["optim.lr"]["low"] == 2e-5
    SearchSpace.parse(mapping, name).validate(RunConfig())


@pytest.mark.parametrize("inside", ["", "search_spaces"])
def test_space_of_the_given_folder_hides_the_shipped_one(tmp_path: Path, inside: str) -> None:
    write(tmp_path / "given" / inside / "lr_bs.yaml", "description: mine\n")
    assert config.load_space("lr_bs", str(tmp_path / "given"))[1] == {"description": "mine"}
    write(tmp_path / "here/search_spaces/lr_bs.yaml", "description: here\n")
    assert config.load_space("lr_bs")[1] == {"description": "here"}


def test_unknown_space_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load_space("lr_sb")
    assert str(caught.value) == (
        f"--space lr_sb: no such search space; there are {', '.join(SPACES)}; did you mean 'lr_bs'?"
    )
    for name in ("nowhere.yaml", str(tmp_path)):
        with pytest.raises(ConfigError, match="no such file"):
            config.load_space(name)
