"""The int8 graph of a tiny model: folding, calibration, training and programs."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from kd_app.compression.graph import (
    QuantizationProbe,
    TrainableGraph,
    calibrate,
    convert,
    copy_tensors,
    load_pt2e,
    prepare,
    save,
    trace,
)
from kd_app.compression.latency import time_models
from kd_app.config import RequestError, RunError
from kd_app.deployment.xnnpack import Lowered, lower
from tests.compression.tiny import (
    PIXELS,
    Digits,
    Tiny,
    list_batches,
    quantize_after_training,
    top1,
    train_model,
)


def prepare_trainable(model: nn.Module, digits: Digits) -> TrainableGraph:
    graph = TrainableGraph(
        prepare(trace(model, PIXELS), float_units=[], per_channel=True, trainable=True)
    )
    calibrate(graph, list_batches(digits))
    return graph


def test_folding_keeps_the_outputs_and_gives_module_and_graph_the_same_weights(
    teacher: nn.Module, digits: Digits
) -> None:
    model, image = Tiny().eval(), digits[0][:7]
    copy_tensors(teacher.state_dict(), model)
    graph = trace(model, PIXELS)
    with torch.no_grad():
        torch.testing.assert_close(model(image), teacher(image), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(graph(image), teacher(image), rtol=1e-4, atol=1e-4)
    assert not any(node.target is torch.ops.aten.batch_norm.default for node in graph.graph.nodes)
    assert model.bn1.weight.eq(1).all()
    weights = model.state_dict()
    assert all(torch.equal(own, weights[name]) for name, own in graph.state_dict().items())


def test_a_model_that_torch_can_not_export_is_an_error() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(RunError, match="torch can't export this Branching"):
        trace(Branching(), PIXELS)


def test_only_tensors_of_the_same_name_are_copied() -> None:
    target = nn.Linear(2, 1)
    bias = target.bias.detach().clone()
    copy_tensors({"weight": torch.full((1, 2), 3.0), "other": torch.zeros(1)}, target)
    assert target.weight.tolist() == [[3.0, 3.0]]
    assert torch.equal(target.bias, bias)


def test_a_probe_measures_each_unit_and_no_divergence_without_int8(
    teacher: nn.Module, digits: Digits
) -> None:
    probe = QuantizationProbe(trace(teacher, PIXELS), list_batches(digits), per_channel=True)
    assert probe.units == ("conv1", "conv2", "fc")
    assert probe.measure_without(probe.units) == pytest.approx(0, abs=1e-9)
    assert 0 < probe.measure_only("fc") < 1
    assert probe.measure_without([]) > 0


def test_training_the_rounded_graph_recovers_what_rounding_lost(
    student: nn.Module, teacher: nn.Module, digits: Digits
) -> None:
    rounded = quantize_after_training(student, digits, float_units=[], per_channel=True)
    lost = top1(rounded, digits)
    graph = prepare_trainable(student, digits)
    train_model(graph.train(), teacher, digits, steps=60, lr=2e-3)
    trained = top1(graph.eval(), digits)
    copy_tensors(graph.graph.state_dict(), student)
    converted = convert(graph.graph)
    assert trained > lost + 0.1
    assert top1(converted, digits) == pytest.approx(trained, abs=0.01)
    # The float weights are those of the trained graph.
    assert top1(student, digits) > trained - 0.05


def test_ranges_are_frozen_in_eval_mode(teacher: nn.Module, digits: Digits) -> None:
    graph = prepare_trainable(teacher, digits)

    def list_maxima() -> list[Tensor]:
        state = graph.state_dict()
        return [each.clone() for name, each in state.items() if name.endswith("max_val")]

    before = list_maxima()
    assert before
    graph.eval()(10 * digits[0][:8])
    assert all(map(torch.equal, before, list_maxima()))
    graph.train()(10 * digits[0][:8])
    assert not all(map(torch.equal, before, list_maxima()))


@pytest.mark.slow
def test_the_program_computes_the_graph_in_integers(
    teacher: nn.Module, digits: Digits, tmp_path: Path
) -> None:
    converted = quantize_after_training(teacher, digits, float_units=["conv1"], per_channel=True)
    image = digits[0][1200:]
    save(converted, PIXELS, tmp_path / "q.pt2")
    lower(converted, PIXELS, tmp_path / "q.pte")
    with torch.no_grad():
        expected = torch.export.load(tmp_path / "q.pt2").module()(image)
        logits = Lowered(tmp_path / "q.pte")(image)
    program = (tmp_path / "q.pte").read_bytes()
    assert b"XNNPACK" in program or b"XnnpackBackend" in program
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    assert (logits.argmax(dim=1) == expected.argmax(dim=1)).float().mean() > 0.98
    # The program is not the float model.
    assert (logits - teacher(image)).abs().max() > 1e-5
    models = {"float": (teacher, PIXELS), "int8": (Lowered(tmp_path / "q.pte"), PIXELS)}
    assert all(seconds.min() > 0 for seconds in time_models(models).values())
    (tmp_path / "broken.pte").write_bytes(program[:1000])
    with pytest.raises(RequestError, match=r"broken.pte' can't be run"):
        Lowered(tmp_path / "broken.pte")


def test_without_torchao_the_error_names_what_to_install() -> None:
    with (
        patch.dict("sys.modules", {"torchao.quantization.pt2e": None}),
        pytest.raises(RequestError, match=r"pip install kd_app\[deploy\]"),
    ):
        load_pt2e()
