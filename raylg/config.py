"""YAML and command-line words to frozen dataclasses; the only importer of hydra and omegaconf.

`configs/` and `search_spaces/` are looked for in ``--config-dir``, the working directory, the source tree and the
installed package, in that order; a file path is accepted wherever a name is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from raylg.errors import ConfigError
from raylg.evaluation.config import BenchmarkName
from raylg.schema import build, check, nearest
from raylg.search.config import StudyConfig
from raylg.training.config import RunConfig

PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """A whole configuration: one training run, the study around it, and what single commands take."""

    study: StudyConfig = field(default_factory=StudyConfig)
    out: str | None = None
    """Folder or s3:// URL that `prepare` writes shards to."""
    benchmark: BenchmarkName | None = None
    """What `evaluate` scores, and `prepare` extracts features of, instead of the data set."""

    @property
    def run(self) -> RunConfig:
        """The part that a trial, a checkpoint and a worker share."""
        return RunConfig(**{f.name: getattr(self, f.name) for f in fields(RunConfig)})

    def without_benchmark(self) -> Config:
        """This configuration, for a command that takes no `benchmark`.

        Raises:
            ConfigError: one is given.
        """
        check(
            self.benchmark is None,
            "benchmark",
            self.benchmark,
            f"given to evaluate or prepare only; reports of runs score evaluation.benchmarks=[{self.benchmark}]",
        )
        return self


def load(words: Sequence[str], config: str | None = None, config_dir: str | None = None) -> Config:
    """Compose the configuration of a command.

    Args:
        words: Hydra overrides: ``group=choice`` for a folder under `configs/`, ``key.path=value`` for a field.
        config: a YAML file laid over the defaults, such as a study's ``best.yaml``; or the name of one in `configs/`.
        config_dir: a folder searched before all others.

    Raises:
        ConfigError: anything wrong in words or file, all in one message.
    """
    folders = _folders("configs", config_dir)
    overrides = _parse(words)
    groups = {o.key_or_group for o in overrides if any((d / o.key_or_group).is_dir() for d in folders)}
    base = _read_experiment(config, folders, groups) if config else {}
    _check_choices(overrides, groups, folders)
    arguments = [o.input_line if o.key_or_group in groups else _forced(o) for o in overrides]
    return build(Config, _compose(folders, base, arguments))


def fixed_paths(words: Sequence[str]) -> set[str]:
    """Dotted paths that the command line sets; a search space may not search them too."""
    return {o.key_or_group for o in _parse(words)}


def load_space(name: str, config_dir: str | None = None) -> tuple[str, Mapping[str, Any]]:
    """Find a search space by name or file path; returns its name and its YAML mapping.

    Raises:
        ConfigError: no such space (with the nearest name), or a file that is not a YAML mapping.
    """
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"--space {name}: no such file")
        return path.stem, read_yaml(path)
    folders = _folders("search_spaces", config_dir)
    for folder in folders:
        if (path := folder / f"{name}.yaml").is_file():
            return name, read_yaml(path)
    known = sorted({p.stem for folder in folders for p in folder.glob("*.yaml")})
    raise ConfigError(f"--space {name}: no such search space; there are {', '.join(known)}{nearest(name, known)}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ConfigError: not readable as YAML, or not a mapping.
    """
    try:
        # OmegaConf's loader reads 2e-5 as a number, which plain YAML 1.1 takes for text.
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def _folders(kind: str, config_dir: str | None) -> list[Path]:
    """Existing folders of that kind, the first to be asked first."""
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder")

    def candidates() -> Iterator[Path]:
        if config_dir is not None:
            yield Path(config_dir).resolve()
            yield Path(config_dir).resolve() / kind
        yield Path.cwd() / kind
        yield PACKAGE.parent / kind
        yield PACKAGE / kind

    found = list(dict.fromkeys(folder for folder in candidates() if folder.is_dir()))
    # The working directory may hold an unrelated folder of that name; the shipped one always carries the defaults.
    if kind == "configs" and not any((folder / "config.yaml").is_file() for folder in found):
        raise ConfigError(f"no configs/config.yaml in {', '.join(map(str, candidates()))}; reinstall raylg")
    return found


def _parse(words: Sequence[str]) -> list[Override]:
    problems, overrides = [], []
    for word in words:
        try:
            overrides += OverridesParser.create().parse_overrides([word])
        except OverrideParseException as error:
            reason = str(error).splitlines()[0]
            problems.append(f"{word!r}: expected key=value ({reason}); quote values with blanks or commas")
    problems += [f"{o.input_line!r}: expected key=value" for o in overrides if not o.key_or_group]
    problems += [
        f"{o.input_line!r}: sweeps belong into a search space, give one value"
        for o in overrides
        if o.is_sweep_override()
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    return overrides


def _forced(override: Override) -> str:
    """Let Hydra accept any key; `build` then reports all unknown ones at once, each with the nearest name."""
    line = override.input_line or ""
    return line if override.is_delete() else "++" + line.lstrip("+")


def _check_choices(overrides: Sequence[Override], groups: set[str], folders: Sequence[Path]) -> None:
    problems = []
    for override in overrides:
        group, choice = override.key_or_group, override.value()
        if group not in groups:
            continue
        known = sorted({p.stem for folder in folders for p in (folder / group).glob("*.yaml")})
        if not override.is_delete() and choice not in known:
            there = f"there are {', '.join(known)}" if known else "there are none"
            problems.append(f"{override.input_line}: no such choice; {there}{nearest(str(choice), known)}")
    if problems:
        raise ConfigError("\n".join(problems))


def _read_experiment(config: str, folders: Sequence[Path], groups: set[str]) -> dict[str, Any]:
    candidates = [Path(config), *(folder / f"{config}.yaml" for folder in folders)]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise ConfigError(f"--config {config}: no such file, nor a name in {', '.join(map(str, folders))}")
    content = read_yaml(path)
    clash = sorted(group for group in groups if group.split("/")[0] in content)
    if clash:
        keys = ", ".join(f"{group.replace('/', '.')}.KEY=VALUE" for group in clash)
        raise ConfigError(f"{'=, '.join(clash)}=: {path} sets these keys already; change single ones with {keys}")
    return content


def _compose(folders: Sequence[Path], base: Mapping[str, Any], arguments: Sequence[str | None]) -> dict[str, Any]:
    search_path = ",".join(f"'file://{folder}'" for folder in folders[1:])
    words = [*(a for a in arguments if a), *([f"hydra.searchpath=[{search_path}]"] if search_path else [])]
    ConfigStore.instance().store("raylg_command", {"defaults": ["config", "_self_"], **base})
    try:
        with initialize_config_dir(str(folders[0]), version_base="1.3"):
            composed = OmegaConf.to_container(compose("raylg_command", words), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"configuration: {error}") from error
    assert isinstance(composed, dict)
    return {str(key): value for key, value in composed.items()}
