"""Chooses the validation data if the data has none of its own."""

import hashlib

FRACTION = 0.05
ENOUGH = 20  # documents from which on whole ones are held out


def fraction_of(name: str) -> float:
    """A number in [0, 1) that depends only on `name`, so that a file stays on its side when others come or go."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def held_out_names(names: list[str]) -> set[str]:
    """About 5 % of `names`, at least one."""
    chosen = {name for name in names if fraction_of(name) < FRACTION}
    return chosen or {min(names, key=fraction_of)}


def cut_tail(text: str) -> tuple[str, str]:
    """Splits `text` in two; the second part is its last 5 %. The cut follows a line break if there is one."""
    cut = int(len(text) * (1 - FRACTION))
    line_break = text.find("\n", cut, len(text) - 1)
    cut = cut if line_break < 0 else line_break + 1
    return text[:cut], text[cut:]
