"""README: its commands and its Python run, what it points to exists, and its tables are those of benchmarks/results."""

import json
import re
import subprocess

from tests.pages import Page, Runner
from tests.project import ROOT

README = Page(ROOT / "README.md")
TEXT = README.path.read_text()
RESULTS = ROOT / "benchmarks" / "results"


def test_commands_and_python(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert any(line.startswith("fla-mesa train") for line in README.commands) and len(README.blocks("python")) >= 3
    failures = Runner(tmp_path, [README]).page(README)
    assert not failures, "\n\n".join(f"{what}\n{said}" for what, said in failures.items())


def test_it_is_read_in_five_minutes():
    assert len(TEXT.splitlines()) <= 130


def test_make_targets_exist():
    for target in re.findall(r"make ([\w-]+)", TEXT):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def anchors(text: str) -> set[str]:
    """Those of the headings of a Markdown file, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings}


def test_repositories_are_named_alike():
    """Each repository has one address, in README, the pages and the package."""
    files = [
        ROOT / "README.md",
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("fla_mesa/**/*.py"),
        ROOT / "CITATION.cff",
    ]
    found = {name for path in files for name in re.findall(r"github\.com/([\w-]+/[\w-]+)", path.read_text())}
    assert found == {"fla-org/flash-linear-attention", "fla-org/flame", "EleutherAI/lm-evaluation-harness"}


def test_everything_it_points_to_exists():
    links = [link.partition("#") for link in re.findall(r"\]\((?!http)([^)]+)\)", TEXT)]
    for path, _, anchor in links:
        assert not anchor or anchor in anchors((ROOT / path).read_text()), f"{path}#{anchor}"
    for path in [path for path, *_ in links] + re.findall(
        r"`((?:fla_mesa|benchmarks|docs|tests|configs)/[\w/.]*)`", TEXT
    ):
        assert (ROOT / path).exists(), path


def rows(text: str, first: str) -> list[list[str]]:
    """The cells of the table whose header begins with a word, without the header."""
    lines = text[text.index(f"| {first} ") :].splitlines()
    table = [line for line in lines[: next((n for n, line in enumerate(lines) if not line.startswith("|")), None)]]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table[2:]]


def test_the_demos_table_is_that_of_the_results():
    released = json.loads((RESULTS / "demo_released_2026-11-28" / "report.json").read_text())["models"]
    of_released = {m["model"]: f"{m['bits_per_byte']['mean']:.3f}" for m in released}
    of_demo = rows((RESULTS / "demo_2026-11-27.md").read_text(), "model")
    assert rows(TEXT, "model") == [[*cells, of_released[cells[0]]] for cells in of_demo]


def reported(folder: str) -> dict[str, dict]:
    """By model: what a report holds of it."""
    return {m["model"]: m for m in json.loads((RESULTS / folder / "report.json").read_text())["models"]}


def test_the_comparisons_table_is_that_of_the_results():
    recall = {name: f"{m['test']['accuracy']['mean']:.3f}" for name, m in reported("mqar_2026-11-28/2x32").items()}
    rest, drift = (
        {name: f"{100 * m['error_over_optimum']['mean']:.1f} %" for name, m in reported(folder).items()}
        for folder in ("regression_2x64_2026-11-28", "regression_drift_2x64_2026-11-28")
    )
    written = []
    for name, m in reported("text_2026-11-28").items():
        bits, less = m["bits_per_byte"], (m["difference"] or {}).get("bits per byte")
        written.append(
            [
                name,
                f"{bits['mean']:.3f} ± {bits['std']:.3f}",
                f"{less['mean']:+.3f} ± {less['half']:.3f}" if less else "",
                *(of.get(name, "–") for of in (recall, rest, drift)),
            ]
        )
    assert rows(TEXT[TEXT.index("## Is it worth it?") :], "model") == written
    said = " ".join(TEXT.split())
    assert f"convolutions, then {recall['transformer_conv']})" in said
    at_64 = {name: m["test"]["accuracy"]["mean"] for name, m in reported("mqar_2026-11-28/2x64").items()}
    assert "at width 64 all but the Transformer have 0.999 or more" in said
    assert at_64.pop("transformer") < 0.2 and min(at_64.values()) >= 0.9985  # 0.999 when rounded


def differences(folder: str, decimals: int) -> dict[str, str]:
    """By model: bits per byte less the baseline's, with the interval where there are several seeds."""
    found = {}
    for m in json.loads((RESULTS / folder / "report.json").read_text())["models"]:
        if less := (m["difference"] or {}).get("bits per byte"):
            half = f" ± {less['half']:.{decimals}f}" if less["half"] is not None else ""
            found[m["model"]] = f"{less['mean']:.{decimals}f}{half}"
    return found


def test_what_flas_gradients_and_fewer_steps_cost_is_that_of_the_results():
    of_solver = differences("fla_solver_2026-11-28", 3)
    large, small = (of_solver[f"mesanet@backend=fla_solver{end}"] for end in ("_32nd", ""))
    said = " ".join(TEXT.split())
    assert f"cost {large} bits" in said and f"of 2,048 ({small})" in said
    of_steps = differences("cg_steps_2026-11-28", 2)
    one, two, five = (of_steps[f"mesanet@max_cg_step_training={n}"] for n in (1, 2, 5))
    assert one == two and f"one or two {one} bits" in " ".join(TEXT.split()) and float(five) == 0
    report = json.loads((RESULTS / "text_2026-11-28" / "report.json").read_text())
    assert f"{report['models'][0]['iterations']['mean']:.1f} solver steps" in " ".join(TEXT.split())


def test_how_far_gated_deltanet_is_above_the_regressions_optimum_is_that_of_the_results():
    for folder, when in (
        ("regression_2x64_2026-11-28", "further above the optimum at rest"),
        ("regression_drift_2x64_2026-11-28", "when it drifts"),
    ):
        less = reported(folder)["gated_deltanet"]["difference"]["error over the optimum"]
        assert f"{100 * less['mean']:.1f} ± {100 * less['half']:.1f} % {when}" in " ".join(TEXT.split())


SWEEP = json.loads((RESULTS / "sweep_mqar_2026-11-28" / "sweep.json").read_text())["results"]


def figures(length: int, setting: str) -> dict[str, str]:
    """A setting of the sweep as the tables write it."""
    (row,) = (row for row in SWEEP if row["length"] == length and row["name"] == setting)
    return {
        "iterations": "–" if row["name"] == "exact" else f"{row['iterations']:.2f}",
        "loss": f"{row['loss']:.4f}",
        "recall": f"{row['recall']:.3f}",
    }


def test_the_recall_is_that_of_the_results():
    of = {(n, setting): figures(n, setting)["recall"] for n in (64, 512) for setting in ("0 steps", "exact")}
    without = f"recalls {of[64, '0 steps']} at 64 tokens, {of[512, '0 steps']} at 512 without solver steps"
    assert f"{without}, {of[64, 'exact']} and {of[512, 'exact']} solved exactly" in " ".join(TEXT.split())


def test_the_solvers_table_is_that_of_the_results():
    text = (ROOT / "docs" / "inspecting.md").read_text()
    header = [cell.strip() for cell in re.search(r"^\| solver (.*)\|$", text, re.MULTILINE)[1].split("|")[1:]]
    for setting, *cells in rows(text, "solver"):
        for name, cell in zip(header, cells, strict=True):
            figure, length = re.fullmatch(r"(\w+) at (\d+)", name).groups()
            assert cell == figures(int(length), setting.removesuffix(" (default)"))[figure], f"{setting}, {name}"
