"""Packs the models of a comparison as files of a release: of each model the run with the lowest validation loss.

    python benchmarks/pack_checkpoints.py runs/demo --output_dir dist/checkpoints

Leaves an archive for each model (a folder that from_pretrained reads, with its model card and figures), SHA256SUMS, and checkpoints.md, a
table for the release's text. The same runs give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import sys
import tarfile
from pathlib import Path
from typing import Any

from fla_mesa.json_files import read_json
from fla_mesa.markdown import EMPTY, table

# What a user of the model needs. Pickles and what only `--resume` reads stay behind.
FILES = (
    *("README.md", "config.json", "generation_config.json", "model.safetensors", "load_fla_mesa.py", "metrics.json", "loss.png"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
)  # fmt: skip
NEEDED = ("README.md", "config.json", "model.safetensors")


def best_runs(comparison: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The run of the lowest loss and its metrics, by the name of its archive. Raises SystemExit where there is none."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in sorted(comparison.glob("**/cells/*/*/metrics.json")):
        metrics = read_json(path)
        name = f"{path.parents[1].name}-{metrics['size']}"
        if name not in found or metrics["loss"] < found[name][1]["loss"]:
            found[name] = (path.parent, metrics)
    if not found:
        raise SystemExit(
            f"pack_checkpoints: no finished run in {comparison}: expected the folder of a `fla-mesa compare`"
        )
    return found


def pack(folder: Path, name: str, archive: Path) -> str:
    """Writes the archive; returns its SHA-256. Raises SystemExit where the folder lacks a file that a model needs."""
    missing = [file for file in NEEDED if not (folder / file).exists()]
    if missing:
        raise SystemExit(f"pack_checkpoints: {folder} has no {', '.join(missing)}")

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for part in FILES:
            if (folder / part).exists():
                content = (folder / part).read_bytes()
                if part == "README.md":  # the card calls the model as its folder is called
                    content = content.replace(folder.name.encode(), name.encode())
                member = tarfile.TarInfo(f"{name}/{part}")  # with no time and no owner
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    archive.write_bytes(gzip.compress(packed.getvalue(), mtime=0))
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Pack the models of a comparison as files of a release.")
    parser.add_argument("comparison", type=Path, help="the --output_dir of a `fla-mesa compare` or `make demo`")
    parser.add_argument("--output_dir", type=Path, default=Path("dist/checkpoints"), help="new, or empty")
    given = parser.parse_args(argv)
    runs = best_runs(given.comparison)
    if given.output_dir.exists() and any(given.output_dir.iterdir()):
        raise SystemExit(f"pack_checkpoints: output_dir: {given.output_dir} is not empty: name another")
    given.output_dir.mkdir(parents=True, exist_ok=True)
    sums, rows = [], []
    for name, (folder, metrics) in runs.items():
        archive = given.output_dir / f"{name}.tar.gz"
        sums.append(f"{pack(folder, name, archive)}  {archive.name}")
        bits = EMPTY if metrics["bits_per_byte"] is None else f"{metrics['bits_per_byte']:.3f}"
        size = f"{archive.stat().st_size / 2**20:.1f} MiB"
        rows.append(
            [archive.name, f"{metrics['parameters']:,}", f"{metrics['loss']:.4f}", bits, str(metrics["steps"]), size]
        )
    (given.output_dir / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    text = table(["file", "parameters", "validation loss", "bits per byte", "steps", "size"], rows)
    (given.output_dir / "checkpoints.md").write_text(text + "\n")
    print(f"{text}\n\n{len(rows)} archives, SHA256SUMS and checkpoints.md are in {given.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
