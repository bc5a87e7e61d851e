"""The rules of the house: how things are called, how wide and how long they are."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kd_app"
VERBS = frozenset((Path(__file__).parent / "verbs.txt").read_text(encoding="utf-8").split())
LIBRARY_HOOKS = frozenset(
    [
        "backward",
        "collate",
        "configure_callbacks",
        "configure_gradient_clipping",
        "configure_optimizers",
        "eval",
        "extra_repr",
        "forward",
        "get_classifier",
        "main",
        "no_weight_decay",
        "optimizer_step",
        "parameters",
        "predict_dataloader",
        "predict_step",
        "setup",
        "state_dict",
        "step",
        "teardown",
        "test_dataloader",
        "test_step",
        "train",
        "train_dataloader",
        "training_step",
        "val_dataloader",
        "validation_step",
        "zero_grad",
    ]
)
"""Methods whose names Lightning, torch or Python's packaging choose."""
HAPPENED = frozenset(
    [
        "asked",
        "begun",
        "found",
        "given",
        "heard",
        "known_",
        "made",
        "said",
        "seen",
        "shown",
        "told",
        "taught",
    ]
)
"""What a value is never called: what happened to it says nothing about what it is."""
VAGUE = frozenset({"do", "get", "handle", "process"})


@cache
def _parse_folder(folder: Path) -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in folder.rglob("*.py")}


def _modules() -> dict[Path, ast.Module]:
    return _parse_folder(PACKAGE)


def _all_modules() -> dict[Path, ast.Module]:
    return _modules() | _parse_folder(ROOT / "tests") | _parse_folder(ROOT / "benchmarks")


def _functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path, module in _modules().items():
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def _decorators(node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    names = (getattr(each, "attr", None) or getattr(each, "id", "") for each in node.decorator_list)
    return {str(name) for name in names}


def _is_free(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether somebody else chooses the name, or a noun is right for it."""
    others = {"property", "cached_property", "setter", "overload", "override", "register_model"}
    name = node.name.lstrip("_")
    return (
        node.name.startswith("__")
        or name in LIBRARY_HOOKS
        or name.startswith("on_")
        or bool(_decorators(node) & others)
    )


def _where(path: Path, line: int, name: str) -> str:
    return f"{path.relative_to(ROOT)}:{line} {name}"


def test_a_function_starts_with_a_verb() -> None:
    odd = [
        _where(path, node.lineno, node.name)
        for path, node in _functions()
        if not _is_free(node) and node.name.strip("_").split("_")[0] not in VERBS
    ]
    assert odd == []


def test_a_function_has_a_precise_verb() -> None:
    vague = [
        _where(path, node.lineno, node.name)
        for path, node in _functions()
        if not _is_free(node) and node.name.strip("_").split("_")[0] in VAGUE
    ]
    assert vague == []


def _bound_names(module: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ClassDef):
            yield node.lineno, node.name.lower()


def test_no_value_is_named_after_what_happened_to_it() -> None:
    odd = [
        _where(path, line, name)
        for path, module in _all_modules().items()
        for line, name in _bound_names(module)
        if name.strip("_") in HAPPENED
    ]
    assert odd == []


def _is_participle(word: str) -> bool:
    return word in HAPPENED or ("_" not in word and word.endswith("ed") and word not in VERBS)


def test_no_function_is_named_after_what_happened() -> None:
    odd = [
        _where(path, node.lineno, node.name)
        for path, module in _all_modules().items()
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef)
        and not _is_free(node)
        # before a noun it is an adjective: damaged_photos
        and _is_participle(node.name.strip("_"))
    ]
    assert odd == []


def test_no_two_public_classes_have_one_name() -> None:
    places = defaultdict(list)
    for path, module in _modules().items():
        for node in module.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(_where(path, node.lineno, node.name))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_no_line_is_wider_than_100_columns() -> None:
    wide = [
        _where(path, number, row)
        for folder in ("kd_app", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for number, row in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(row) > 100
    ]
    assert wide == []


def test_a_file_has_at_most_450_lines() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {lines}"
        for path in PACKAGE.rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 450
    ]
    assert long == []


@pytest.mark.parametrize("folder", ["utils", "helpers", "common", "misc"])
def test_no_room_is_called_after_nothing(folder: str) -> None:
    assert not [path for path in PACKAGE.rglob("*") if path.stem == folder]


def test_every_module_of_the_orchestration_has_a_test_file() -> None:
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    missing = [
        str(path.relative_to(ROOT))
        for room in ("jobs", "run", "checks", "training", "search", "compression")
        for path in (PACKAGE / room).rglob("*.py")
        if path.name != "__init__.py"
        and not re.fullmatch(r"_.*", path.stem)
        and f"test_{path.stem}.py" not in tests
    ]
    assert missing == []
