"""Exit codes, messages and progress of a command, as they arrive on a pipe."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from raylg.console import terminal
from raylg.console.terminal import console, guard, parser, progress_bar, table
from raylg.errors import (
    CheckpointError,
    ConfigError,
    EnvironmentUnfitError,
    NoFeasibleTrialError,
    OutOfMemory,
    RaylgError,
    ShardError,
    TrainingDiverged,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RaylgError, 1),
        (ConfigError, 2),
        (CheckpointError, 2),
        (EnvironmentUnfitError, 3),
        (ShardError, 3),
        (NoFeasibleTrialError, 4),
        (TrainingDiverged, 1),
        (OutOfMemory, 1),
    ],
)
def test_errors_become_a_message_and_an_exit_code(
    error: type[RaylgError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(argv: Sequence[str]) -> int:
        raise error(f"{argv[0]}: wrong\noptim.lr: also wrong")

    assert guard("tune", command, ["seed=x"]) == code
    assert capsys.readouterr() == ("", "error: seed=x: wrong\nerror: optim.lr: also wrong\n")


def test_an_error_without_words_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: Sequence[str]) -> int:
        raise NoFeasibleTrialError

    assert guard("tune", command, []) == 4
    assert capsys.readouterr().err == "error: NoFeasibleTrialError\n"


def test_what_a_command_returns_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert guard("tune", len, ["a", "b"]) == 2
    assert capsys.readouterr() == ("", "")


def test_a_bug_keeps_its_traceback() -> None:
    def command(argv: Sequence[str]) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        guard("tune", command, [])


def test_ctrl_c_names_the_command_to_repeat(capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: Sequence[str]) -> int:
        raise KeyboardInterrupt

    command.__module__ = "__main__"  # as under `python -m`
    words = ["--space", "lr_bs", "data.path=[a, b]"]
    assert guard("tune", command, words) == terminal.INTERRUPTED == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "interrupted; the same command continues: python -m raylg.tune --space lr_bs 'data.path=[a, b]'"


def test_flags_may_stand_between_the_words() -> None:
    arguments = parser("tune", "A command.").parse_intermixed_args(["a=1", "--config", "best.yaml", "b=2"])
    assert arguments.overrides == ["a=1", "b=2"]
    assert (arguments.config, arguments.config_dir) == ("best.yaml", None)
    assert parser("tune", "A command.").parse_intermixed_args([]).overrides == []


def test_unknown_flag_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parser("tune", "A command.").parse_intermixed_args(["--spice", "lr_bs"])
    assert stop.value.code == 2
    assert "python -m raylg.tune: error: unrecognized arguments: --spice" in capsys.readouterr().err


def test_progress_on_a_pipe_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with progress_bar("extracting features") as update:
        for done in range(1, 9):
            now[0] += 2.0  # a line after 6 s (3 images), the next after 12 s
            update(done, 8)
    assert capsys.readouterr().out.splitlines() == [f"extracting features: {done}/8" for done in (3, 6, 8)]


def test_progress_without_news_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("extracting features"):
        pass
    assert capsys.readouterr().out == ""


def test_progress_passes_errors_on(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with progress_bar("extracting features") as update:
            update(0, 0)
            raise ConfigError("no images")

    with pytest.raises(ConfigError, match="no images"):
        work()
    assert capsys.readouterr().out == "extracting features: 0/0\n"


def test_long_lines_and_wide_tables_are_not_folded_on_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/folder" * 60
    console().print(path)
    assert capsys.readouterr().out == f"{path}\n"
    wide = table("title", ["first", *(f"column {i}" for i in range(9))])
    wide.add_row("row", *(str(i) for i in range(9)))
    console().print(wide)
    rows = [line for line in capsys.readouterr().out.splitlines() if "row" in line]
    assert len(rows) == 1 and rows[0].count("│") >= 10


def test_brackets_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    shown = table("scans[old]", ["trial"])
    shown.add_row("[/tmp/x] lost [float32]")
    console().print("runs/[bold]x[/red]")
    console().print(shown)
    out = capsys.readouterr().out
    for text in ("runs/[bold]x[/red]", "scans[old]", "[/tmp/x] lost [float32]"):
        assert text in out
