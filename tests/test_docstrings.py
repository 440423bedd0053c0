"""Public docstrings name the errors that a function raises, and the shapes of the tensors that it takes or returns."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.project import ROOT

PACKAGE = ROOT / "fla_mesa"
MODULES = sorted(PACKAGE.rglob("*.py"))


def public_functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions and methods without an underscore, by qualified name, except those inside functions."""
    for node in body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{prefix}{node.name}.")


def raised(function: ast.FunctionDef) -> set[str]:
    """Names of the exceptions in `raise Name(...)`, without those of functions defined inside."""
    names, pending = set(), list(ast.iter_child_nodes(function))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            # A lower-case name is a caught error or a helper that makes one.
            name = ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc).rpartition(".")[2]
            names |= {name} if name[0].isupper() else set()
        pending += ast.iter_child_nodes(node)
    return names - {"AssertionError", "NotImplementedError"}


def takes_tensors(function: ast.FunctionDef) -> bool:
    """Whether an annotation says that it takes or returns a tensor."""
    arguments = function.args
    annotations = [a.annotation for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return any("Tensor" in ast.unparse(a) for a in (*annotations, function.returns) if a is not None)


def relative(path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_errors_are_listed(path):
    """Under `Raises:`, as in the Google style."""
    missing = {}
    for name, function in public_functions(ast.parse(path.read_text()).body):
        text = ast.get_docstring(function) or ""
        missing[name] = [
            error for error in sorted(raised(function)) if f"    {error}: " not in text.partition("Raises:")[2]
        ]
    assert not {name: errors for name, errors in missing.items() if errors}


# The stand-ins in `cpu` have the shapes of fla's functions of the same name.
SHAPES = [path for path in MODULES if path.relative_to(PACKAGE).parts[0] in ("ops", "layers", "models")]


@pytest.mark.parametrize("path", SHAPES, ids=relative)
def test_shapes_are_in_brackets(path):
    """`q [B, T, H, K]`, in the docstring of the function or of its class, unless that refers to another function or class."""
    body = ast.parse(path.read_text()).body
    classes = {node.name: ast.get_docstring(node) or "" for node in body if isinstance(node, ast.ClassDef)}
    missing = []
    for name, function in public_functions(body):
        text = ast.get_docstring(function)
        if text is not None and takes_tensors(function):
            whole = text + classes.get(name.partition(".")[0], "")
            if not re.search(r"\[|:(meth|func|class):", whole):
                missing.append(f"{name}: {text.splitlines()[0]}")
    assert not missing
