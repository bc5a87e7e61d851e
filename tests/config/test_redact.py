from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_app.config.redact import redact, relativize


@pytest.mark.parametrize(
    ("expected", "last_part"),
    [
        ("/home/me/photos", "photos"),
        ("/home/me/my photos/", "my photos"),
        ("~/photos", "photos"),
        ("local-dir:/home/me/nets/teacher", "local-dir:teacher"),
        ("file:///tmp/nets/teacher", "teacher"),
        ("https://me:hunter2@example.org/home/x", "https://example.org/home/x"),
    ],
)
def test_a_machine_path_is_reduced_to_the_last_part(expected: str, last_part: str) -> None:
    assert redact(expected) == last_part


@pytest.mark.parametrize(
    "text",
    [
        "runs/fm",
        "hf-hub:timm/resnet50",
        "/m/01g317",
        "student / teacher",
        "https://example.org/tmp/x",
        "resnet50.a1_in1k",
        "n/a",
        "../photos",
    ],
)
def test_texts_that_only_look_like_paths_are_not_redacted(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "key",
    ["token", "hub_token", "api_key", "wandb.apikey", "PASSWORD", "aws_secret", "credentials"],
)
def test_keys_named_like_a_secret_are_removed(key: str) -> None:
    assert redact({"kwargs": {key: "x", "num_tokens": 4}}) == {"kwargs": {"num_tokens": 4}}


def test_values_of_secret_variables_are_removed_from_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_TOKEN", "abcdefgh1234")
    assert redact(["x?auth=abcdefgh1234"]) == ["x?auth=***"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["/home/me/photos/cat/1.png", "/home/me/photos/dog/1.png"], ["cat/1.png", "dog/1.png"]),
        (["/home/me/1.png"], ["1.png"]),
        (["cat/1.png", "dog/1.png"], ["cat/1.png", "dog/1.png"]),
        (["cat/1.png", "/home/me/photos/dog/1.png"], ["cat/1.png", "1.png"]),
        (["/home/me/1.png", "/tmp/x/1.png"], ["1.png", "1.png"]),
        ([], []),
    ],
)
def test_file_names_are_relative_to_the_common_folder(
    names: list[str], expected: list[str]
) -> None:
    assert relativize(names) == expected


def test_file_names_do_not_contain_the_user_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert relativize(["/home/me/photos/1.png", "/home/you/2.png"]) == ["1.png", "2.png"]


_PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.text(alphabet="ab/: ").map(lambda tail: f"{Path.home()}/{tail}"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(_PLAIN)
@settings(max_examples=50, deadline=None)
def test_redacted_texts_do_not_contain_the_home_folder_and_redacting_is_idempotent(
    value: Any,
) -> None:
    once = redact(value)
    assert f"{Path.home()}/" not in str(once)
    assert redact(once) == once
