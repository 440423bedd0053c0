"""What a release consists of: the wheel and the sdist, and the files that say what they are."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import fla_mesa
from tests.project import PROJECT, ROOT

PACKAGE = ROOT / "fla_mesa"
# What the wheel is for: code, its types, presets and tasks as YAML, the page of a report.
NEEDED = {".py", ".yaml", ".typed", ".html"}


def run(*words: str | Path, cwd: Path, **environment: str) -> str:
    """A command's output, without this checkout on its path."""
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=outside, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The wheel, built from the sdist, and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def test_the_wheel_holds_what_is_needed_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = wheel.namelist()
    inside = {name for name in names if ".dist-info/" not in name}
    here = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix in NEEDED and "__pycache__" not in path.parts
    }
    assert inside == here
    assert {"fla_mesa/py.typed", "fla_mesa/eval/compare/presets/demo.yaml"} <= inside
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_sdist_holds_the_tests_and_none_of_the_repositorys_own_files(built):
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CITATION.cff", "Makefile", "tests/test_release.py"} <= names
    assert not [name for name in names if name.startswith((".ci", ".github", ".venv", "runs/", "dist/"))]


@pytest.fixture(scope="module")
def clean(built, tmp_path_factory) -> Path:
    """An environment in which the wheel is installed, and of what it depends on, what is installed here."""
    folder = tmp_path_factory.mktemp("a clean environment")
    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        built[0],
        cwd=folder,
    )
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # A folder that a .pth file names is searched after the environment's own, and its own .pth files, of editable installs, are not read.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_the_command_of_the_installed_wheel(clean):
    """From a folder whose name has spaces, outside of the checkout."""
    assert run(clean / "env" / "bin" / "fla-mesa", "--version", cwd=clean) == f"fla-mesa {fla_mesa.__version__}\n"


def test_the_installed_wheel_needs_nothing_of_the_checkout(clean):
    """It is imported from where it was installed, and finds its presets."""
    script = """
import json
import fla_mesa
from fla_mesa.eval.compare import plan
print(json.dumps({"file": fla_mesa.__file__, "preset": str(plan.parse(["--preset", "demo"]))}))
"""
    said = json.loads(
        run(clean / "env" / "bin" / "python", "-c", script, cwd=clean, OMP_NUM_THREADS="1").splitlines()[-1]
    )
    assert Path(said["file"]).is_relative_to(clean) and "gated_deltanet" in said["preset"]


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == fla_mesa.__version__ == str(citation["version"])
    assert re.search(rf"^## {re.escape(fla_mesa.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_citation_is_one():
    """The keys that Citation File Format 1.2.0 requires, and the paper."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation) and citation["cff-version"] == "1.2.0"
    assert all(
        reference["title"] and reference["authors"] and reference["type"] for reference in citation["references"]
    )
    assert "https://arxiv.org/abs/2506.05233" in {reference["url"] for reference in citation["references"]}


def targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name)
def test_a_workflow_runs_make_targets_only(path):
    workflow = yaml.safe_load(path.read_text())
    for job in workflow["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        named = {*matrix.get("target", ()), *(row["target"] for row in matrix.get("include", ()))}
        for step in job["steps"]:
            if "run" in step:
                program, *words = step["run"].replace("${{ matrix.target }}", " ".join(named)).split()
                assert program == "make" and set(words) <= targets(), step["run"]


def test_the_workflows_try_every_python_that_is_promised():
    matrix = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]["test"]["strategy"][
        "matrix"
    ]
    promised = {text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+", text)}
    assert (
        set(matrix["python"]) == promised
        and PROJECT["requires-python"] == f">={min(promised, key=lambda v: int(v[2:]))}"
    )


def test_pre_commit_has_the_linters_of_make_lint():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    recipe = subprocess.run(["make", "-n", "lint"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    linters = [line.removesuffix(" .") for line in recipe.splitlines() if re.match(r"\S+/(ruff|pyright) ", line)]
    assert sorted(hook["entry"] for hook in hooks) == sorted(linters)


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.name
)
def test_an_issue_template_is_a_form(path):
    form = yaml.safe_load(path.read_text())
    assert (
        form["name"]
        and form["description"]
        and all(part["type"] and part["attributes"]["label"] for part in form["body"])
    )
