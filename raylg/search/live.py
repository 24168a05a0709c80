"""Trials that hold workers: their handles in the journal, the seconds they hold them, and how they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from optuna.trial import Trial, TrialState

from raylg.search.books import EventKind, TrialEvent
from raylg.search.journal import reopen
from raylg.search.meter import Meter
from raylg.search.record import REASON, SECONDS, WAITS, TrialRecord, read_record
from raylg.search.study import StudyDirectory


class LiveTrials:
    """The trials that run now.

    Args:
        directory: the open study.
        meter: counts the time.
        on_event: called after each change.
    """

    def __init__(self, directory: StudyDirectory, meter: Meter, on_event: Callable[[TrialEvent], None]) -> None:
        self._journal, self._meter, self._on_event = directory.journal, meter, on_event
        self._trials: dict[int, Trial] = {}
        self._counted: dict[int, float] = {}
        """Seconds of the meter up to which those of a trial were counted."""

    def __len__(self) -> int:
        return len(self._trials)

    def __contains__(self, number: int) -> bool:
        return number in self._trials

    def __iter__(self) -> Iterator[int]:
        return iter(self._trials)

    def __getitem__(self, number: int) -> Trial:
        return self._trials[number]

    def open(self, number: int) -> Trial:
        """Take a trial of the journal that has not ended."""
        self._trials[number] = reopen(self._journal, number)
        return self._trials[number]

    def start(self, number: int) -> None:
        """From now on a trial holds workers."""
        if self.record(number).state == "waiting":
            self._trials[number].set_user_attr(WAITS, False)
        self._counted[number] = self._meter.seconds
        self.beat()

    def seconds(self, number: int) -> float:
        """For which a trial has held its workers, this session's part added up to now."""
        last, self._counted[number] = self._counted[number], self._meter.seconds
        return round(self.record(number).seconds + self._meter.seconds - last, 3)

    def release(self, number: int) -> None:
        """A trial holds no workers any more, and has not ended."""
        self._count(number)
        self._drop(number)

    def pause(self, number: int) -> None:
        """A trial waits at a rung."""
        was_waiting = self.record(number).state == "waiting"  # in an earlier session
        self._count(number)
        self._trials[number].set_user_attr(WAITS, True)
        self._drop(number)
        if not was_waiting:
            self.emit("waits", number)

    def tell(self, number: int, state: TrialState, reason: str, score: float | None = None) -> None:
        """A trial has ended."""
        self.beat()
        trial = self._trials[number]
        trial.set_user_attr(REASON, reason)
        self._count(number)
        self._journal.tell(trial, score, state=state)
        self._drop(number)
        self.emit("finished", number)

    def beat(self) -> None:
        """Count the time up to now."""
        self._meter.beat(len(self._trials))

    def record(self, number: int) -> TrialRecord:
        """What is known of a trial."""
        return read_record(self._journal.get_trials(deepcopy=False)[number])

    def emit(self, kind: EventKind, number: int) -> None:
        """Tell who watches."""
        self._on_event(TrialEvent(kind=kind, record=self.record(number)))

    def _count(self, number: int) -> None:
        if number in self._counted:
            self.beat()
            self._trials[number].set_user_attr(SECONDS, self.seconds(number))

    def _drop(self, number: int) -> None:
        del self._trials[number]
        self._counted.pop(number, None)
        self.beat()
