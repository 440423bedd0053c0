"""The pages of docs/: their commands and their Python run, their tables are true, and the site builds without a warning."""

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import yaml

from fla_mesa.models.configuration_mesanet import MesaNetConfig
from tests.pages import Page, Runner
from tests.project import ROOT

DOCS = ROOT / "docs"
PAGES = [Page(path) for path in sorted(DOCS.glob("*.md"))]
NOT_HERE = pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra `docs`: make test-docs")
# What cannot run here, and why.
NOT_RUN = {"flame.md": "flame's own commands, in its environment: tests/train/test_flame.py does what they do"}


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    """One folder for all pages, in which what one page's command made is there for another's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("MPLBACKEND", "Agg")
        yield Runner(tmp_path_factory.mktemp("docs"), PAGES)


@NOT_HERE
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.commands or page.python or page.files], ids=lambda page: page.path.name
)
def test_commands_and_python(page, runner):
    if page.path.name in NOT_RUN:
        pytest.skip(NOT_RUN[page.path.name])
    failures = runner.page(page)
    assert not failures, "\n\n".join(f"{what}\n{said}" for what, said in failures.items())
    for name in re.findall(r'savefig\("(\S+?)"', page.python):
        assert (runner.folder / name).stat().st_size > 1000 and (DOCS / name).exists()


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make ([\w-]+)`", page.path.read_text())) <= targets, page.path.name


def test_the_configuration_table_is_that_of_the_classes():
    """Every key of this package's class and of fla's, with both defaults; keys only one has say so."""
    from fla.models.mesa_net.configuration_mesa_net import MesaNetConfig as FlaConfig

    ours = {field.name: field.default for field in dataclasses.fields(MesaNetConfig) if "help" in field.metadata}
    parameters = inspect.signature(FlaConfig.__init__).parameters.values()
    theirs = {p.name: p.default for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD}

    def written(value) -> str:
        return f"`{list(value) if isinstance(value, tuple) else value!r}`"

    rows = re.findall(
        r"^\| `(\w+)` \| ([^|]*) \| ([^|]*) \| [^|]+ \|$", (DOCS / "configuration.md").read_text(), re.MULTILINE
    )
    assert [name for name, *_ in rows] == [*ours, *(name for name in theirs if name not in ours)]
    for name, here, there in rows:
        assert here == (written(ours[name]) if name in ours else "–"), name
        assert there == (written(theirs[name]) if name in theirs else "–"), name


def test_what_is_called_flas_settings_is_flas_model():
    """The line of docs/configuration.md, evaluated: the settings that both have and that shape the model agree with fla's."""
    line = re.search(r"`(MesaNetConfig\(.*?\))` is fla's model", (DOCS / "configuration.md").read_text(), re.DOTALL)[1]
    config = eval(line, {"MesaNetConfig": MesaNetConfig})
    from fla.models.mesa_net.configuration_mesa_net import MesaNetConfig as FlaConfig

    fla = FlaConfig()
    for name in (
        "hidden_ratio",
        "tie_word_embeddings",
        "initializer_range",
        "use_output_gate",
        "conv_size",
        "hidden_act",
    ):
        assert getattr(config, name) == getattr(fla, name), name


def site(folder, *flags) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder), *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = site(folder)
    assert done.returncode == 0, done.stderr
    return folder


@NOT_HERE
def test_the_site_builds_without_a_warning(built):
    page = (built / "api" / "index.html").read_text()
    assert 'id="fla_mesa.ops.chunk.chunk_mesa_net"' in page and ":func:" not in page and ":class:" not in page
    assert (built / "results" / "sweep_mqar_2026-11-28" / "sweep" / "index.html").exists()


@NOT_HERE
def test_a_dead_link_is_an_error(built, tmp_path):
    """One to a page, and one to a heading."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A\n\n[x](nowhere.md) [y](#nothing)\n")
    wanted = {"site_name": "x", "validation": config["validation"], "theme": "mkdocs"}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(wanted))
    done = site(tmp_path / "site", "--config-file", str(tmp_path / "mkdocs.yml"))
    assert done.returncode == 1 and "nowhere.md" in done.stderr and "#nothing" in done.stderr


def test_what_users_look_for_is_within_three_clicks():
    """Eight GPUs, own data, a rule of one's own: linked from README."""
    text = (ROOT / "README.md").read_text()
    for link in ("docs/training.md#eight-gpus", "docs/data.md", "docs/extending.md#a-recurrence-rule"):
        assert f"]({link})" in text
        path, _, anchor = link.partition("#")
        headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(), re.MULTILINE)
        assert not anchor or anchor in {
            re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings
        }
