from __future__ import annotations

import pytest

from raylg.errors import ConfigError
from raylg.search.expression import Expression

VALUES = {"data.batch_size": 32, "scale.num_workers": 2, "model.extractor.name": "superpoint", "optim.clip": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data.batch_size >= scale.num_workers", True),
        ("data.batch_size % (3 * scale.num_workers) == 0", False),
        ("model.extractor.name == superpoint", True),
        ("model.extractor.name == 'sift'", False),
        ("1 < scale.num_workers <= 2", True),
        ("1 < scale.num_workers < 2", False),
        ("not (data.batch_size / 2 - 1 > 15) and scale.num_workers != -2", True),
        ("not (data.batch_size / 2 - 1 > 16) or optim.clip == 3", True),
        ("optim.clip == null", True),
        ("data.batch_size + 1 == 33", True),
    ],
)
def test_evaluates_as_python_would(text: str, expected: bool) -> None:
    assert Expression.parse(text).evaluate(VALUES.__getitem__) is expected


def test_knows_the_paths_it_reads() -> None:
    expression = Expression.parse("data.batch_size > scale.num_workers and model.extractor.name == sift")
    assert expression.paths == {"data.batch_size", "scale.num_workers", "model.extractor.name"}


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "a.b()", "[x for x in y]", "a.b[0] > 1", "a.b ** 9 > 1", "f'{a.b}'", "a.b >", "(1).real == 1"],
)
def test_refuses_everything_else(text: str) -> None:
    with pytest.raises(ConfigError):
        Expression.parse(text)


@pytest.mark.parametrize("text", ["optim.clip < 3", "data.batch_size / 0 == 1"])
def test_says_which_values_cannot_be_compared(text: str) -> None:
    with pytest.raises(ConfigError, match=r"(optim\.clip = None|data\.batch_size = 32)"):
        Expression.parse(text).evaluate(VALUES.__getitem__)
