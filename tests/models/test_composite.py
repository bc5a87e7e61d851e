"""Several teachers as one, classes brought to the data's, and what can be read of such
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
from kd_app.config import InputSpec, RequestError
from kd_app.models.class_map import ClassMap, ClassMapLayer, ClassMappedModel, ModelClasses
from kd_app.models.composite import By, EnsembleModel, RuntimeModel, find_model_classes
from kd_app.models.spec import WeightsSource
from kd_app.models.taps import Taps
from kd_app.models.teacher import FrozenTeacher
from tests.models.test_spec import request

PIXELS = InputSpec(1, 8, 8, (0.25,), (0.5,))


class Says(nn.Module):
    """The same answer to every image."""

    def __init__(self, *probabilities: float) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(probabilities).log() + 3.0)

    def forward(self, image: Tensor) -> Tensor:
        return self.get_buffer("logits").expand(len(image), -1)


def together(by: By, shares: list[float], *members: nn.Module) -> Tensor:
    model = EnsembleModel(
        {str(number): (member, PIXELS) for number, member in enumerate(members)}, shares, by, PIXELS
    )
    answer: Tensor = model(torch.zeros(2, 1, 8, 8)).exp()
    return answer


def test_the_mean_of_several_teachers_is_that_of_their_probabilities_by_weight() -> None:
    expected = torch.tensor([[0.25 * 0.8 + 0.75 * 0.5, 0.25 * 0.2 + 0.75 * 0.5]]).expand(2, 2)
    torch.testing.assert_close(
        together("mean", [1.0, 3.0], Says(0.8, 0.2), Says(0.5, 0.5)), expected
    )


def test_by_confidence_the_surer_member_counts_more() -> None:
    sure, unsure = (
        1 + (0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2),
        1 + (0.6 * math.log(0.6) + 0.4 * math.log(0.4)) / math.log(2),
    )
    first = (sure * 0.9 + unsure * 0.4) / (sure + unsure)
    torch.testing.assert_close(
        together("confidence", [1.0, 1.0], Says(0.9, 0.1), Says(0.4, 0.6)),
        torch.tensor([[first, 1 - first]]).expand(2, 2),
    )


def test_members_that_know_nothing_still_answer() -> None:
    torch.testing.assert_close(
        together("confidence", [1.0, 1.0], Says(0.5, 0.5), Says(0.5, 0.5)), torch.full((2, 2), 0.5)
    )


class Counted(nn.Sequential):
    """A net that counts how often it is asked."""

    asked = 0

    def forward(self, image: Tensor) -> Tensor:
        self.asked += 1
        answer: Tensor = super().forward(image)  # type: ignore[no-untyped-call]
        return answer


def test_one_of_several_teachers_is_read_by_itself_and_runs_once_for_both() -> None:
    one, other = (
        Counted(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 2)) for width in (3, 5)
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
    before = one.asked, other.asked
    said = teacher(image)
    assert (one.asked - before[0], other.asked - before[1]) == (1, 1)
    torch.testing.assert_close(said.logits, model(image))
    torch.testing.assert_close(said.members["other"].embedding, other[1](image.flatten(1)))
    assert list(said.members) == ["other"]


def test_mapped_logits_are_summed_probabilities() -> None:
    logits = torch.randn(3, 5)
    p = logits.softmax(dim=-1)
    mapped = ClassMapLayer([[0, 3], [1]])(logits).softmax(dim=-1)
    sums = torch.stack([p[:, 0] + p[:, 3], p[:, 1]], dim=1)
    torch.testing.assert_close(mapped, sums / sums.sum(dim=1, keepdim=True))


def test_a_mapped_model_shows_its_maps_and_a_classifier_of_the_data_s_classes() -> None:
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


@dataclass
class File:
    """A file of another runtime that says what it was given."""

    classes: tuple[str, ...] = ("a", "b")
    pixels: InputSpec = PIXELS

    def infer_logits(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        return images.reshape(len(images), -1)[:, :2].astype(np.float32)


def test_a_file_is_given_back_the_bytes_that_were_normalized() -> None:
    raw = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    image = (raw / 255 - PIXELS.mean[0]) / PIXELS.std[0]
    torch.testing.assert_close(RuntimeModel(File())(image), raw.flatten(1)[:, :2].float())


@pytest.mark.parametrize(
    "model",
    [RuntimeModel(File()), EnsembleModel({"a": (Says(0.5, 0.5), PIXELS)}, [1.0], "mean", PIXELS)],
)
def test_what_gives_logits_alone_says_why_and_which_terms_can(model: nn.Module) -> None:
    with pytest.raises(
        RequestError,
        match=(
            r"features: (a file|several teachers).*It can give: logits. Terms that read logits"
            r" alone: soft_target"
        ),
    ):
        Taps(model, frozenset({"logits", "features"}))(torch.zeros(2, 1, 8, 8))


def written(folder: Path, *rows: str, head: str = "teacher,class") -> ClassMap:
    (folder / "map.csv").write_text("\n".join([head, *rows]), encoding="utf-8")
    return ClassMap(folder / "map.csv")


def test_a_row_names_a_class_or_its_number(tmp_path: Path) -> None:
    known = ModelClasses(4, ("cat", "dog", "car", "3"))
    assert written(tmp_path, "cat,animal", "1,animal", "3,thing", "car,thing").map_rows(
        ["thing", "animal"], known
    ) == [[2, 3], [0, 1]]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["cat,animl", "car,thing"], "line 2: .*Did you mean 'animal'"),
        (["caat,animal", "car,thing"], "line 2: .*Did you mean 'cat'"),
        (["9,animal", "car,thing"], "teacher='9' is none of the teacher's 3 classes.*from 0 to 2"),
        (["cat,animal"], "no row for 1 of the data's 2 classes .'thing'"),
    ],
)
def test_a_row_that_names_nothing_is_refused_with_its_line(
    rows: list[str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=said):
        written(tmp_path, *rows).map_rows(
            ["animal", "thing"], ModelClasses(3, ("cat", "dog", "car"))
        )


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has the columns from, to and 1 rows"):
        written(tmp_path, "a,b", head="from,to")


def test_imagenet_s_classes_are_known_by_their_wordnet_numbers() -> None:
    found = find_model_classes(request(name="resnet18.a1_in1k"))
    assert found.count == 1000
    assert found.names[0] == "n01440764"


def test_of_weights_of_unknown_classes_the_map_can_t_be_read() -> None:
    unknown = request(name="resnet8")
    unknown.origin = WeightsSource("file", "resnet8", Path("weights.safetensors"))
    with pytest.raises(
        RequestError, match="How many classes the teacher resnet8 answers in is not known"
    ):
        find_model_classes(unknown)
