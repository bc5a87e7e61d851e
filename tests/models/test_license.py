"""What licenses allow, which license is the strictest, and the messages for a run."""

from pathlib import Path
from typing import Any

import pytest
import timm

from kd_app.config import RequestError
from kd_app.data.digits import Digits
from kd_app.data.fashion_mnist import FashionMNIST
from kd_app.models.license import POLICY, LicenseClaim, Policy, RunLicenses, resolve_licenses

DEFAULT = Policy()


def run(
    teacher: str | None, start: str | None = "none", data: str | None = "mit", **more: Any
) -> RunLicenses:
    """Resolve the licenses of a run with these parts. An empty string as `teacher`: no
    teacher.
    """
    return resolve_licenses(
        teacher=(
            LicenseClaim("the teacher's weights (big)", "teacher.license", teacher)
            if teacher != ""
            else None
        ),
        student_start=LicenseClaim(
            "the student's starting weights (small)", "student.license", start
        ),
        data=LicenseClaim("the data (photos)", "data.license", data),
        **more,
    )


def test_the_policy_has_every_license_that_timm_names() -> None:
    configs = [timm.get_pretrained_cfg(name) for name in timm.list_pretrained()]
    named = {config.license for config in configs if config is not None}
    assert len(named) > 10
    assert {name for name in named if not DEFAULT.has_entry(DEFAULT.normalize_name(name))} == set()


def test_the_policy_has_the_licenses_of_the_built_in_data() -> None:
    assert [DEFAULT.normalize_name(source.license) for source in (Digits, FashionMNIST)] == [
        "cc-by-4.0",
        "mit",
    ]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Apache-2.0", "apache-2.0"),
        ("Apache License 2.0", "apache-2.0"),
        ("Apache 2.0", "apache-2.0"),
        ("MIT License", "mit"),
        ("CC BY-NC 4.0", "cc-by-nc-4.0"),
        ("cc_by_nc_4.0", "cc-by-nc-4.0"),
        ("FAIR Noncommercial Research License", "fair-noncommercial-research-license"),
        ("DINOv3 License", "dinov3-license"),
        ("BSD", "bsd-3-clause"),
        ("CC0", "cc0-1.0"),
        ("other", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
        ("Beerware", "beerware"),
    ],
)
def test_spellings_come_to_one_name(written: str | None, name: str) -> None:
    assert DEFAULT.normalize_name(written) == name


@pytest.mark.parametrize(
    ("parts", "ships"),
    [
        (("none", "none", "mit"), "mit"),
        (("apache-2.0", "mit", "none"), "apache-2.0"),
        (("apache-2.0", "none", "cc-by-sa-4.0"), "cc-by-sa-4.0"),
        (("cc-by-nc-4.0", "none", "mit"), "cc-by-nc-4.0"),
        (("mit", "cc-by-nc-4.0", "mit"), "cc-by-nc-4.0"),
        (("mit", "none", "cc-by-nc-sa-4.0"), "cc-by-nc-sa-4.0"),
        (("cc-by-nc-4.0", "mit", "cc-by-nd-4.0"), "cc-by-nd-4.0"),
        (("mit", "none", None), "unknown"),
        (("cc-by-nc-4.0", "none", None), "cc-by-nc-4.0"),
        (("gemma", "none", "beerware"), "beerware"),
        (("", "none", "mit"), "mit"),
    ],
)
def test_the_strictest_license_is_that_of_what_ships(
    parts: tuple[str, str, str], ships: str
) -> None:
    assert run(*parts).ships == ships


def test_a_trained_teacher_and_a_control_are_under_what_they_are_made_from() -> None:
    licenses = run("cc-by-nc-4.0", "apache-2.0", "cc-by-sa-4.0")
    assert licenses.resolve_trained_license("teacher", distilled=False) == "cc-by-nc-4.0"
    assert licenses.resolve_trained_license("labels_only", distilled=False) == "cc-by-sa-4.0"
    assert (
        licenses.resolve_trained_license(
            "other_family", distilled=False, start="FAIR noncommercial"
        )
        == "fair-noncommercial-research-license"
    )
    assert licenses.resolve_trained_license("shuffled_teacher", distilled=True) == "cc-by-nc-4.0"
    assert (
        licenses.resolve_trained_license("student", distilled=True)
        == licenses.ships
        == "cc-by-nc-4.0"
    )


@pytest.mark.parametrize(
    ("parts", "whose", "forbids"),
    [
        (
            ("cc-by-nc-4.0", "none", "mit"),
            "the teacher's weights (big), cc-by-nc-4.0 (https://",
            "forbids commercial use",
        ),
        (
            ("mit", "seer-license", "mit"),
            "the student's starting weights (small), seer-license (https://",
            "forbids commercial use",
        ),
        (
            ("mit", "none", "imagenet"),
            "the data (photos), imagenet (https://",
            "forbids commercial use",
        ),
        (
            ("mit", "none", "cc-by-nc-nd-4.0"),
            "the data (photos), cc-by-nc-nd-4.0 (https://",
            "forbids derived models and commercial use",
        ),
    ],
)
def test_a_forbidding_license_is_refused_with_its_source_and_how_to_accept_it(
    parts: tuple[str, str, str], whose: str, forbids: str
) -> None:
    licenses = run(*parts)
    with pytest.raises(RequestError) as raised:
        licenses.check()
    name = whose.partition(", ")[2].partition(" ")[0]
    assert whose in str(raised.value)
    assert forbids in str(raised.value)
    assert f"'license.accept=[{name}]'" in str(raised.value)
    accepted = run(*parts, accept=[name.upper()])
    accepted.check()
    assert (accepted.forbidden, len(accepted.accepted)) == ((), 1)
    assert accepted.ships == licenses.ships == name


def test_all_forbidding_licenses_are_reported_together_and_accepted_one_by_one() -> None:
    licenses = run("cc-by-nc-4.0", "apple-amlr", "cc-by-nc-4.0", accept=["apple-amlr"])
    assert len(licenses.forbidden) == 2
    with pytest.raises(RequestError, match=r"'license.accept=\[apple-amlr,cc-by-nc-4.0\]'"):
        licenses.check()
    run("cc-by-nc-4.0", "apple-amlr", "cc-by-nc-4.0", accept=["apple-amlr", "cc-by-nc-4.0"]).check()


def test_an_unknown_license_is_reported_and_not_refused() -> None:
    licenses = run(None, "beerware", None)
    licenses.check()
    assert licenses.unknown == (
        (
            "The license of the teacher's weights (big) is unknown; set it with"
            " teacher.license=<name>."
        ),
        (
            "The license of the student's starting weights (small), beerware, is not in the policy"
            " licenses.yaml, so its terms are unknown."
        ),
        "The license of the data (photos) is unknown; set it with data.license=<name>.",
    )


def test_notices_that_have_to_be_kept_are_listed() -> None:
    assert [
        sentence.split(":")[0] for sentence in run("apache-2.0", "none", "cc0-1.0").notices
    ] == ["The teacher's weights (big)"]


def test_a_setting_adds_a_missing_license_and_never_contradicts_the_source() -> None:
    assert (
        LicenseClaim("the data", "data.license", None, "CC BY 4.0").resolve_license(DEFAULT)
        == "cc-by-4.0"
    )
    assert LicenseClaim("the data", "data.license", "MIT", "mit").resolve_license(DEFAULT) == "mit"
    with pytest.raises(
        RequestError, match=r"teacher.license='mit', but the license of the weights is cc-by-nc-4.0"
    ):
        LicenseClaim("the weights", "teacher.license", "cc-by-nc-4.0", "mit").resolve_license(
            DEFAULT
        )


def test_a_license_without_an_entry_is_not_accepted() -> None:
    with pytest.raises(
        RequestError, match=r"no license 'cc-by-nc-4'. Did you mean 'cc-by-nc-4.0'\?"
    ):
        run("mit", accept=["cc-by-nc-4"])


def test_a_custom_policy_is_a_changed_copy(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    text = POLICY.read_text(encoding="utf-8")
    mine.write_text(
        text + "  beerware: {commercial: no, derived: yes, notice: no, link: null}\n",
        encoding="utf-8",
    )
    assert run("beerware", policy=Policy(mine)).forbidden
    for wrong in (
        "licenses: [mit]",
        "licenses: {mit: {commercial: maybe}}",
        "nothing",
        "licenses: {",
        "licenses: {mit: {commercial: yes}}",
    ):
        mine.write_text(wrong, encoding="utf-8")
        with pytest.raises(RequestError, match="Start from a copy of"):
            Policy(mine)
    mine.write_text(text.replace("\n  unknown: {", "\n  nobody: {"), encoding="utf-8")
    with pytest.raises(RequestError, match="has no entry for unknown"):
        Policy(mine)
    with pytest.raises(RequestError, match="can't be read as a policy"):
        Policy(tmp_path / "nowhere.yaml")


def test_no_spelling_stands_for_two_licenses() -> None:
    spelled = [each for name in DEFAULT._entries for each in (name, *DEFAULT._entries[name].also)]
    assert len(spelled) == len(set(spelled))
