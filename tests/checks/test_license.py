"""A license that forbids the run is refused; an unknown license is a warning."""

from pathlib import Path

from kd_app.checks.license import check_license
from tests.checks.planted import build_context, list_names, write_colored_photos


def test_a_forbidding_license_is_refused_until_accepted_and_an_unknown_one_is_a_warning(
    tmp_path: Path,
) -> None:
    overrides = (
        "data=folder",
        f"data.root={write_colored_photos(tmp_path / 'photos', images=8)}",
        "teacher.name=resnet8",
    )
    for license, name, severity in (
        ("cc-by-nc-4.0", "license-forbids", "refusal"),
        ("null", "license-unknown", "warning"),
    ):
        (finding,) = check_license(build_context(tmp_path, *overrides, f"data.license={license}"))
        assert (finding.name, finding.severity) == (name, severity)
    for accepted in (
        ("data.license=cc-by-nc-4.0", "license.accept=[cc-by-nc-4.0]"),
        ("data.license=mit",),
    ):
        assert not list_names(check_license(build_context(tmp_path, *overrides, *accepted)))
