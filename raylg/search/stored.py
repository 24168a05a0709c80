"""A study as its files tell it, without a lock: while it runs elsewhere, or copied from another machine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from raylg.errors import ConfigError
from raylg.search.journal import STUDY_NAME
from raylg.search.record import FORMAT, TrialRecord, rank, read_record
from raylg.search.space import SearchSpace


@dataclass(frozen=True, kw_only=True)
class StoredStudy:
    """All that is known of a study at one moment."""

    path: Path
    description: Mapping[str, Any]
    """Content of ``study.yaml``."""
    space: SearchSpace
    records: tuple[TrialRecord, ...]
    """All trials in the order of their numbers."""

    @property
    def objective(self) -> str:
        """Metric that is maximised."""
        return str(self.description["study"]["objective"])

    @property
    def num_pairs(self) -> int:
        """Full budget of a trial, in training pairs."""
        return int(self.description["run"]["train"]["num_pairs"])

    @property
    def baseline(self) -> TrialRecord | None:
        """Trial 0; None before it was started."""
        return next((record for record in self.records if record.number == 0), None)

    @property
    def ranked(self) -> list[TrialRecord]:
        """All trials, best first."""
        return sorted(self.records, key=rank)

    @property
    def best(self) -> TrialRecord | None:
        """The best trial at full budget; None before one has finished."""
        return next((record for record in self.ranked if record.state == "complete"), None)

    def trial_dir(self, number: int) -> Path:
        """Directory of a trial."""
        return self.path / "trials" / f"{number:04d}"

    def json(self, name: str) -> Any:
        """Content of one of the study's JSON files, by its path in the study directory; None where there is none.

        Raises:
            ConfigError: it cannot be read.
        """
        file = self.path / name
        try:
            return json.loads(file.read_text()) if file.is_file() else None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file}: cannot be read ({error}); restore it, or delete it to leave it out") from error


def read_study(path: Path) -> StoredStudy:
    """Read a study directory.

    Raises:
        ConfigError: it is none, or one of another format.
    """
    file = path / "study.yaml"
    if not file.is_file():
        raise ConfigError(f"{path}: no study there (study.yaml is missing); give the folder of a study")
    try:
        description = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); restore it from a copy") from error
    found = description.get("format") if isinstance(description, Mapping) else None
    if found != FORMAT:
        raise ConfigError(f"{file}: study format {found!r}, this version of raylg reads format {FORMAT}")
    space = dict(description["space"])
    return StoredStudy(
        path=path,
        description=description,
        records=_records(path / "journal.log"),
        space=SearchSpace.parse(space, str(space.pop("name"))),
    )


class _Lines(BaseJournalBackend):
    """A journal in memory; a last line that is still being written is left out."""

    def __init__(self, content: bytes) -> None:
        self._logs = [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Entries from a number on."""
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Refused: somebody else may be writing the file."""
        raise AssertionError("a stored study is read only")


def _records(journal: Path) -> tuple[TrialRecord, ...]:
    if not journal.is_file():
        return ()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage = JournalStorage(_Lines(journal.read_bytes()))
        if not storage.get_all_studies():
            return ()
        study = optuna.load_study(study_name=STUDY_NAME, storage=storage, sampler=optuna.samplers.RandomSampler())
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{journal}: not a journal of raylg ({error!r}); restore it from a copy") from error
    return tuple(read_record(trial) for trial in study.get_trials(deepcopy=False))
