"""Records that somebody changed: each reader, and all that use what it returns, end in
values or in a `RequestError`.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kd_app.config import RequestError, RunError
from kd_app.digest import hash_value
from tests.faults.conftest import Fault
from tests.faults.mutations import mutate
from tests.faults.readers import MANY, READERS, compose

MUTATIONS = 20_000 if MANY else 50
"""For each reader; where few are made, a tenth of them for slow ones."""


def sign(content: bytes) -> bytes:
    """The record with the hash that its reader expects, if it can have one."""
    try:
        record = json.loads(content)
        return json.dumps({**record, "sha256": hash_value(record)}).encode()
    except (ValueError, TypeError, RecursionError):
        return content


def read_or_explain(read: Callable[[], object], what: str) -> str:
    """The message of a `RequestError` or `RunError`; any other exception fails the
    test.
    """
    try:
        read()
    except (RequestError, RunError) as error:
        return str(error)
    except Exception as error:
        raise AssertionError(what) from error
    return ""


@pytest.mark.parametrize("name", READERS)
def test_a_changed_record_is_values_or_an_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    reader = READERS[name]
    monkeypatch.setattr("kd_app.specs.saved_config.compose_config", compose)
    record = reader.prepare(tmp_path)
    path, is_yaml = tmp_path / reader.file, reader.file.endswith(".yaml")
    plain = json.dumps(record).encode()
    path.write_bytes(sign(plain) if reader.sign else plain)
    reader.read(tmp_path)
    part = None if MANY else reader.part
    number = MUTATIONS if MANY or not reader.slow else MUTATIONS // 10
    for seed in range(number):
        content = mutate(record, seed, is_yaml=is_yaml, part=part)
        path.write_bytes(sign(content) if reader.sign else content)
        message = read_or_explain(partial(reader.read, tmp_path), f"mutation {seed} of {name}")
        assert "\n" not in message, seed
        message.encode()
    fault(
        f"a record was changed: {name}",
        happened="refused in one paragraph, or all that reads it works",
        lost="nothing",
        times=number,
    )
