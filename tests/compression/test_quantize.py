"""Int8: what it does to a tiny net, where it is measured, and the step from a run to a
run.
"""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, fx, nn

from kd_app.compression import graph as int8
from kd_app.compression.graph import (
    Learning,
    QuantizationProbe,
    calibrate,
    convert,
    prepare,
    put,
    trace,
)
from kd_app.compression.latency import measure_latencies, time_models
from kd_app.compression.quantize import Quantize
from kd_app.config import InputSpec, RequestError
from kd_app.config.compose import compose_config
from kd_app.deployment.xnnpack import Lowered, lower
from kd_app.run.spec import build_spec
from kd_app.stages import hash_file
from tests.builders import results
from tests.commands.call import done, refused
from tests.jobs.conftest import QUICK

PIXELS = InputSpec(1, 8, 8, (0.0,), (1.0,))


class Tiny(nn.Module):
    """Two convolutions with norms, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = (
            nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
        )
        self.fc = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        y: Tensor = self.fc(x.flatten(1))
        return y


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """Images 0..1 and labels."""
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(
        data.target
    )


def taught(
    net: nn.Module,
    teacher: nn.Module | None,
    digits: tuple[Tensor, Tensor],
    *,
    steps: int,
    lr: float,
) -> None:
    """Train on the labels or, where there is a teacher, on its answers."""
    image, target = digits[0][:1200], digits[1][:1200]
    optimizer, order = torch.optim.Adam(net.parameters(), lr=lr), torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(1200, (64,), generator=order)
        soft = teacher(image[rows]).detach().softmax(dim=1) if teacher else target[rows]
        nn.functional.cross_entropy(net(image[rows]), soft).backward()
        optimizer.step()
        optimizer.zero_grad()


def top1(net: nn.Module, digits: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float((net(digits[0][1200:]).argmax(dim=1) == digits[1][1200:]).float().mean())


@pytest.fixture(scope="module")
def teacher(digits: tuple[Tensor, Tensor]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Tiny()
    taught(net, None, digits, steps=150, lr=3e-3)
    return net.eval()


@pytest.fixture
def student(teacher: nn.Module, digits: tuple[Tensor, Tensor]) -> nn.Module:
    """Distilled, and with outliers: a channel four hundred times as large as the
    others, which the next layer takes back. It computes the same.
    """
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = Tiny()
    taught(net, teacher, digits, steps=150, lr=3e-3)
    net.eval()
    with torch.no_grad():
        loudest = int(net.bn1.weight.argmax())
        net.bn1.weight[loudest] *= 400
        net.bn1.bias[loudest] *= 400
        net.conv2.weight[:, loudest] /= 400
    return net


def shown(digits: tuple[Tensor, Tensor]) -> list[Tensor]:
    return list(digits[0][:256].split(64))


def after_training(
    net: nn.Module, digits: tuple[Tensor, Tensor], *, keep: list[str], per_channel: bool
) -> fx.GraphModule:
    prepared = prepare(trace(net, PIXELS), keep=keep, per_channel=per_channel, learns=False)
    calibrate(prepared, shown(digits))
    return convert(prepared)


def step(**settings: object) -> Quantize:
    known = {
        "images": 16,
        "epochs": 0,
        "lr": None,
        "terms": None,
        "keep_float": "auto",
        "divergence": 0.02,
        "per_channel": True,
    }
    return Quantize(**{**known, **settings})  # type: ignore[arg-type]


def test_folding_changes_no_answer_and_leaves_the_module_and_its_graph_the_same_weights(
    teacher: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    net, image = Tiny().eval(), digits[0][:7]
    put(net, teacher.state_dict())
    graph = trace(net, PIXELS)
    with torch.no_grad():
        torch.testing.assert_close(net(image), teacher(image), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(graph(image), teacher(image), rtol=1e-4, atol=1e-4)
    assert not any(node.target is torch.ops.aten.batch_norm.default for node in graph.graph.nodes)
    assert net.bn1.weight.eq(1).all()
    assert all(torch.equal(own, net.state_dict()[name]) for name, own in graph.state_dict().items())


def test_a_distilled_student_that_int8_makes_collapse_does_not_with_the_layers_in_float_that_auto_finds(
    student: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    before = top1(student, digits)
    assert before > 0.85
    assert top1(after_training(student, digits, keep=[], per_channel=False), digits) < before - 0.2
    probe = QuantizationProbe(trace(student, PIXELS), shown(digits), per_channel=True)
    keep, told = step().keep(probe)
    assert 0 < len(keep) < told["units"]
    assert told["divergence"] <= 0.02 < probe.measure_without([])
    assert max(told["sensitivity"], key=told["sensitivity"].__getitem__) in keep
    assert (
        top1(after_training(student, digits, keep=keep, per_channel=True), digits) > before - 0.02
    )


def test_distilling_the_rounded_graph_brings_back_what_rounding_lost(
    student: nn.Module, teacher: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    lost = top1(after_training(student, digits, keep=[], per_channel=True), digits)
    learning = Learning(prepare(trace(student, PIXELS), keep=[], per_channel=True, learns=True))
    calibrate(learning, shown(digits))
    taught(learning.train(), teacher, digits, steps=150, lr=1e-3)
    learned = top1(learning.eval(), digits)
    put(student, learning.graph.state_dict())
    converted = convert(learning.graph)
    assert learned > lost + 0.1
    assert top1(converted, digits) == pytest.approx(learned, abs=0.01)
    assert top1(student, digits) > learned - 0.05  # the float weights are the trained ones


def test_in_eval_mode_the_ranges_stay_as_they_are(
    teacher: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    learning = Learning(prepare(trace(teacher, PIXELS), keep=[], per_channel=True, learns=True))
    calibrate(learning, shown(digits))

    def largest() -> list[Tensor]:
        return [
            each.clone() for name, each in learning.state_dict().items() if name.endswith("max_val")
        ]

    before = largest()
    assert before
    learning.eval()(10 * digits[0][:8])
    assert all(map(torch.equal, before, largest()))
    learning.train()(10 * digits[0][:8])
    assert not all(map(torch.equal, before, largest()))


@pytest.mark.slow
def test_the_program_computes_in_integers_what_the_graph_says(
    teacher: nn.Module, digits: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    converted, image = (
        after_training(teacher, digits, keep=["conv1"], per_channel=True),
        digits[0][1200:],
    )
    int8.save(converted, PIXELS, tmp_path / "q.pt2")
    lower(converted, PIXELS, tmp_path / "q.pte")
    with torch.no_grad():
        expected = torch.export.load(tmp_path / "q.pt2").module()(image)
        found = Lowered(tmp_path / "q.pte")(image)
    assert (
        b"XNNPACK" in (tmp_path / "q.pte").read_bytes()
        or b"XnnpackBackend" in (tmp_path / "q.pte").read_bytes()
    )
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    assert (found.argmax(dim=1) == expected.argmax(dim=1)).float().mean() > 0.98
    assert (found - teacher(image)).abs().max() > 1e-5  # it is not the float net
    slow, fast = time_models(
        {"float": (teacher, PIXELS), "int8": (Lowered(tmp_path / "q.pte"), PIXELS)}
    ).values()
    assert slow.min() > 0 < fast.min()
    (tmp_path / "broken.pte").write_bytes((tmp_path / "q.pte").read_bytes()[:1000])
    with pytest.raises(RequestError, match=r"broken.pte' can't be run"):
        Lowered(tmp_path / "broken.pte")


@pytest.mark.slow
def test_latency_is_measured_of_a_model_that_measuring_left_with_channels_last(
    teacher: nn.Module, tmp_path: Path
) -> None:
    def build(
        name: str, config: object, inputs: object, write: Callable[[Path], None]
    ) -> SimpleNamespace:
        write(tmp_path)
        return SimpleNamespace(path=tmp_path)

    created = SimpleNamespace(
        model=deepcopy(teacher).to(memory_format=torch.channels_last),
        pixels=PIXELS,
        weights=SimpleNamespace(sha256=""),
    )
    shop: Any = SimpleNamespace(make=build, console=SimpleNamespace(say=pytest.fail))
    member: Any = SimpleNamespace(
        created=created, request=SimpleNamespace(name="tiny"), program=None
    )
    with patch("kd_app.compression.latency._SECONDS", 0.02):
        assert measure_latencies(shop, {"student": member})["student"] > 0


def test_layers_are_kept_by_their_name_or_that_of_what_they_lie_in() -> None:
    class Known:
        units = ("stem", "layer1.0.conv1", "layer1.0", "layer10")

        def only(self, unit: str) -> float:
            return 0.0

        def without(self, keep: list[str]) -> float:
            return 0.5

    assert step(keep_float=["layer1"]).keep(Known())[0] == ["layer1.0.conv1", "layer1.0"]  # type: ignore[arg-type]
    with pytest.raises(
        RequestError, match=r"There is no unit to keep in float 'stm'\. Did you mean 'stem'"
    ):
        step(keep_float=["stm"]).keep(Known())  # type: ignore[arg-type]


def test_without_torchao_it_says_what_to_install() -> None:
    with (
        patch.dict("sys.modules", {"torchao.quantization.pt2e": None}),
        pytest.raises(RequestError, match=r"pip install kd_app\[deploy\]"),
    ):
        step()


def test_terms_that_read_more_than_logits_are_refused_by_name_with_those_that_can_teach_a_graph() -> (
    None
):
    shop: Any = SimpleNamespace(
        parts=build_spec(
            compose_config("distill", ["loss=[cross_entropy,soft_target,feature_hint]"])
        )
    )
    member: Any = SimpleNamespace(created=None)
    with pytest.raises(
        RequestError,
        match=(
            r"term feature_hint reads more \(features\)."
            r" quantize.terms=\[cross_entropy,soft_target\]"
        ),
    ):
        step(epochs=1).take("quantize", shop, member, None)


WORDS = ("quantize.images=32",)


@pytest.fixture(scope="module")
def made_int8(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The made run, its student distilled on in int8, and what the command said."""
    out = tmp_path_factory.mktemp("int8") / "run"
    words = ("steps=[quantize]", "quantize.epochs=1", *WORDS)
    return out, done(
        f"run={made / 'run'}",
        *words,
        f"out={out}",
        f"stages={made / 'stages'}",
        command="kd-compress",
    )


@pytest.mark.slow
def test_what_comes_out_is_a_run_whose_student_is_measured_as_the_program_that_it_is(
    made: Path, made_int8: tuple[Path, str]
) -> None:
    before, after = results(made / "run"), results(made_int8[0])
    assert after["status"] == "finished"
    *_, line, instead = after["steps"]
    assert line["latency_ms"] == 1.0
    assert instead["told"]["macs"] == pytest.approx(
        line["macs"] / 2, abs=1
    )  # what int8 saves is in its latency
    assert line["name"] == "quantize"
    assert line["size_bytes"] == (made_int8[0] / "student" / "quantized.pte").stat().st_size
    assert line["told"]["epochs"] == 1
    assert line["params"] == before["models"]["student"]["params"]
    assert (made_int8[0] / "student" / "quantized.pt2").is_file()
    assert "the figures are those of `quantized.pte`" in (
        made_int8[0] / "student" / "README.md"
    ).read_text(encoding="utf-8")
    assert (made_int8[0] / "student" / "model.safetensors").is_file()
    assert (
        after["models"]["student"]["sha256"] != before["models"]["student"]["sha256"]
    )  # it was trained on
    done(
        f"run={made_int8[0]}",
        "out=measured",
        f"stages={made / 'stages'}",
        "limit=2",
        command="kd-evaluate",
    )
    assert results(Path("measured"))["test"]["student"] == after["test"]["student"]


@pytest.mark.slow
def test_the_second_time_the_stage_is_found_and_the_program_answers_as_before(
    made: Path, made_int8: tuple[Path, str]
) -> None:
    words = ("steps=[quantize]", "quantize.epochs=1", *WORDS)
    done(
        f"run={made / 'run'}",
        *words,
        "out=again",
        f"stages={made / 'stages'}",
        command="kd-compress",
    )
    again = results(Path("again"))
    assert {stage["made"] for stage in again["stages"]} == {"found"}
    assert again["test"]["student"] == results(made_int8[0])["test"]["student"]


@pytest.mark.slow
def test_no_step_goes_on_from_int8(made: Path, made_int8: tuple[Path, str]) -> None:
    said = refused(
        f"run={made_int8[0]}",
        "steps=[prune]",
        "prune.macs=0.5",
        "out=wrong",
        f"stages={made / 'stages'}",
        command="kd-compress",
    )
    assert "is quantized, and no step can go on from int8" in said
    said = refused(
        f"run={made / 'run'}",
        "steps=[quantize,prune]",
        "prune.macs=0.5",
        "out=wrong",
        command="kd-compress",
    )
    assert "Put quantize last: 'steps=[prune,quantize]'" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("quantize.epochs=1", "quantize.terms=[soft]"),
            "There is no loss term of the run 'soft'. Did you mean 'soft_target'?",
        ),
        (("quantize.images=0",), "images=0"),
        (("quantize.keep_float=some",), "keep_float='some'"),
    ],
)
def test_a_wrong_request_is_one_paragraph(words: tuple[str, ...], said: str, made: Path) -> None:
    assert said in refused(
        f"run={made / 'run'}",
        "steps=[quantize]",
        *words,
        "out=wrong",
        f"stages={made / 'stages'}",
        command="kd-compress",
    )


@pytest.mark.slow
def test_a_quantized_student_is_exported_as_the_program_that_it_is_or_said_to_be_its_float_weights(
    made: Path, made_int8: tuple[Path, str], tmp_path: Path
) -> None:
    words = (f"run={made_int8[0]}", f"stages={made / 'stages'}", *QUICK)
    out = tmp_path / "export"
    with patch("kd_app.run.exported_benchmark.measure_cold_start", lambda *_: {}):
        told = done(
            *words,
            f"out={out}",
            "formats=[onnx,onnx_int8,executorch,executorch_int8]",
            command="kd-export",
        )
    said = " ".join(told.split())
    assert (
        "model_int8.pte: the int8 program of a quantized student, as kd-compress wrote it" in said
    )
    assert (
        "model.onnx: from the float weights of a quantized student, not from its int8 program"
        in said
    )
    assert "The student is quantized: its figures in torch are those of its int8 program" in said
    files = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["files"]
    program = made_int8[0] / "student" / "quantized_uint8.pte"
    assert files["model_int8.pte"]["sha256"] == hash_file(program)
    assert files["model_int8.pte"]["input"]["dtype"] == "uint8"
    assert files["model_int8.pte"]["test"]["beside_torch"]["agreement"] > 0.99
    floats = ["model.onnx", "model_int8.onnx", "model.pte"]
    assert list(files) == [*floats, "model_int8.pte"]
    for name in floats:
        assert (
            files[name]["weights"]
            == "from the float weights of a quantized student, not from its int8 program; int8 has"
            " ranges of its own"
        )
        assert files[name]["sha256"] != hash_file(program)
        assert files[name]["test"]["beside_torch"]["agreement"] > 0.5, name
        assert files[name]["latency_ms"]["p50"] > 0
    (tmp_path / "run").mkdir()
    shutil.copytree(
        made_int8[0],
        tmp_path / "run",
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns(program.name),
    )
    moved = (
        f"run={tmp_path / 'run'}",
        f"stages={made / 'stages'}",
        "out=refused",
        "formats=[executorch_int8]",
        *QUICK,
    )
    assert "remake=[quantize] and overwrite=true" in refused(*moved, command="kd-export")
