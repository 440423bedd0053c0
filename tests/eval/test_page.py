"""report.html in a browser: that its charts are drawn, answer to the mouse and the legend, and that its tables sort."""

import html
import json
import re
import shutil
import subprocess

import pytest
from matplotlib.figure import Figure

from fla_mesa.eval.compare import command as compare
from fla_mesa.report import command, files
from fla_mesa.report.page import page
from fla_mesa.report.pictures import Line, Look, Panel, Picture
from fla_mesa.report.sections import Section
from fla_mesa.report.tables import Cell, Spread, Table, digits
from tests.eval.conftest import SMALL
from tests.project import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium to open report.html with (Debian: apt install chromium)"
)


def seen(path, folder, script):
    """What the JavaScript function `script` returns when the page's charts are drawn."""
    text = path.read_text(encoding="utf-8").replace("</html>", "")
    tail = f"<script>drawn.then({script}).then(found => {{ document.title = JSON.stringify(found); }});</script></html>"
    (folder / "scripted.html").write_text(text + tail, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=30000"]
    offline = [
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1200,3000",
    ]
    line = [CHROMIUM, *flags, *offline, "--dump-dom", (folder / "scripted.html").as_uri()]
    dom = subprocess.run(line, capture_output=True, text=True, timeout=300, check=True).stdout
    return json.loads(html.unescape(re.search("<title>(.*?)</title>", dom, re.DOTALL).group(1)))


STATE = """async () => {
  const charts = [...document.querySelectorAll(".chart")];
  const drawn = charts.map(chart => ({
    title: chart.parentNode.querySelector("h3").textContent,
    lines: [...chart.querySelectorAll(".scatterlayer path.js-line")].filter(path => path.style.strokeWidth !== "0px").length,
    points: chart.querySelectorAll(".scatterlayer path.point").length,
    bands: chart.querySelectorAll(".scatterlayer path.js-fill").length,
    legend: [...chart.querySelectorAll(".legendtext")].map(text => text.textContent),
  }));
  Plotly.Fx.hover(charts[0], { xval: 4 }, ["xy"]);
  const hovered = charts[0].querySelector(".hoverlayer").textContent;
  const first = charts[0].data.flatMap((trace, i) => trace.legendgroup === "gla" ? [i] : []);
  await Plotly.restyle(charts[0], { visible: "legendonly" }, first);
  await new Promise(done => setTimeout(done, 500));
  const visible = charts.map(chart => [...new Set(chart.data.filter(t => t.visible !== "legendonly").map(t => t.name))]);
  const table = document.querySelector("table"), heads = [...table.querySelectorAll("th button")];
  const column = heads.findIndex(head => head.textContent === "loss"), orders = [];
  for (let click = 0; click < 2; click++) {
    heads[column].click();
    orders.push([...table.tBodies[0].rows].map(row => row.cells[0].textContent));
  }
  return { drawn, hovered, visible, orders };
}"""


@browser
def test_the_page_of_a_comparison(text, tmp_path, here, measured_alone):
    measured_alone("loss_by_position")
    folder, models = tmp_path / "out", ["delta_net", "gla", "mesanet"]
    flags = ["--models", ",".join(models), "--seeds", "1,2", "--baseline", "gla", "--data", str(text)]
    assert compare.main([*SMALL, *flags, "--output_dir", str(folder)]) == 0
    found = seen(folder / "report.html", tmp_path, STATE)
    shown = {chart["title"]: (chart["lines"], chart["points"] > 2, chart["bands"]) for chart in found["drawn"]}
    assert shown == {
        "Loss in training": (3, True, 3),
        "Loss by position": (3, True, 3),
        "Loss by position, less that of gla": (6, True, 4),  # in two panels; gla itself is exactly zero
        "Quality and speed": (0, True, 0),
    }
    assert all(chart["legend"] == models for chart in found["drawn"])
    rows = json.loads((folder / "report.json").read_text())["models"]
    for row in rows:
        curves = [dict(curve)[4] for curve in row["validation_curves"]]
        assert f"{row['model']} : {sum(curves) / 2:.4f} ± " in found["hovered"]
    assert found["visible"] == [["delta_net", "mesanet"]] * 4  # switched off in one chart, off in all
    order = [row["model"] for row in sorted(rows, key=lambda row: row["loss"]["mean"])]
    assert found["orders"] == [order, order[::-1]]


@browser
def test_what_has_no_value_is_sorted_last(tmp_path):
    rows = [[Cell("gla", "gla"), Cell("–")], [Cell("mesanet", "mesanet"), Cell("10", 10.0)]]
    rows += [[Cell("hawk", "hawk"), Cell("9", 9.0)]]
    path = tmp_path / "report.html"
    path.write_text(page([Section("<b> & co", [Table(["model", "n"], rows), "- `a<b`\n- c"])]), encoding="utf-8")
    names = "[...document.querySelectorAll('tbody tr')].map(row => row.cells[0].textContent)"
    click = f"n => {{ document.querySelectorAll('th button')[n].click(); return {names}; }}"
    found = seen(path, tmp_path, f"() => {{ const c = {click}; return [c(1), c(1), c(0), document.body.innerText]; }}")
    assert found[:3] == [["hawk", "mesanet", "gla"], ["mesanet", "hawk", "gla"], ["gla", "hawk", "mesanet"]]
    assert "<b> & co" in found[3] and "a<b" in found[3]


def test_the_page_needs_no_network():
    text = page([Section("Nothing", ["A paragraph."])])
    assert not re.search(r"""(src|href)\s*=|url\(|@import|https?:""", text)
    assert len(text) < 3e6  # plotly.js is packed


def test_a_link_to_another_report_leads_to_its_page():
    text = page([Section("Two", ["- one & two: [report](runs/a/report.md)\n- `[c](d.md)`"])])
    assert '<li>one &amp; two: <a href="runs/a/report.html">report</a></li>' in text
    assert "<code>[c](d.md)</code>" in text


@pytest.fixture
def stored(tmp_path):
    """A report with every kind of block, and its files."""
    table = Table(["model", "loss", "note"], [[Cell("gla", "gla"), Cell("1.5 ± 0.1", 1.5, True), Cell("–")]])
    lines = {"gla": Line([1.0, 2.0], [3.0, float("nan")], [0.5, 0.5], ["a", "b"])}
    panel = Panel("x", "y", lines, "title", log=True, log_y=True, mark=1.5, limits=(None, 4.0))
    picture = Picture("curve", "Curve", "A curve.", [panel], {"gla": Look("#0072B2", "s")})
    sections = [Section("Title", ["One `two`.", table]), Section("More", [picture, "- a\n- b"])]
    return sections, files.write(tmp_path, "report", sections, {"models": [1]})


def test_all_files_are_made_from_the_json_file(stored, tmp_path):
    sections, paths = stored
    assert sorted(path.name for path in paths) == ["curve.png", "report.html", "report.json", "report.md"]
    assert json.loads((tmp_path / "report.json").read_text())["models"] == [1]
    assert repr(files.read(tmp_path / "report.json")) == repr(sections)  # equality fails for NaN
    assert page(sections) == (tmp_path / "report.html").read_text()


def test_the_page_of_a_stored_report(stored, tmp_path, capsys):
    made = (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    assert command.main([str(tmp_path / "report.json")]) == 0
    assert (tmp_path / "report.html").read_text() == made
    assert command.main([str(tmp_path / "report.json"), "--output", str(tmp_path / "other.html")]) == 0
    assert (tmp_path / "other.html").read_text() == made and "other.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("{", "cannot be read"),
        ("{}", "holds no 'sections': it is no report of this program, or an older one"),
        ('{"sections": [{"head": "x", "blocks": [{"kind": "List"}]}]}', "holds no report to show (KeyError: 'List')"),
        (
            '{"sections": [{"head": "x", "blocks": [{"kind": "Picture", "panels": [], "looks": []}]}]}',
            "holds no report to show (AttributeError",
        ),
        (
            '{"sections": [{"head": "x", "blocks": [{"kind": "Table", "width": 3}]}]}',
            "holds no report to show (TypeError",
        ),
    ],
)
def test_what_is_no_report_is_named(tmp_path, capsys, content, said):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    assert command.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and said in error
    assert not path.with_suffix(".html").exists()


def test_a_picture_shows_all_values_on_every_scale(tmp_path, monkeypatch):
    """Limits that a linear scale would choose may begin below zero, where a logarithmic one has no place for them."""
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (drawn.append(self), save(self, *args, **kwargs))
    )
    lines = {"a": Line([1, 2, 4], [1.6, 5.0, 38.0])}
    scales = [{}, {"log": True}, {"log_y": True}, {"log": True, "log_y": True, "limits": (1.0, 50.0)}, {"points": True}]
    panels = [Panel("x", "y", lines, **scale) for scale in scales]
    Picture("all", "All", "", panels, {"a": Look("#000000")}).draw(tmp_path)
    (figure,) = drawn
    for axes, scale in zip(figure.axes, scales, strict=True):
        (low, high), expected = axes.get_ylim(), ("log" if scale.get("log_y") else "linear")
        assert axes.get_yscale() == expected and (low > 0 or expected == "linear")
        assert low < 1.6 and 38 < high < 60, scale
    assert figure.axes[3].get_ylim() == (1.0, 50.0)


def test_the_page_of_every_stored_result_can_be_made():
    results = ROOT / "benchmarks" / "results"
    stored = [path for path in results.rglob("*.json") if path.stem in ("report", "suite", "sweep", "inspect")]
    assert len(stored) >= 10
    for path in stored:
        assert page(files.read(path)).startswith("<!doctype html>"), path


def test_a_difference_has_a_sign_unless_it_is_written_as_zero():
    written = [Cell.of(value, digits(2), signed=True).text for value in (0.126, -0.126, 0.004, -0.004, 0.0)]
    assert written == ["+0.13", "-0.13", "0.00", "0.00", "0.00"]
    assert Cell.of(Spread(-0.126, 0.5), digits(2), signed=True).text == "-0.13 ± 0.50"
    assert [Cell.of(value, lambda x: f"{x:+.1f} %", signed=True).text for value in (0.01, 1.0)] == ["0.0 %", "+1.0 %"]
