"""Reading of records: JSON and YAML files, which may come from somebody else.

Whatever is wrong with a record ends in a `RequestError` that names the file and the
key: `read_record` is the only way from a file to values.
"""

import json
from collections.abc import Callable, Hashable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from kd_app.config.errors import RequestError, take_first_line
from kd_app.config.regular_file import read_regular
from kd_app.config.values import check_values, shorten
from kd_app.digest import CHANGED, SELF, is_changed

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")
MAX_BYTES: Final = 2**26
"""Maximum size of a record: 64 MiB, many times the results for 20,000 classes."""
WRONG: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What Python and libraries raise for a file or value that is not the expected one."""
_MAX_YAML_BYTES: Final = 2**20
"""YAML is parsed in Python, a thousand times slower than JSON."""
_MAX_COMMAS: Final = 2**21
"""In a JSON record: its values take up to a hundred times the memory of their text."""


def load_record(path: Path, *, expected: str, is_sealed: bool = False) -> Any:
    """The plain values in a file: JSON, or YAML for ``.yaml`` and ``.yml``.

    expected: sentences for the error: what the file should be, and how to repair it.
    is_sealed: the record may hold its own hash, which is verified and left out.

    Raises `RequestError` if the file is missing, no regular file, above `MAX_BYTES`,
    not UTF-8, truncated, nested too deeply, has millions of values, has a value that
    `check_values` refuses, or has changed since it was sealed.
    """
    content = parse_text(path, read_text(path, expected=expected), expected=expected)
    if is_sealed and isinstance(content, dict):
        if is_changed(content):
            raise RequestError(f"{str(path)!r} {CHANGED} {expected}")
        content.pop(SELF, None)
    return content


def read_text(path: Path, *, expected: str) -> str:
    """The text of a regular file of up to `MAX_BYTES`; raises `RequestError` else."""
    try:
        return read_regular(path, MAX_BYTES).decode("utf-8")
    except FileNotFoundError:
        raise RequestError(f"There is no {str(path)!r}. {expected}") from None
    except OSError as error:
        reason = error.strerror or take_first_line(error)
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    raise _build_error(path, reason, expected)


def parse_text(path: Path, text: str, *, expected: str) -> Any:
    """The plain values in the `text` of a file, as `load_record`."""
    try:
        return parse_values(text, is_yaml=path.suffix in (".yaml", ".yml"))
    except RequestError as error:
        raise _build_error(path, str(error), expected) from None


def parse_values(text: str, *, is_yaml: bool = False) -> Any:
    """The plain values of a JSON or YAML text.

    Raises `RequestError` as `load_record`, without the name of a file.
    """
    if (len(text) > _MAX_YAML_BYTES) if is_yaml else (text.count(",") > _MAX_COMMAS):
        raise RequestError(f"it has {len(text):,} characters, more values than any such record has")
    try:
        content = _parse_yaml(text) if is_yaml else json.loads(text, parse_constant=_read_constant)
    except RequestError:
        raise
    except RecursionError:
        raise RequestError("it is nested too deeply") from None
    except ValueError as error:
        kind = "YAML" if is_yaml else "JSON"
        raise RequestError(
            f"it is truncated or not {kind} ({shorten(take_first_line(error))})"
        ) from None
    check_values(content)
    return content


def read_record(path: Path, schema: type[T], *, expected: str, is_sealed: bool = False) -> T:
    """Read a record of this `schema`: a pydantic model, a dataclass, or a type such as
    ``dict[str, float]``.

    Raises `RequestError` as `load_record` and `parse_record`.
    """
    content = load_record(path, expected=expected, is_sealed=is_sealed)
    return parse_record(path, content, schema, expected=expected)


def parse_record(path: Path, content: Any, schema: type[T], *, expected: str) -> T:
    """Validate the `content` of the file `path`; the file is for the error only.

    Raises `RequestError`, which names the key, if the content does not fit the schema.
    """
    from pydantic import ValidationError

    try:
        value: T = _build_adapter(cast("Hashable", schema)).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = f"{key}: {first['msg']}" if key else str(first["msg"])
        got = shorten(repr(first["input"]))
        raise _build_error(path, f"{reason} (got {got})", expected) from None
    return value


def parse_with(path: Path, parse: Callable[[], T], *, expected: str) -> T:
    """The value of `parse`, for records that are read without pydantic.

    Whatever `parse` raises for a wrong value becomes a `RequestError`.
    """
    try:
        return parse()
    except WRONG as error:
        reason = f"{type(error).__name__}: {take_first_line(error)}"
        if isinstance(error, RequestError):
            reason = str(error)
        raise _build_error(path, shorten(reason, 200), expected) from None


@cache
def _build_adapter(schema: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(schema)


def _build_error(path: Path, reason: str, expected: str) -> RequestError:
    return RequestError(f"{str(path)!r} can't be read: {reason.rstrip('.')}. {expected}")


def _read_constant(constant: str) -> None:
    """Read NaN and Infinity as null, the value of what is not finite in all records."""


def _parse_yaml(text: str) -> Any:
    import yaml

    from kd_app.config.plain_yaml import PlainLoader

    try:
        return yaml.load(text, Loader=PlainLoader)
    except (RequestError, RecursionError):
        raise
    except (yaml.YAMLError, *WRONG) as error:
        # a tag that does not fit its value ends in any of them
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
