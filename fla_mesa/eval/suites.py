"""What `--suite` names where it can be learnt: `fla-mesa compare` trains on it, and it and `fla-mesa eval` score on it."""

from __future__ import annotations

from fla_mesa.data import synthetic

# Sources of `fla-mesa train --data`, one comparison for each.
SUITES: dict[str, list[str]] = {
    "text": ["stdlib"],
    "mqar": ["mqar"],
    "mad": [name for name in synthetic.suites() if name.startswith("mad-")],
    "regbench": ["regbench"],
}
