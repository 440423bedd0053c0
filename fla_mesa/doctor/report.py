"""Turns findings into a table, a verdict for each back end, and a recommendation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fla_mesa.markdown import EMPTY, table

BAD = ("wrong", "failed")
Findings = dict[str, list[dict[str, Any]]]  # by back end


def verdict(findings: Sequence[dict[str, Any]]) -> str:
    """The verdict: "right", "wrong: ..." with the first error, or "not checked"."""
    for finding in findings:
        if finding["status"] in BAD:
            return f"wrong: {finding['check']} ({finding['subject']}): {finding['detail']}"
    if any(f["check"] == "accuracy" and f["status"] == "ok" for f in findings):
        return "right in all that was checked"
    return "not checked: it takes none of these inputs"


def is_right(findings: Sequence[dict[str, Any]]) -> bool:
    """Whether the back end was right somewhere and wrong nowhere."""
    return verdict(findings).startswith("right")


def summary(found: Findings) -> str:
    """Table with a row per check and a column per back end: the worst status, the counts, and the largest error."""
    names = list(found)
    checks = list(dict.fromkeys(f["check"] for name in names for f in found[name] if f["check"] != "speed"))

    def cell(name: str, check: str) -> str:
        these = [f for f in found[name] if f["check"] == check]
        if not these:
            return EMPTY
        bad = [f for f in these if f["status"] in BAD]
        good = [f for f in these if f["status"] == "ok"]
        if bad:
            return f"{len(bad)} of {len(bad) + len(good)} WRONG"
        errors = [f["numbers"]["error"] for f in good if "error" in f["numbers"]]
        worst = f", <= {max(errors):.1e}" if errors else ""
        return f"{len(good)} ok{worst}" if good else these[0]["status"]

    return table(["check", *names], [[check, *(cell(name, check) for name in names)] for check in checks])


def speeds(found: Findings) -> str:
    """Table with a row for each timing; empty if nothing was timed."""
    timed = [(name, f) for name in found for f in found[name] if f["check"] == "speed" and f["numbers"]]
    columns = list(dict.fromkeys(column for _, f in timed for column in f["numbers"]))
    rows = [
        [name, f["subject"], *(f"{f['numbers'][c]:.2f}" if c in f["numbers"] else EMPTY for c in columns)]
        for name, f in timed
    ]
    return table(["back end", "inputs", *columns], rows, left=2) if rows else ""


def advice(found: Findings) -> list[str]:
    """The fastest correct back end for each kind of input; without timings, the first correct one."""
    right = [name for name in found if is_right(found[name])]
    if not right:
        return ["no back end was found right: please report this"]
    times: dict[str, dict[str, float]] = {}
    for name in right:
        for f in found[name]:
            if f["check"] == "speed" and f["numbers"]:
                times.setdefault(f["subject"], {})[name] = f["numbers"].get("forward + backward, ms", math.inf)
    if not times:
        return [f'not timed; right: {", ".join(right)}. use backend="{right[0]}", or none for the default']
    return [f'{inputs}: use backend="{min(by, key=by.__getitem__)}"' for inputs, by in times.items()]


def unchecked(found: Findings) -> list[str]:
    """What could not be checked, and why."""
    lines = [
        f"{name}: {f['check']}: {f['detail']}" for name in found for f in found[name] if f["status"] == "not checked"
    ]
    return list(dict.fromkeys(lines))


def text(environment: dict[str, Any], found: Findings) -> str:
    """The whole report in Markdown."""
    paragraphs = [
        "\n".join(f"{name}: {value}" for name, value in environment.items()),
        summary(found),
        speeds(found),
        "\n".join(
            f'backend="{name}": {verdict(f)}' for name, f in found.items() if any(x["check"] != "speed" for x in f)
        ),
        "\n".join(advice(found)),
        "not checked:\n" + "\n".join(f"- {line}" for line in unchecked(found)) if unchecked(found) else "",
    ]
    return "\n\n".join(filter(None, paragraphs))
