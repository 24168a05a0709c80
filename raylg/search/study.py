"""The study directory: all that a search knows, in files; opening it again continues the search.

study.yaml      resolved configuration, space, versions, hashes of data and scoring protocol
journal.log     Optuna journal: configurations, scores and states of all trials
rungs.json      scores recorded at each rung, with the decisions taken
trials/0007/    config.yaml, metrics.jsonl, events.*, pairs.npz, log.txt, checkpoints/
best.yaml       resolved configuration of the best trial at full budget
"""

from __future__ import annotations

import fcntl
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import optuna
import yaml

import raylg
from raylg.data.manifest import write_text_atomically
from raylg.errors import ConfigError
from raylg.schema import override, to_mapping
from raylg.search.config import StudyConfig
from raylg.search.record import TrialRecord, rank, read_record
from raylg.search.sampler import open_journal
from raylg.search.space import SearchSpace

FORMAT = 1
_MAY_CHANGE = (
    "study.num_trials",
    "study.max_concurrent_trials",
    "study.dir",
    "study.name",
    "study.sampler.",
    "run.scale.",
    "run.data.path",  # data may move: their hash is compared
    "run.data.source",
    "run.data.cache_dir",
    "run.data.storage.",
    "run.benchmarks.megadepth1500.path",
    "run.data.prefetch_batches",
    "run.evaluation.batch_size",
    "run.evaluation.num_threads",
    "run.train.micro_batch_size",
    "run.train.checkpointed",
    "run.train.compile",
    "run.train.num_figures",
    "run.train.log_every",
    "run.train.rungs",
    "run.train.checkpoint_storage",
    "run.train.profile_steps",
)
_PACKAGES = ("torch", "ray", "optuna", "poselib", "pycolmap", "numpy")


@dataclass(frozen=True, kw_only=True)
class StudySetup:
    """What decides the results of a study."""

    study: StudyConfig
    space: SearchSpace
    run: Any
    """Configuration that trials are laid over, a nested dataclass."""
    hashes: Mapping[str, str]
    """Name to hash of what else must stay the same, such as ``data`` and ``protocol``."""

    @property
    def objective(self) -> str:
        """Metric that is maximised."""
        assert self.study.objective is not None, "whoever sets up a study chooses its objective"
        return self.study.objective

    @property
    def path(self) -> Path:
        """The study directory."""
        return Path(self.study.dir).expanduser() / (self.study.name or Path(self.space.name).stem)

    def to_mapping(self) -> dict[str, Any]:
        """Plain mapping, as stored in ``study.yaml``."""
        space = {"name": Path(self.space.name).stem, **self.space.source}
        mapping: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "hashes": dict(self.hashes),
                    "study": to_mapping(self.study),
                    "space": space,
                    "run": to_mapping(self.run),
                }
            )
        )
        return mapping


class StudyDirectory:
    """An open study; this process is its only writer until `close`."""

    def __init__(self, setup: StudySetup) -> None:
        """Create the directory, or open it to continue.

        Raises:
            ConfigError: another process runs the study; or it was made with another space, configuration, data or
                protocol (the differences are shown).
        """
        self.setup = setup
        self.path = setup.path
        description = self.path / "study.yaml"
        if description.exists():
            _check_unchanged(description, setup)
        elif self.path.is_dir() and any(not entry.name.startswith(".") for entry in self.path.iterdir()):
            raise ConfigError(f"{self.path}: exists and is no study; choose another --name or study.dir")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _take_lock(self.path / ".lock")
        self._describe(description)  # first, so that a directory without it was never a study
        self.journal: optuna.Study = open_journal(self.path / "journal.log")

    def __enter__(self) -> StudyDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes open the study."""
        self._lock.close()

    def trial_dir(self, number: int) -> Path:
        """Directory of a trial."""
        return self.path / "trials" / f"{number:04d}"

    def config(self, record: TrialRecord) -> Any:
        """Resolved configuration of a trial."""
        return override(self.setup.run, record.values)

    def records(self) -> list[TrialRecord]:
        """All trials in the order of their numbers."""
        return [read_record(trial) for trial in self.journal.get_trials(deepcopy=False)]

    def table(self) -> list[TrialRecord]:
        """All trials, best first."""
        return sorted(self.records(), key=rank)

    def best(self) -> TrialRecord | None:
        """The best trial at full budget; None before one has finished."""
        return next((record for record in self.table() if record.state == "complete"), None)

    def write_config(self, record: TrialRecord) -> None:
        """Write ``trials/<number>/config.yaml``."""
        folder = self.trial_dir(record.number)
        folder.mkdir(parents=True, exist_ok=True)
        header = f"# Trial {record.number} of study {self.path.name}\n"
        write_text_atomically(folder / "config.yaml", header + dump_yaml(to_mapping(self.config(record))))

    def write_best(self) -> Path | None:
        """Write ``best.yaml``; None (and no file) before a trial has finished."""
        best = self.best()
        if best is None:
            return None
        changed = ", ".join(f"{path} = {value!r}" for path, value in best.values.items())
        hashes = ", ".join(f"{name} {value}" for name, value in self.setup.hashes.items())
        header = [
            f"# Best of study {self.path.name}: trial {best.number}, {changed}",
            f"# {self.setup.objective} = {best.objective:.4f} after {best.pairs_seen} pairs, among "
            f"{len(self.records())} trials. It was chosen by this number, which is therefore optimistic.",
            f"# raylg {raylg.__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {hashes}",
            f"# Train it again: python -m raylg.train --config {self.path / 'best.yaml'}",
        ]
        path = self.path / "best.yaml"
        write_text_atomically(path, "\n".join(header) + "\n" + dump_yaml(to_mapping(self.config(best))))
        return path

    def _describe(self, path: Path) -> None:
        """Write ``study.yaml``; what may change is brought up to date, date and versions of the start stay."""
        stored = yaml.safe_load(path.read_text()) if path.exists() else {}
        versions = {
            "raylg": raylg.__version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _PACKAGES},
        }
        resumed = stored.get("resumed_with", [])
        if stored and versions not in [stored["versions"], *resumed]:
            resumed = [*resumed, versions]  # part of the trials ran with other packages: say so, do not rewrite history
        content = {
            "format": FORMAT,
            "created": stored.get("created") or f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "versions": stored.get("versions", versions),
            **({"resumed_with": resumed} if resumed else {}),
            **self.setup.to_mapping(),
        }
        write_text_atomically(path, dump_yaml(content))


def dump_yaml(mapping: Mapping[str, Any]) -> str:
    """YAML text that OmegaConf and PyYAML read back as the same mapping."""
    return yaml.safe_dump(dict(mapping), sort_keys=False, allow_unicode=True, width=120)


def _check_unchanged(path: Path, setup: StudySetup) -> None:
    stored = yaml.safe_load(path.read_text())
    if not isinstance(stored, Mapping) or stored.get("format") != FORMAT:
        found = stored.get("format") if isinstance(stored, Mapping) else None
        raise ConfigError(
            f"{path}: study format {found!r}, this version of raylg reads format {FORMAT}; choose another --name"
        )
    before, now = _flatten(stored), _flatten(setup.to_mapping())
    groups = ("hashes.", "study.", "space.", "run.")
    keys = [key for key in {**before, **now} if key.startswith(groups) and not key.startswith(_MAY_CHANGE)]
    changed = [key for key in keys if before.get(key) != now.get(key) or (key in before) != (key in now)]
    if changed:
        lines = [f"  {_shown(key)} was {_value(before, key)}, now {_value(now, key)}" for key in changed]
        raise ConfigError(
            "\n".join(
                (
                    f"{path.parent}: this study was started with another setup, so its trials could not be compared:",
                    *lines,
                    "repeat the earlier command to continue it, or start a new study with another --name",
                )
            )
        )


def _flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in mapping.items():
        leaves.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return leaves


def _shown(key: str) -> str:
    group, _, rest = key.partition(".")
    return {"hashes": f"hash of {rest}", "space": f"space: {rest}"}.get(group, rest if group == "run" else key)


def _value(leaves: Mapping[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "not set"


def _take_lock(path: Path) -> IO[str]:
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ConfigError(
            f"{path.parent}: another process is running this study; wait for it, or choose another --name"
        ) from error
    return file
