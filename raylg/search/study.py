"""The study directory: all that a search knows, in files; opening it again continues the search.

study.yaml      resolved configuration, space, versions, hashes of data and scoring protocol
journal.log     Optuna journal: configurations, scores and states of all trials
prior.json      what other studies found, where study.warm_start names some
rungs.json      scores recorded at each rung, with the decisions taken
trials/0007/    config.yaml, metrics.jsonl, events.*, pairs.npz, log.txt, checkpoints/
confirm/        the runs on fresh seeds, and confirmation.json
best.yaml       resolved configuration of the best trial at full budget, or of what the confirmation chose
spent.json      seconds and GPU-hours, of all and of the confirmation
"""

from __future__ import annotations

import fcntl
import itertools
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import optuna
import yaml

import raylg
from raylg.data.manifest import git_sha, write_text_atomically
from raylg.errors import ConfigError
from raylg.schema import override, to_mapping
from raylg.search.config import StudyConfig
from raylg.search.designs import check_sampler
from raylg.search.journal import open_journal
from raylg.search.record import FORMAT, TrialRecord, rank, read_record
from raylg.search.resume import check_unchanged
from raylg.search.space import SearchSpace
from raylg.search.warm_start import load_prior

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
    command: str = ""
    """What was typed; the report says how to continue."""

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
            ConfigError: another process runs the study; it was made with another space, configuration, data or
                protocol (the differences are shown); a study to start from does not fit; or the sampler cannot draw
                from the space.
        """
        check_sampler(setup.study.sampler, setup.space)
        self.setup = setup
        self.path = setup.path
        description = self.path / "study.yaml"
        if description.exists():
            check_unchanged(description, setup)
        elif self.path.is_dir() and any(not entry.name.startswith(".") for entry in self.path.iterdir()):
            raise ConfigError(f"{self.path}: exists and is no study; choose another --name or study.dir")
        self.prior = load_prior(self.path / "prior.json", setup)
        """What the sampler knows of other studies."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = take_lock(self.path)
        created = self._describe(description)  # first, so that a directory without it was never a study
        self.storage_name = f"{self.path.name}-{created.translate({ord('-'): None, ord(':'): None})}"
        """Folder of its runs in `train.checkpoint_storage`, where an earlier study of that name left others."""
        if self.prior.studies:
            self.prior.save(self.path / "prior.json")
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
        """All trials, best first.

        Raises:
            ConfigError: some were scored on other data or by another protocol.
        """
        records = self.records()
        _check_comparable(self.path, records)
        return sorted(records, key=rank)

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
            "# It is not confirmed on fresh seeds.",
            f"# raylg {raylg.__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {hashes}",
            f"# Train it again: python -m raylg.train --config {self.path / 'best.yaml'}",
        ]
        path = self.path / "best.yaml"
        write_text_atomically(path, "\n".join(header) + "\n" + dump_yaml(to_mapping(self.config(best))))
        return path

    def _describe(self, path: Path) -> str:
        """Write ``study.yaml``, the present options with date and versions of the start; returns that date."""
        stored = yaml.safe_load(path.read_text()) if path.exists() else {}
        versions = {
            "raylg": raylg.__version__,
            **({} if (commit := git_sha()) is None else {"git": commit}),
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
            "command": self.setup.command,
            **self.setup.to_mapping(),
        }
        write_text_atomically(path, dump_yaml(content))
        return str(content["created"])


def dump_yaml(mapping: Mapping[str, Any]) -> str:
    """YAML text that OmegaConf and PyYAML read back as the same mapping."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # in C, where built with it: one is written for every trial
    return str(yaml.dump(dict(mapping), Dumper=dumper, sort_keys=False, allow_unicode=True, width=120))


def _check_comparable(path: Path, records: Sequence[TrialRecord]) -> None:
    """Refuse to rank across hashes: files of several studies were mixed."""
    groups: dict[str, list[int]] = {}
    for record in records:
        groups.setdefault(", ".join(f"{k} {v}" for k, v in sorted(record.hashes.items())), []).append(record.number)
    if len(groups) > 1:
        lines = [
            f"  trials {', '.join(map(str, numbers))}: {hashes or 'no hash'}" for hashes, numbers in groups.items()
        ]
        raise ConfigError(
            "\n".join(
                (
                    f"{path}: trials were scored on different data or by different protocols, and cannot be ranked:",
                    *lines,
                    "put each study back into a folder of its own",
                )
            )
        )


def set_aside(path: Path) -> Path | None:
    """Rename a study directory, so that its name is free for a new study; nothing is deleted.

    Args:
        path: the study directory.

    Returns:
        Its new path, ``<name>.old-<n>``; None when there is no such study.

    Raises:
        ConfigError: it is no study, or another process is running it.
    """
    if not path.is_dir():
        return None
    if not (path / "study.yaml").exists():
        raise ConfigError(f"{path}: is no study and stays where it is; choose another --name or study.dir")
    lock = take_lock(path)
    numbers = itertools.count(1)
    target = next(t for t in (path.with_name(f"{path.name}.old-{n}") for n in numbers) if not t.exists())
    path.rename(target)
    lock.close()
    return target


def take_lock(path: Path) -> IO[str]:
    """Be the only process that writes to a study directory, until the file is closed.

    Raises:
        ConfigError: another process is.
    """
    file = (path / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ConfigError(
            f"{path}: another process is running this study; wait for it, or choose another --name"
        ) from error
    return file
