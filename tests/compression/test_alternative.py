"""The alternative is a model of about the cost that compression reached."""

import pytest

from kd_app.compression.alternative import Alternative, parse_model
from kd_app.config import RequestError
from kd_app.run.workspace import Workspace
from tests.builders import build_workspace

CANDIDATES = ({"name": "resnet8"}, {"name": "resnet14"}, {"name": "resnet20"})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    overrides = ("teacher=none", "loss=[cross_entropy]", "controls=[]", "student.name=resnet20")
    return build_workspace(tmp_path_factory.mktemp("run"), *overrides)


def test_an_entry_without_kwargs_has_none() -> None:
    model = parse_model({"name": "resnet8", "kwargs": {"stem_stride": 2}})
    assert (model.role, model.name, model.kwargs) == ("student", "resnet8", {"stem_stride": 2})
    assert parse_model({"name": "resnet8"}).kwargs == {}


def test_the_closest_candidate_is_selected(workspace: Workspace) -> None:
    alternative = Alternative("auto", CANDIDATES)
    assert alternative._select_spec(workspace, 1).name == "resnet8"
    assert alternative._select_spec(workspace, 10**12).name == "resnet20"


def test_a_named_model_is_used_as_it_is(workspace: Workspace) -> None:
    assert Alternative("resnet14", CANDIDATES)._select_spec(workspace, 1).name == "resnet14"


def test_without_a_candidate_for_the_images_the_error_says_what_to_set(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd_app.compression.alternative.list_candidates", lambda *_: [])
    with pytest.raises(RequestError, match="accepts images of 8x8 and starts like the run's"):
        Alternative("auto", CANDIDATES)._select_spec(workspace, 1)
