"""Examines one back end in its own process and writes the findings to standard output, one JSON object per line.

python -m fla_mesa.doctor.worker '{"backend": "fla", ...}'
"""

from __future__ import annotations

import json
import sys
from typing import Any

from fla_mesa.doctor.checks import CHECKS, FAILED, Finding, Subject

FLA_OPS = "fla's ops"  # in place of a back end: what its times are set beside


def say(**line: Any) -> None:
    """Writes a line for the command at once, because the next check may end the process."""
    print(json.dumps(line), flush=True)


def examine(subject: Subject) -> None:
    """Runs every check in turn; an error in one becomes a finding."""
    for name, check in CHECKS.items():
        if subject.backend == FLA_OPS and name != "speed":
            continue
        say(begins=name)
        try:
            for finding in check(subject):
                say(**finding.asdict())
        except Exception as error:
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            say(**Finding(name, "", FAILED, text[:300]).asdict())
    say(ends=subject.backend)


def main() -> int:
    """Entry point."""
    given = json.loads(sys.argv[1])
    examine(Subject(**given | {name: tuple(given[name]) for name in ("sizes", "dtypes")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
