from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_app.config.redact import hide_secrets, redact, relativize


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
    [
        *("token", "hub_token", "api_key", "wandb.apikey", "PASSWORD", "aws_secret"),
        *("credentials", "signing_key", "GITHUB_PAT", "db_pwd", "db.pass", "sentry-dsn"),
    ],
)
def test_keys_named_like_a_secret_are_removed(key: str) -> None:
    assert redact({"kwargs": {key: "x", "num_tokens": 4}}) == {"kwargs": {"num_tokens": 4}}


def test_a_loss_term_is_no_secret() -> None:
    config = {"loss": {"hard_token": {"weight": 1.0}}}
    assert redact(config) == hide_secrets(config) == config


def test_secrets_are_hidden_where_keys_and_paths_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_TOKEN", "abcdefgh1234")
    hidden = hide_secrets(
        {
            "data": {"root": "/tmp/x", "url": "https://me:hunter2@example.org/x"},
            "mine": {"token": "x", "text": "auth=abcdefgh1234", "lr": 0.1},
            "abcdefgh1234": None,
        }
    )
    assert hidden == {
        "data": {"root": "/tmp/x", "url": "https://***@example.org/x"},
        "mine": {"token": "***", "text": "auth=***", "lr": 0.1},
        "***": None,
    }


def test_values_of_secret_variables_are_removed_from_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_TOKEN", "abcdefgh1234")
    assert redact(["x?auth=abcdefgh1234"]) == ["x?auth=***"]


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("SIGNING_KEY", "s3cr3t-1", "s3cr3t-1"),
        ("GITHUB_PAT", "s3cr3t-2", "s3cr3t-2"),
        ("DB_PWD", "s3cr3t-3", "s3cr3t-3"),
        ("DB_PASS", "s3cr3t-4", "s3cr3t-4"),
        ("SENTRY_DSN", "https://s3cr3t-5@example.org/1", "s3cr3t-5"),
        ("DATABASE_URL", "postgres://me:s3cr3t%2D6@db/x", "s3cr3t-6"),
        ("DATABASE_URL", "postgres://me:hunter2@db/x", "hunter2"),
        ("ANYTHING", "redis://:s3cr3t-7@db", "s3cr3t-7"),
    ],
)
def test_values_of_secret_variables_are_removed_from_texts_and_keys(
    name: str, value: str, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert redact([f"x {secret}!", {f"a{secret}": value}]) == [
        "x ***!",
        {"a***": "***" if name == "SENTRY_DSN" or "://" not in value else redact(value)},
    ]
    assert secret not in str(redact(value))


def test_the_working_directory_is_not_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "runs-of-today")
    monkeypatch.setenv("GIT_ASKPASS", "helper-of-git")
    assert redact("runs-of-today/helper-of-git") == "runs-of-today/helper-of-git"


@pytest.mark.parametrize(
    "token",
    [
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
        "glpat-abcdefghij0123456789",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.abc",
    ],
)
def test_tokens_of_services_are_removed(token: str) -> None:
    assert redact(f"try {token}") == "try ***"


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
@settings(max_examples=50)
def test_redacted_texts_do_not_contain_the_home_folder_and_redacting_is_idempotent(
    value: Any,
) -> None:
    once = redact(value)
    assert f"{Path.home()}/" not in str(once)
    assert redact(once) == once
