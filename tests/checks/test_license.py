"""A license that forbids the run is a reason not to run; one that nobody knows is told."""

from pathlib import Path

from kd_app.checks.license import check_license
from tests.checks.planted import colored, names, subject


def test_a_license_that_forbids_the_run_is_refused_until_it_is_accepted_and_one_that_nobody_knows_is_told(
    tmp_path: Path,
) -> None:
    words = (
        "data=folder",
        f"data.root={colored(tmp_path / 'photos', images=8)}",
        "teacher.name=resnet8",
    )
    for said, name, weight in (
        ("cc-by-nc-4.0", "license-forbids", "refusal"),
        ("null", "license-unknown", "warning"),
    ):
        (found,) = check_license(subject(tmp_path, *words, f"data.license={said}"))
        assert (found.name, found.weight) == (name, weight)
    for fine in (
        ("data.license=cc-by-nc-4.0", "license.accept=[cc-by-nc-4.0]"),
        ("data.license=mit",),
    ):
        assert not names(check_license(subject(tmp_path, *words, *fine)))
