"""Ensembles, class maps, files of other runtimes, and the readable outputs of such
teachers.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import kd_app.models.small  # noqa: F401
from kd_app.config import Decoding, InputSpec, RequestError
from kd_app.models.class_map import ClassMap, ClassMapLayer, ClassMappedModel
from kd_app.models.class_names import ModelClasses
from kd_app.models.composite import By, EnsembleModel, RuntimeModel, find_model_classes
from kd_app.models.taps import Taps
from kd_app.models.teacher import FrozenTeacher
from kd_app.models.weights_source import WeightsRecord
from tests.models.test_spec import request

PIXELS = InputSpec(1, 8, 8, (0.25,), (0.5,))
DECODING = Decoding(PIXELS.channels, 320)


class ConstantModel(nn.Module):
    """Returns the same probabilities for every image."""

    def __init__(self, *probabilities: float) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(probabilities).log() + 3.0)

    def forward(self, image: Tensor) -> Tensor:
        return self.get_buffer("logits").expand(len(image), -1)


def average(by: By, shares: list[float], *members: nn.Module) -> Tensor:
    model = EnsembleModel(
        {str(number): (member, PIXELS) for number, member in enumerate(members)}, shares, by, PIXELS
    )
    probabilities: Tensor = model(torch.zeros(2, 1, 8, 8)).exp()
    return probabilities


def test_the_mean_of_several_teachers_is_that_of_their_probabilities_by_weight() -> None:
    expected = torch.tensor([[0.25 * 0.8 + 0.75 * 0.5, 0.25 * 0.2 + 0.75 * 0.5]]).expand(2, 2)
    torch.testing.assert_close(
        average("mean", [1.0, 3.0], ConstantModel(0.8, 0.2), ConstantModel(0.5, 0.5)), expected
    )


def test_by_confidence_the_surer_member_counts_more() -> None:
    sure, unsure = (
        1 + (0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2),
        1 + (0.6 * math.log(0.6) + 0.4 * math.log(0.4)) / math.log(2),
    )
    first = (sure * 0.9 + unsure * 0.4) / (sure + unsure)
    torch.testing.assert_close(
        average("confidence", [1.0, 1.0], ConstantModel(0.9, 0.1), ConstantModel(0.4, 0.6)),
        torch.tensor([[first, 1 - first]]).expand(2, 2),
    )


def test_members_with_uniform_predictions_still_count() -> None:
    torch.testing.assert_close(
        average("confidence", [1.0, 1.0], ConstantModel(0.5, 0.5), ConstantModel(0.5, 0.5)),
        torch.full((2, 2), 0.5),
    )


class CountingNet(nn.Sequential):
    """A net that counts its calls."""

    calls = 0

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = super().forward(image)  # type: ignore[no-untyped-call]
        return logits


def test_a_member_is_read_by_name_and_runs_once_per_batch() -> None:
    one, other = (
        CountingNet(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 2)) for width in (3, 5)
    )
    model = EnsembleModel(
        {"one": (one, PIXELS), "other": (other, PIXELS)}, [1.0, 3.0], "mean", PIXELS
    )
    image = torch.randn(4, 1, 8, 8)
    teacher = FrozenTeacher(
        model,
        reads=frozenset({"logits"}),
        pixels=PIXELS,
        sees=PIXELS,
        members={"other": frozenset({"embedding"})},
    )
    teacher(image)  # measures
    before = one.calls, other.calls
    outputs = teacher(image)
    assert (one.calls - before[0], other.calls - before[1]) == (1, 1)
    torch.testing.assert_close(outputs.logits, model(image))
    torch.testing.assert_close(outputs.members["other"].embedding, other[1](image.flatten(1)))
    assert list(outputs.members) == ["other"]


def test_mapped_logits_are_summed_probabilities() -> None:
    logits = torch.randn(3, 5)
    p = logits.softmax(dim=-1)
    mapped = ClassMapLayer([[0, 3], [1]])(logits).softmax(dim=-1)
    sums = torch.stack([p[:, 0] + p[:, 3], p[:, 1]], dim=1)
    torch.testing.assert_close(mapped, sums / sums.sum(dim=1, keepdim=True))


def test_a_mapped_model_has_maps_and_a_classifier_of_the_data_s_classes() -> None:
    torch.manual_seed(0)
    net = timm.create_model("resnet8", num_classes=5).eval()
    model, image = ClassMappedModel(net, [[0, 3], [1], [4]]), torch.randn(2, 3, 16, 16)
    outputs = Taps(model, frozenset({"logits", "embedding", "classifier", "features"}))(image)
    assert outputs.classifier is not None
    assert outputs.embedding is not None
    torch.testing.assert_close(outputs.logits, model(image))
    torch.testing.assert_close(outputs.classifier(outputs.embedding), model(image))
    assert len(outputs.features) == 3
    alone = Taps(model, frozenset({"logits"}))(image).logits
    assert alone is not None
    assert alone.shape == (2, 3)


DECODING = Decoding(3, 320)


@dataclass
class FakeArtifact:
    """A stand-in for a file of another runtime: returns pixels of its input as
    logits.
    """

    classes: tuple[str, ...] = ("a", "b")
    pixels: InputSpec = PIXELS
    decoding: Decoding = DECODING

    def infer_logits(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        return images.reshape(len(images), -1)[:, :2].astype(np.float32)


def test_a_file_gets_the_original_uint8_images() -> None:
    raw = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    image = (raw / 255 - PIXELS.mean[0]) / PIXELS.std[0]
    torch.testing.assert_close(RuntimeModel(FakeArtifact())(image), raw.flatten(1)[:, :2].float())


@pytest.mark.parametrize(
    "model",
    [
        RuntimeModel(FakeArtifact()),
        EnsembleModel({"a": (ConstantModel(0.5, 0.5), PIXELS)}, [1.0], "mean", PIXELS),
    ],
)
def test_a_model_with_only_logits_is_refused_with_a_reason_and_alternatives(
    model: nn.Module,
) -> None:
    with pytest.raises(
        RequestError,
        match=(
            r"features: (a file|several teachers).*Available: logits. Terms that read only"
            r" logits: soft_target"
        ),
    ):
        Taps(model, frozenset({"logits", "features"}))(torch.zeros(2, 1, 8, 8))


def write_class_map(folder: Path, *rows: str, head: str = "teacher,class") -> ClassMap:
    (folder / "map.csv").write_text("\n".join([head, *rows]), encoding="utf-8")
    return ClassMap(folder / "map.csv")


def test_a_row_names_a_class_or_its_number(tmp_path: Path) -> None:
    known = ModelClasses(4, ("cat", "dog", "car", "3"))
    assert write_class_map(tmp_path, "cat,animal", "1,animal", "3,thing", "car,thing").map_rows(
        ["thing", "animal"], known
    ) == [[2, 3], [0, 1]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["cat,animl", "car,thing"], "row 2: .*Did you mean 'animal'"),
        (["caat,animal", "car,thing"], "row 2: .*Did you mean 'cat'"),
        (["9,animal", "car,thing"], "teacher='9' is none of the teacher's 3 classes.*from 0 to 2"),
        (["cat,animal"], "no row for 1 of the data's 2 classes .'thing'"),
    ],
)
def test_a_row_that_names_nothing_is_refused_with_its_line(
    rows: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        write_class_map(tmp_path, *rows).map_rows(
            ["animal", "thing"], ModelClasses(3, ("cat", "dog", "car"))
        )


@pytest.mark.parametrize(
    ("head", "rows"),
    [
        ("\ufeffteacher;class", ["cat;animal", "car;thing"]),
        ("Class\tnote\tTeacher", ["animal\t,\tcat", "thing\t,\tcar"]),
        ("imagenet|mine", ["cat|animal", "2|thing"]),
        ("to,from", ["animal,cat", "thing,car"]),
    ],
)
def test_a_class_map_of_a_spreadsheet_is_read(head: str, rows: list[str], tmp_path: Path) -> None:
    table = write_class_map(tmp_path, *rows, head=head)
    teacher = ModelClasses(3, ("cat", "dog", "car"))
    assert table.map_rows(["animal", "thing"], teacher) == [[0], [2]]


@pytest.mark.parametrize(
    ("head", "rows", "message"),
    [
        ("from,to", ["a,b"], "has the columns from, to and 1 rows. Expected a CSV file with the"),
        ("from,to,note", ["cat,animal,x"], "has the columns from, to, note and 1 rows"),
        ("class", ["animal"], "has the columns class and 1 rows"),
        ("teacher,class", [], "and 0 rows"),
        ("cat,animal", ["car,thing"], "has no header: its first row is cat, animal"),
    ],
)
def test_a_file_of_other_columns_is_refused(
    head: str, rows: list[str], message: str, tmp_path: Path
) -> None:
    teacher = ModelClasses(3, ("cat", "dog", "car"))
    with pytest.raises(RequestError, match=message):
        write_class_map(tmp_path, *rows, head=head).map_rows(["animal", "thing"], teacher)


def test_a_class_map_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"The class map .* can't be read: No such file"):
        ClassMap(tmp_path / "none.csv")


def test_imagenet_s_classes_are_known_by_their_wordnet_numbers() -> None:
    classes = find_model_classes(request(name="resnet18.a1_in1k"))
    assert classes.count == 1000
    assert classes.names[0] == "n01440764"


def test_weights_with_an_unknown_number_of_classes_can_t_be_mapped() -> None:
    unknown = request(name="resnet8")
    unknown.record = WeightsRecord(ModelClasses())  # a file without a classifier
    with pytest.raises(
        RequestError, match="No classifier was found in the weights of the teacher resnet8"
    ):
        find_model_classes(unknown)
