"""The calls that are made wrong, and how they are led through the switch when a driver is imported: by its syntax tree.

So a mutant is no other program, but a switch that is set.
"""

from __future__ import annotations

import ast
import builtins
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

import busdma
from mutation.switch import METHODS, Switch

SWITCH: Final = "__mutants__"  #: the name by which the drivers find it
PREFIX: Final = "busdma.drivers."
FOLDER: Final = Path(busdma.__file__).parent / "drivers"


@dataclass(frozen=True, order=True)
class Site:
    """One call in a driver. `name` outlives edits elsewhere in its file: module, function, source of the call."""

    name: str
    file: str
    line: int


def wire(source: str | bytes, file: str) -> tuple[ast.Module, list[Site]]:
    """A module with its calls led through the switch, and these calls. `file`: what it is called in their names."""
    wiring = _Wiring(file)
    tree: ast.Module = wiring.visit(ast.parse(source))
    return ast.fix_missing_locations(tree), wiring.sites


class _Wiring(ast.NodeTransformer):
    def __init__(self, file: str) -> None:
        self.sites: list[Site] = []
        self._file = file
        self._scope: list[str] = []
        self._known: dict[str, int] = {}

    def visit_Call(self, node: ast.Call) -> ast.AST:
        text = ast.unparse(node)
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Attribute) and node.func.attr in METHODS):
            return node
        name = f"{self._file} {'.'.join(self._scope)}: {text}"
        self._known[name] = again = self._known.get(name, 0) + 1
        if again > 1:
            name += f" #{again}"
        self.sites.append(Site(name, self._file, node.lineno))
        led = ast.Call(ast.Name(SWITCH, ast.Load()), [ast.Constant(name), node.func, *node.args], node.keywords)
        return ast.copy_location(led, node)

    def _inside(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self._scope.append(node.name)
        found = self.generic_visit(node)
        self._scope.pop()
        return found

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _inside


def all_sites() -> list[Site]:
    """Every call of every driver, in order."""
    return sorted(site for path in FOLDER.rglob("*.py") for site in wire(path.read_bytes(), _name(path))[1])


def _name(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


def put_in_place() -> Switch:
    """Have all drivers imported with their calls led through one switch. Before any of them is."""
    files = {PREFIX + site.file.removesuffix(".py").replace("/", ".") for site in all_sites()}
    early = sorted(files & set(sys.modules))
    if early:
        raise ImportError(f"imported before their calls could be led through the switch: {', '.join(early)}")
    switch = Switch()
    setattr(builtins, SWITCH, switch)
    sys.meta_path.insert(0, _Finder())
    return switch


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(PREFIX):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = Path(self.get_filename(fullname))
        code: CodeType = compile(wire(path.read_bytes(), _name(path))[0], path, "exec")
        return code
