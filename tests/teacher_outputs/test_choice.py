"""The format of a cache follows from what the loss terms read."""

import pytest

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.losses.distillation_loss import DistillationLoss
from kd_app.specs.spec import build_spec
from kd_app.tasks.classification import CLASSIFICATION
from kd_app.tasks.embedding import Embedding
from kd_app.teacher_outputs.choice import (
    CacheSetting,
    check_task_format,
    choose_embedding_format,
    choose_format,
    list_needs,
)
from kd_app.teacher_outputs.format import TermNeed


def losses(*words: str) -> dict[str, DistillationLoss]:
    config = compose_config("distill", ["controls=[]", "data.views=2", *words])
    return build_spec(config).build_teacher_losses()


def needs(*words: str) -> list[TermNeed]:
    return list_needs(losses(*words), CLASSIFICATION)


SOFT = "loss=[cross_entropy,soft_target]"


@pytest.mark.parametrize(
    ("words", "temperatures"),
    [
        ([SOFT, "loss.soft_target.temperature=1"], [1.0]),
        ([SOFT], [4.0]),
        (["loss=[soft_target]", "loss.soft_target.standardize=true"], [None]),
        (["loss=[cross_entropy,dist]", "loss.dist.temperature=1"], [1.0]),
        (["loss=[cross_entropy,nkd]", "loss.nkd.temperature=1"], [1.0]),
        (["loss=[cross_entropy,nkd]", "loss.nkd.temperature=2"], [None]),
        (["loss=[ttm]", "loss.ttm.power=0.5"], [2.0]),
        (["loss=[wttm]", "loss.wttm.power=0.5"], [None]),
        (["loss=[ctkd]"], [None]),
        (["loss=[multi_level]"], [None]),
    ],
)
def test_terms_state_the_temperature_at_which_they_read_the_teacher(
    words: list[str], temperatures: list[float | None]
) -> None:
    assert [need.temperature for need in needs(*words)] == temperatures


def no_width() -> int:
    raise AssertionError("the embedding is measured though it does not matter")


@pytest.mark.parametrize(
    ("words", "classes", "width", "name"),
    [
        ([SOFT], 10, None, "exact"),  # 40 bytes
        ([SOFT], 64, None, "exact"),
        ([SOFT], 100, None, "int8"),
        ([SOFT, "loss.soft_target.temperature=1"], 1000, 512, "int8"),  # top10 costs accuracy
        ([SOFT], 1000, 512, "int8"),
        ([SOFT], 21843, 768, "embedding"),
        ([SOFT], 21843, 2**20, "int8"),
        (["loss=[cross_entropy,rkd]"], 10, 64, "embedding"),
        (["loss=[cross_entropy,rkd,soft_target]"], 1000, 64, "embedding"),
    ],
)
def test_auto_is_the_smallest_format_that_serves_all_terms_at_no_cost_in_accuracy(
    words: list[str], classes: int, width: int | None, name: str
) -> None:
    format = choose_format(
        "auto", needs(*words), classes, no_width if width is None else lambda: width
    )
    assert format.name == name


@pytest.mark.parametrize(
    ("setting", "words", "message"),
    [
        ("top10", [SOFT], r"soft_target reads the probabilities at temperature 4.*exact or int8"),
        ("int8", ["loss=[cross_entropy,rkd]"], "rkd also reads embedding.*cache=embedding"),
        ("auto", ["loss=[cross_entropy,sp]"], "sp also reads features.*outputs=live"),
    ],
)
def test_a_format_that_can_not_serve_a_term_is_refused(
    setting: CacheSetting, words: list[str], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        choose_format(setting, needs(*words), 1000, no_width)


def test_a_format_that_is_useless_for_the_teacher_is_refused() -> None:
    at_one = needs(SOFT, "loss.soft_target.temperature=1")
    with pytest.raises(RequestError, match="int8 stores all 10 classes in 18"):
        choose_format("top10", at_one, 10, no_width)
    with pytest.raises(RequestError, match="provides no embedding"):
        choose_format("embedding", at_one, 10, lambda: None)


@pytest.mark.parametrize("setting", ["int8", "top10", "embedding"])
def test_what_a_classifier_says_is_not_stored_of_embeddings(setting: CacheSetting) -> None:
    with pytest.raises(RequestError, match=rf"cache={setting} .*cache=float16 or exact"):
        check_task_format(setting, Embedding())
    check_task_format(setting, CLASSIFICATION)


@pytest.mark.parametrize(
    ("setting", "width", "name"),
    [
        ("auto", 64, "exact"),
        ("auto", 65, "float16"),
        ("exact", 1280, "exact"),
        ("float16", 10, "float16"),
    ],
)
def test_embeddings_are_stored_in_float16_unless_they_are_small(
    setting: CacheSetting, width: int, name: str
) -> None:
    check_task_format(setting, Embedding())
    assert choose_embedding_format(setting, width).name == name
