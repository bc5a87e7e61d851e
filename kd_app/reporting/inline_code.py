"""Source code of a function and of everything that it uses, to be shown in a document.

The document's code is then the code of kd_app, and can't differ from it.
"""

import ast
import inspect
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module


@dataclass
class InlineCode:
    """imports: import statements · parts: source by name, what is used comes first."""

    imports: set[str] = field(default_factory=set)
    parts: dict[str, str] = field(default_factory=dict)


@cache
def collect_source(function: Callable[..., object]) -> InlineCode:
    """Collect the source of `function`, and of all functions and constants of kd_app
    that it uses.

    Docstrings are left out, and checks that only raise an error. Annotations stay, but
    not their imports: the code needs ``from __future__ import annotations``. The code
    is collected once, and nobody changes it.
    """
    code = InlineCode()
    _add(function.__module__, function.__name__, code)
    return code


def _add(module: str, name: str, code: InlineCode) -> None:
    lines, statements = _parse(module)
    statement = statements.get(name)
    if statement is None or name in code.parts:
        return
    if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("kd_app"):
        _add(str(statement.module), name, code)
        return
    if isinstance(statement, ast.Import | ast.ImportFrom):
        alias = next(each for each in statement.names if (each.asname or each.name) == name)
        single = copy(statement)
        single.names = [alias]
        code.imports.add(ast.unparse(single))
        return
    omitted = [each for each in ast.walk(statement) if _is_docstring(each) or _is_check(each)]
    for used in _list_names(statement, omitted):
        if used != name:
            _add(module, used, code)
    code.parts[name] = _cut(lines, statement, omitted)


@cache
def _parse(module: str) -> tuple[list[str], dict[str, ast.stmt]]:
    """The lines of a module, and its statements by the names that they define."""
    source = inspect.getsource(import_module(module))
    return source.splitlines(), dict(_iterate_statements(ast.parse(source)))


def _iterate_statements(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Yield each name that a module defines or imports, with its statement."""
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield from ((each.asname or each.name, statement) for each in statement.names)
        elif isinstance(statement, ast.FunctionDef):
            yield statement.name, statement
        elif isinstance(statement, ast.Assign):
            yield from ((ast.unparse(each), statement) for each in statement.targets)


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _is_check(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and not node.orelse
        and all(isinstance(each, ast.Raise) for each in node.body)
    )


def _list_names(node: ast.AST, omitted: list[ast.AST]) -> Iterator[str]:
    """Yield the names that a node uses at run time, without those in annotations."""
    if isinstance(node, ast.Name):
        yield node.id
    for key, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        for child in children:
            is_omitted = key in ("annotation", "returns") or child in omitted
            if isinstance(child, ast.AST) and not is_omitted:
                yield from _list_names(child, omitted)


def _cut(lines: list[str], statement: ast.stmt, omitted: list[ast.AST]) -> str:
    """The lines of a statement without those of `omitted` nodes."""
    gone = {
        number
        for each in omitted
        if isinstance(each, ast.stmt)
        for number in range(each.lineno, (each.end_lineno or each.lineno) + 1)
    }
    numbers = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
    return "\n".join(lines[number - 1] for number in numbers if number not in gone)
