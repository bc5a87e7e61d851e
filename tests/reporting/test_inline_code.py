"""The source of a function, complete and without kd_app."""

import ast

from PIL import Image

from kd_app.config import InputSpec
from kd_app.data.crop import center
from kd_app.reporting.inline_code import collect_source


def test_the_source_runs_without_kd_app_and_has_no_docstrings_and_checks() -> None:
    code = collect_source(center)
    assert code.imports == {"import math", "from PIL import Image"}
    assert list(code.parts)[-1] == "center"
    assert {"_compute_resized_size", "resolve_resampling", "_RESAMPLING", "_STRIP"} < {*code.parts}
    source = "\n".join(["from __future__ import annotations", *code.imports, *code.parts.values()])
    assert "kd_app" not in source
    assert not any(isinstance(node, ast.Raise) for node in ast.walk(ast.parse(source)))
    assert not any(
        ast.get_docstring(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
    )
    names: dict[str, object] = {}
    exec(source, names)
    image, input_spec = Image.radial_gradient("L"), InputSpec(1, 30, 20, (0.5,), (0.5,), 0.9)
    cropped = names["center"](image, input_spec)  # type: ignore[operator]
    assert cropped.tobytes() == center(image, input_spec).tobytes()
