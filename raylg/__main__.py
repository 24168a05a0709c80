"""`raylg VERB ...`: the same commands as `python -m raylg.VERB ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

VERBS = {
    "prepare": "images to feature shards",
    "tune": "search hyperparameters; the same command resumes",
    "train": "one training run",
    "evaluate": "score a matcher beside mutual nearest neighbours",
    "report": "write the report of a study, also while it runs",
}
USAGE = "usage: raylg VERB [...]\n\n" + "\n".join(f"  {verb:<10}{what}" for verb, what in VERBS.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(f"{USAGE}\n\n`raylg VERB --help` explains one of them.")
        return 0
    if words[0] not in VERBS:
        print(f"error: raylg {words[0]}: no such verb\n\n{USAGE}", file=sys.stderr)
        return 2
    command = importlib.import_module(f"raylg.{words[0]}")
    code: int = command.main(words[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
