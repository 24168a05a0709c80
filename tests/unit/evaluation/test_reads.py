"""The ledger of looks at tests: nothing is lost, by whomever and however it is written."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from raylg.evaluation.reads import FILE, Read, describe_reads, read_ledger, record_read

READ = Read(
    test="test",
    data="d1",
    protocol="p1",
    reader="studies/a",
    purpose="report",
    num_pairs=160,
    time="2026-01-01T00:00:00Z",
)


def test_looks_add_up_by_test_and_data(tmp_path: Path) -> None:
    other_data, other_test = replace(READ, data="d2"), replace(READ, test="megadepth1500")
    other_protocol = replace(READ, protocol="p2")
    for number, read in enumerate([READ, other_data, other_test, other_protocol, READ]):
        found = record_read(tmp_path, read)
        assert found[-1] == read and len(read_ledger(tmp_path / FILE)) == number + 1
    assert found == [READ, other_protocol, READ], "another protocol shows the same pairs"


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    reads = [replace(READ, reader=f"studies/{i}") for i in range(40)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda read: record_read(tmp_path, read), reads))
    assert sorted(r.reader for r in read_ledger(tmp_path / FILE)) == sorted(r.reader for r in reads)


def test_half_a_line_of_a_killed_writer_costs_only_itself(tmp_path: Path) -> None:
    record_read(tmp_path, READ)
    with (tmp_path / FILE).open("a") as file:
        file.write(json.dumps(asdict(READ))[:40])
    assert read_ledger(tmp_path / FILE) == [READ]
    assert record_read(tmp_path, READ) == [READ, READ]
    assert read_ledger(tmp_path / FILE) == [READ, READ]


@pytest.mark.parametrize("line", ["[1]", '{"test": "test"}', "null"])
def test_lines_of_something_else_are_no_looks(tmp_path: Path, line: str) -> None:
    (tmp_path / FILE).write_text(f"{line}\n")
    assert read_ledger(tmp_path / FILE) == []


def test_ledger_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert record_read(tmp_path / "file", READ) == [READ]
    assert "this look at test was not counted" in caplog.text


def test_words() -> None:
    by_b, choosing = replace(READ, reader="studies/b"), replace(READ, reader="studies/b", purpose="choice")
    assert describe_reads([READ]) == "test pairs read once"
    assert describe_reads([READ, READ]) == "test pairs read twice by 1 study or checkpoint"
    assert describe_reads([READ, by_b, READ]) == "test pairs read 3 times by 2 studies or checkpoints"
    assert describe_reads([replace(READ, test="megadepth1500")]) == "megadepth1500 pairs read once"
    assert describe_reads([READ, choosing, choosing]).endswith(
        "by 2 studies or checkpoints; 1 of them chose trials by these pairs, so numbers of those are optimistic"
    )
    assert describe_reads([]) == "test pairs were never read"
