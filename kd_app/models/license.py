"""Licenses of weights and data: what each allows, and the license of the shipped
student.

Distilling counts as derived use: the student is derived from the teacher's weights,
from its own initial weights, and from the data. The shipped student is therefore under
the strictest of their licenses. The order is explained in ``licenses.yaml``: first
licenses that forbid derived models, then those that forbid commercial use, then unknown
ones, then the entry that comes later in the file. The policy is a working rule, not
legal advice.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict

from kd_app.config import RequestError, build_unknown_error
from kd_app.config.records import parse_record, parse_text, read_text

POLICY = Path(__file__).with_name("licenses.yaml")
UNKNOWN, NONE = "unknown", "none"
"""Names for an undeclared license, and for random weights."""
Permission = bool | Literal["unknown"]


class _License(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    commercial: Permission
    derived: Permission
    notice: Permission
    also: list[str] = []
    link: str | None

    @property
    def forbids(self) -> str:
        """'commercial use', 'derived models', both, or an empty string."""
        uses = (("derived models", self.derived), ("commercial use", self.commercial))
        return " and ".join(use for use, permission in uses if permission is False)

    @property
    def is_open(self) -> bool:
        """Whether it is unknown what the license allows."""
        return not self.forbids and UNKNOWN in (self.commercial, self.derived)


class Policy:
    """What each license allows, read from `path`. Raises `RequestError` if the file is
    no policy.
    """

    def __init__(self, path: Path = POLICY) -> None:
        self.path = path
        self._entries = _read(path)
        self._names = {
            _normalize_spelling(each): name
            for name, entry in self._entries.items()
            for each in (name, *entry.also)
        }
        missing = {UNKNOWN, NONE} - set(self._entries)
        if missing:
            raise RequestError(
                f"The policy {str(path)!r} has no entry for {', '.join(sorted(missing))}. Start"
                f" from a copy of {POLICY}."
            )
        self._order = list(self._entries)

    def normalize_name(self, text: str | None) -> str:
        """Return the policy's name of a license: 'CC BY-NC 4.0' is 'cc-by-nc-4.0'. A
        license without an entry keeps its own name.
        """
        spelled = (text or "").strip().lower() or UNKNOWN
        return self._names.get(_normalize_spelling(spelled), spelled)

    def has_entry(self, name: str) -> bool:
        return name in self._entries

    def look_up(self, name: str) -> _License:
        """Return the entry of a license, or the entry of an unknown license."""
        return self._entries.get(name, self._entries[UNKNOWN])

    def find_strictest(self, *names: str) -> str:
        """Return the license of a work derived from works under these licenses."""
        return max(names, key=self._rank_strictness)

    def _rank_strictness(self, name: str) -> tuple[int, int]:
        entry = self.look_up(name)
        level = (
            3 if entry.derived is False else 2 if entry.commercial is False else int(entry.is_open)
        )
        return level, self._order.index(name) if name in self._entries else len(self._order)

    def check_known(self, names: Collection[str]) -> frozenset[str]:
        """Return the policy's names of these licenses. Raises `RequestError` for a
        license without an entry, with the closest name.
        """
        for name in names:
            if not self.has_entry(self.normalize_name(name)):
                raise build_unknown_error("license", name, self._entries)
        return frozenset(self.normalize_name(name) for name in names)


@dataclass(frozen=True)
class LicenseClaim:
    """The license of one source of the student: `declared` by the source, and
    `configured` by the setting `key`. `subject` describes the source in messages.
    """

    subject: str
    key: str
    declared: str | None
    configured: str | None = None

    def resolve_license(self, policy: Policy) -> str:
        """Return the license. Raises `RequestError` if source and setting disagree."""
        declared = policy.normalize_name(self.declared)
        configured = policy.normalize_name(self.configured)
        if UNKNOWN not in (declared, configured) and declared != configured:
            raise RequestError(
                f"{self.key}={self.configured!r}, but the license of {self.subject} is {declared}."
                f" Remove {self.key}: it is only for sources without a license of their own."
            )
        return configured if declared == UNKNOWN else declared


@dataclass(frozen=True)
class RunLicenses:
    """The licenses of one run: of the teacher's weights (None without a teacher), the
    student's initial weights, the data, and the shipped student.

    `forbidden` (and not accepted), `unknown`, `accepted` and `notices` hold sentences
    for the user.
    """

    teacher: str | None
    student_start: str
    data: str
    ships: str
    forbidden: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    names: tuple[str, ...] = field(default=(), repr=False)
    policy: Policy = field(default_factory=Policy, repr=False, compare=False)

    def to_record(self) -> dict[str, Any]:
        """Return the entry of results.json."""
        plain = {key: value for key, value in vars(self).items() if key not in ("names", "policy")}
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()
        }

    def resolve_trained_license(
        self, role: str, *, distilled: bool, start: str | None = None
    ) -> str:
        """Return the license of a model trained in this run.

        distilled: the model learns from the teacher. start: license of the initial
        weights, if they are not the student's.
        """
        if role == "teacher":
            assert self.teacher is not None
            return self.policy.find_strictest(self.teacher, self.data)
        initial = self.student_start if start is None else self.policy.normalize_name(start)
        return self.policy.find_strictest(
            initial, self.data, *([self.teacher] if distilled and self.teacher else [])
        )

    def check(self) -> None:
        """Raises `RequestError` for licenses that are forbidden and not accepted."""
        if self.forbidden:
            raise RequestError(
                f"{' '.join(self.forbidden)} A distilled model is a derived model, so the shipped"
                f" student would be under {self.ships}. Nothing was read. If this license suits"
                f" your use, accept it: 'license.accept=[{','.join(self.names)}]'. Otherwise"
                " choose other weights or data."
            )


def resolve_licenses(
    *,
    teacher: LicenseClaim | None,
    student_start: LicenseClaim,
    data: LicenseClaim,
    accept: Collection[str] = (),
    policy: Policy | None = None,
) -> RunLicenses:
    """Resolve the licenses of a run with these sources. Raises `RequestError` for an
    unknown name in `accept`, and for a setting that contradicts a source.
    """
    policy = policy or Policy()
    accepted = policy.check_known(accept)
    names = {
        part: part.resolve_license(policy)
        for part in (teacher, student_start, data)
        if part is not None
    }
    notes: dict[str, list[str]] = {"forbidden": [], "unknown": [], "accepted": [], "notices": []}
    for part, name in names.items():
        entry = policy.look_up(name)
        link = f" ({entry.link})" if entry.link else ""
        if entry.forbids and name in accepted:
            notes["accepted"].append(
                f"The license of {part.subject}, {name}{link}, forbids {entry.forbids}; it is"
                " accepted by license.accept."
            )
        elif entry.forbids:
            notes["forbidden"].append(
                f"The license of {part.subject}, {name}{link}, forbids {entry.forbids}."
            )
        elif entry.is_open:
            notes["unknown"].append(_describe_unknown(part, name, policy))
        if entry.notice is True:
            notes["notices"].append(
                f"{part.subject[0].upper()}{part.subject[1:]}: {name}{link} requires a notice."
            )
    refused = [
        name
        for name in dict.fromkeys(names.values())
        if policy.look_up(name).forbids and name not in accepted
    ]
    return RunLicenses(
        teacher=names[teacher] if teacher else None,
        student_start=names[student_start],
        data=names[data],
        ships=policy.find_strictest(*names.values()),
        names=(*sorted(accepted), *refused) if refused else (),
        policy=policy,
        **{key: tuple(sentences) for key, sentences in notes.items()},
    )


def _describe_unknown(part: LicenseClaim, name: str, policy: Policy) -> str:
    if name == UNKNOWN:
        return f"The license of {part.subject} is unknown; set it with {part.key}=<name>."
    if not policy.has_entry(name):
        return (
            f"The license of {part.subject}, {name}, is not in the policy {policy.path.name}, so"
            " its terms are unknown."
        )
    return f"The terms of the license of {part.subject}, {name}, are unknown."


def _normalize_spelling(text: str) -> str:
    return re.sub(r"-licen[sc]e$", "", re.sub(r"[\s_-]+", "-", text.lower()))


class _Licenses(TypedDict):
    licenses: dict[str, _License]


def _read(path: Path) -> dict[str, _License]:
    return _parse(path, read_text(path, expected=_EXPECTED))


@cache
def _parse(path: Path, text: str) -> dict[str, _License]:
    """The entries of a policy; cached, because a command reads the same policy several
    times.
    """
    content = parse_text(path, text, expected=_EXPECTED)
    return parse_record(path, content, _Licenses, expected=_EXPECTED)["licenses"]


_EXPECTED = f"It can't be read as a policy. Start from a copy of {POLICY}."
