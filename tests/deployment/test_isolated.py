"""Files of others run in a process of their own, with a time limit."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from kd_app.config import InputSpec, RequestError
from kd_app.deployment.artifact import open_artifact, open_foreign
from kd_app.deployment.clock import count_remote_call, read_cpu_seconds, read_seconds
from kd_app.deployment.own_files import mark_written
from kd_app.deployment.runtimes import isolated
from kd_app.deployment.runtimes.isolated import IsolatedFile
from tests.deployment.graphs import write_linear

PIXELS = InputSpec(1, 4, 4, (0.5,), (0.5,))
CLASSES = ("a", "b", "c")


def test_a_file_of_others_answers_the_same_and_its_end_is_an_error(tmp_path: Path) -> None:
    path = write_linear(tmp_path, PIXELS, CLASSES)
    file, images = open_foreign(path), np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4)
    assert isinstance(file, IsolatedFile)
    expected = open_artifact(path).infer_logits(images)
    np.testing.assert_array_equal(file.infer_logits(images), expected)
    os.kill(file._process.pid, signal.SIGABRT)  # as a native runtime does
    with pytest.raises(RequestError, match=r"model\.onnx' can't be run .*ended with SIGABRT"):
        file.infer_logits(images)


def test_a_file_that_this_process_wrote_runs_in_it(tmp_path: Path) -> None:
    weights = np.full((16, 3), 0.25, np.float32)
    path = write_linear(tmp_path, PIXELS, CLASSES, weights=weights)
    mark_written(path)
    assert not isinstance(open_foreign(path), IsolatedFile)


def test_a_loop_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "CALL_SECONDS", 1.0)
    values = {
        name: helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("i", TensorProto.INT64, []),
            ("go", TensorProto.BOOL, []),
            ("still", TensorProto.BOOL, []),
            ("value", TensorProto.FLOAT, None),
            ("next", TensorProto.FLOAT, None),
        )
    }
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["still"]),
            helper.make_node("Identity", ["value"], ["next"]),
        ],
        "body",
        [values["i"], values["go"], values["value"]],
        [values["still"], values["next"]],
    )
    true = helper.make_tensor("t", TensorProto.BOOL, [], [True])
    nodes = (
        helper.make_node("Constant", [], ["true"], value=true),
        helper.make_node("Loop", ["", "true", "product"], ["logits"], body=body),
    )
    path = write_linear(tmp_path, PIXELS, CLASSES, nodes=nodes)
    with pytest.raises(ValueError, match=r"model\.onnx' can't be opened: it did not answer"):
        open_foreign(path)


def test_the_clocks_leave_transport_out_and_count_the_work_elsewhere() -> None:
    seconds, cpu_seconds = read_seconds(), read_cpu_seconds()
    count_remote_call(10.0, 4.0, 3.0)
    assert read_seconds() - seconds == pytest.approx(-6.0, abs=0.5)
    assert read_cpu_seconds() - cpu_seconds == pytest.approx(3.0, abs=0.5)
