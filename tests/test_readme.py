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


def right(folder: str) -> dict[str, float]:
    """By model: the share of right answers on the test split."""
    return {name: m["test"]["accuracy"]["mean"] for name, m in reported(folder).items()}


RECALL, COPYING = right("mqar_2026-11-28/2x32"), right("mad_2026-11-28/mad-selective-copying")
FUZZY, REGBENCH = right("mad_fuzzy_recall_2026-11-28"), right("regbench_2x128_2026-11-28")


def test_the_comparisons_table_is_that_of_the_results():
    tasks = [{name: f"{share:.3f}" for name, share in of.items()} for of in (RECALL, COPYING, FUZZY, REGBENCH)]
    for folder in ("regression_2x64_2026-11-28", "regression_drift_2x64_2026-11-28"):
        tasks.append({name: f"{100 * m['error_over_optimum']['mean']:.1f} %" for name, m in reported(folder).items()})
    text = reported("text_2026-11-28")
    written = []
    for name in [*text, *(name for name in RECALL if name not in text)]:
        of_text = ["–", "–"]
        if name in text:
            bits, less = text[name]["bits_per_byte"], (text[name]["difference"] or {}).get("bits per byte")
            of_text[0] = f"{bits['mean']:.3f} ± {bits['std']:.3f}"
            of_text[1] = f"{less['mean']:+.3f} ± {less['half']:.3f}" if less else ""
        written.append([name, *of_text, *(of.get(name, "–") for of in tasks)])
    assert rows(TEXT[TEXT.index("## Is it worth it?") :], "model") == written


LINEAR = ("mesanet", "gated_deltanet", "delta_net", "gla", "mamba2")


def test_what_is_said_of_tasks_is_that_of_the_results():
    said = " ".join(TEXT.split())

    def ranked(of):
        return sorted(LINEAR, key=of.__getitem__, reverse=True)

    assert (
        "Of the linear ones MesaNet has most right in recall and RegBench" in said
        and "in fuzzy recall as many as DeltaNet" in said
    )
    assert ranked(RECALL)[0] == ranked(REGBENCH)[0] == "mesanet"
    assert set(ranked(FUZZY)[:2]) == {"mesanet", "delta_net"} and abs(FUZZY["mesanet"] - FUZZY["delta_net"]) < 0.005
    without = reported("regbench_2x128_2026-11-28")["mesanet"]["loss_without_steps"]["mean"]
    assert f"its loss is {100 * without:.0f} % higher without solver steps" in said
    assert "the delta rules are ahead in copying" in said and set(ranked(COPYING)[:2]) == {
        "gated_deltanet",
        "delta_net",
    }
    assert "(transformer_conv) is ahead of all in these four" in said
    for of in (RECALL, COPYING, FUZZY, REGBENCH):
        assert max(of, key=of.__getitem__) == "transformer_conv"
    recall_64, in_context = right("mqar_2026-11-28/2x64"), right("mad_2026-11-28/mad-in-context-recall")
    assert "where all others have 0.999 or more at width 64" in said
    slower = {
        of["mesanet"]["training_tokens_per_second"] / of[name]["training_tokens_per_second"]
        for of in (reported("mad_fuzzy_recall_2026-11-28"), reported("regbench_2x128_2026-11-28"))
        for name in LINEAR[1:]
    }
    assert f"at {100 * min(slower):.0f} to {100 * max(slower):.0f} % in fuzzy recall and RegBench" in said
    assert recall_64.pop("transformer") < 0.2 and min(recall_64.values()) >= 0.9985  # 0.999 when rounded
    assert "In MAD's in-context recall all have 1.000" in said and min(in_context.values()) >= 0.9995


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


def test_the_solvers_table_is_that_of_the_results():
    text = (ROOT / "docs" / "inspecting.md").read_text()
    header = [cell.strip() for cell in re.search(r"^\| solver (.*)\|$", text, re.MULTILINE)[1].split("|")[1:]]
    for setting, *cells in rows(text, "solver"):
        for name, cell in zip(header, cells, strict=True):
            figure, length = re.fullmatch(r"(\w+) at (\d+)", name).groups()
            assert cell == figures(int(length), setting.removesuffix(" (default)"))[figure], f"{setting}, {name}"
