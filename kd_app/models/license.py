"""What the licenses of weights and data allow, and which one the student that ships is
under.

Distilling counts as derived use: the student is made from the teacher's weights, from
the weights that it started from, and from the data. So what ships is under the
strictest of their licenses, in the order that ``licenses.yaml`` explains: one that
forbids derived models, one that forbids commercial use, one that is unknown, then the
later in the file. It is a rule to act by, read from that file; it is no legal advice.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from kd_app.config import RequestError, build_unknown_error

POLICY = Path(__file__).with_name("licenses.yaml")
UNKNOWN, NONE = "unknown", "none"
"""The names for a license that nobody says, and for weights that are random."""
Answer = bool | Literal["unknown"]


class _License(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    commercial: Answer
    derived: Answer
    notice: Answer
    also: list[str] = []
    link: str | None

    @property
    def forbids(self) -> str:
        """'commercial use', 'derived models', both, or nothing."""
        return " and ".join(
            what
            for what, allowed in (
                ("derived models", self.derived),
                ("commercial use", self.commercial),
            )
            if allowed is False
        )

    @property
    def is_open(self) -> bool:
        """It is not known what it allows."""
        return not self.forbids and UNKNOWN in (self.commercial, self.derived)


class Policy:
    """What each license allows, as `path` says it. Raises `RequestError` where that is
    no policy.
    """

    def __init__(self, path: Path = POLICY) -> None:
        self.path = path
        self._known = _read(path)
        self._names = {
            _normalize_spelling(each): name
            for name, known in self._known.items()
            for each in (name, *known.also)
        }
        missing = {UNKNOWN, NONE} - set(self._known)
        if missing:
            raise RequestError(
                f"The policy {str(path)!r} says nothing of {', '.join(sorted(missing))}. Start from"
                f" a copy of {POLICY}."
            )
        self._order = list(self._known)

    def normalize_name(self, text: str | None) -> str:
        """A license by the policy's name for it: 'CC BY-NC 4.0' is 'cc-by-nc-4.0'; one
        that the policy does not have keeps its own.
        """
        spelled = (text or "").strip().lower() or UNKNOWN
        return self._names.get(_normalize_spelling(spelled), spelled)

    def has_entry(self, name: str) -> bool:
        """The policy says something of a license of that name."""
        return name in self._known

    def look_up(self, name: str) -> _License:
        """What it allows; of a license that the policy does not have nothing is known."""
        return self._known.get(name, self._known[UNKNOWN])

    def find_strictest(self, *names: str) -> str:
        """The license of what is made from things of these licenses."""
        return max(names, key=self._rank_strictness)

    def _rank_strictness(self, name: str) -> tuple[int, int]:
        known = self.look_up(name)
        level = (
            3 if known.derived is False else 2 if known.commercial is False else int(known.is_open)
        )
        return level, self._order.index(name) if name in self._known else len(self._order)

    def check_known(self, names: Collection[str]) -> frozenset[str]:
        """The policy's names for these. Raises `RequestError` for one that it does not
        have, with the closest.
        """
        for name in names:
            if not self.has_entry(self.normalize_name(name)):
                raise build_unknown_error("license", name, self._known)
        return frozenset(self.normalize_name(name) for name in names)


@dataclass(frozen=True)
class LicenseClaim:
    """Something that the student is made from: what it is in words, its license as its
    source has it, and as the setting `key` has it.
    """

    what: str
    key: str
    known: str | None
    said: str | None = None

    def resolve_license(self, policy: Policy) -> str:
        """Its license. Raises `RequestError` where the source and the setting disagree."""
        known, said = policy.normalize_name(self.known), policy.normalize_name(self.said)
        if UNKNOWN not in (known, said) and known != said:
            raise RequestError(
                f"{self.key}={self.said!r}, but the license of {self.what} is {known}. The setting"
                " is for what says no license itself: leave it out."
            )
        return said if known == UNKNOWN else known


@dataclass(frozen=True)
class Licenses:
    """The licenses of one run: of the teacher's weights (None without a teacher), the
    student's starting weights, the data, and what ships.

    What they mean for it, in sentences: forbidden (and not accepted), unknown,
    accepted, and notices that have to be kept.
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
        """As results.json holds it."""
        plain = {key: value for key, value in vars(self).items() if key not in ("names", "policy")}
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()
        }

    def resolve_trained_license(self, role: str, *, taught: bool, start: str | None = None) -> str:
        """The license of the weights of a model that is trained in this run: `taught`
        ones learn from the teacher.

        start: that of the weights it starts from, where they are not the student's.
        """
        if role == "teacher":
            assert self.teacher is not None
            return self.policy.find_strictest(self.teacher, self.data)
        begins = self.student_start if start is None else self.policy.normalize_name(start)
        return self.policy.find_strictest(
            begins, self.data, *([self.teacher] if taught and self.teacher else [])
        )

    def check(self) -> None:
        """Raises `RequestError` for what is forbidden and was not accepted."""
        if self.forbidden:
            raise RequestError(
                f"{' '.join(self.forbidden)} Distilling makes a derived model, so what ships would"
                f" be under {self.ships}. Nothing was read. If that suits what the student is for,"
                f" accept it: 'license.accept=[{','.join(self.names)}]'. Else choose other weights"
                " or data."
            )


def resolve_licenses(
    *,
    teacher: LicenseClaim | None,
    student_start: LicenseClaim,
    data: LicenseClaim,
    accept: Collection[str] = (),
    policy: Policy | None = None,
) -> Licenses:
    """What a run that is made from these three is under, and may not do. Raises
    `RequestError`: an unknown name is accepted, a setting is wrong.
    """
    policy = policy or Policy()
    accepted = policy.check_known(accept)
    given = {
        part: part.resolve_license(policy)
        for part in (teacher, student_start, data)
        if part is not None
    }
    said: dict[str, list[str]] = {"forbidden": [], "unknown": [], "accepted": [], "notices": []}
    for part, name in given.items():
        known = policy.look_up(name)
        link = f" ({known.link})" if known.link else ""
        if known.forbids and name in accepted:
            said["accepted"].append(
                f"The license of {part.what}, {name}{link}, forbids {known.forbids}; license.accept"
                " names it."
            )
        elif known.forbids:
            said["forbidden"].append(
                f"The license of {part.what}, {name}{link}, forbids {known.forbids}."
            )
        elif known.is_open:
            said["unknown"].append(_describe_unknown(part, name, policy))
        if known.notice is True:
            said["notices"].append(
                f"{part.what[0].upper()}{part.what[1:]}: {name}{link} asks for a notice."
            )
    refused = [
        name
        for name in dict.fromkeys(given.values())
        if policy.look_up(name).forbids and name not in accepted
    ]
    return Licenses(
        teacher=given[teacher] if teacher else None,
        student_start=given[student_start],
        data=given[data],
        ships=policy.find_strictest(*given.values()),
        names=(*sorted(accepted), *refused) if refused else (),
        policy=policy,
        **{key: tuple(sentences) for key, sentences in said.items()},
    )


def _describe_unknown(part: LicenseClaim, name: str, policy: Policy) -> str:
    if name == UNKNOWN:
        return f"The license of {part.what} is unknown; {part.key}=<name> says it."
    if not policy.has_entry(name):
        return (
            f"The license of {part.what}, {name}, is not in the policy {policy.path.name}, so what"
            " it allows is unknown."
        )
    return f"What the license of {part.what}, {name}, allows is unknown."


def _normalize_spelling(text: str) -> str:
    return re.sub(r"-licen[sc]e$", "", re.sub(r"[\s_-]+", "-", text.lower()))


def _read(path: Path) -> dict[str, _License]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {
            str(name): _License.model_validate(each) for name, each in content["licenses"].items()
        }
    except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(
            f"license.policy={str(path)!r} can't be read as a policy: {reason}. Start from a copy"
            f" of {POLICY}."
        ) from None
