"""What mkdocs does not do by itself: the site has the measured results, which lie outside of docs/, and whose links lead out of it."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds benchmarks/results as results/, not in the navigation but for its first page."""
    for path in sorted(RESULTS.rglob("*")):
        if path.is_file():
            name = f"results/{path.relative_to(RESULTS).as_posix()}"
            shown = InclusionLevel.INCLUDED if path == RESULTS / "README.md" else InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, name, abs_src_path=str(path), inclusion=shown))
    return files


def on_page_markdown(markdown: str, **_) -> str:
    """Pages link to results as they lie in the repository."""
    return re.sub(r"\]\((?:\.\./)+benchmarks/results/", "](results/", markdown)


def on_page_content(html: str, **_) -> str:
    """Docstrings have Sphinx's roles, which stand before the code of a name; the name's last part is what a reader needs."""
    return re.sub(r":(?:class|func|meth|mod):<code>~?(?:[\w.]*\.)?(\w+)</code>", r"<code>\1</code>", html)
