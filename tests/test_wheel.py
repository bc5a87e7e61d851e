"""The wheel holds what the checkout holds: the configuration lies in it, and commands
compose from there.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
        "-w",
        str(folder),
    ]
    made = subprocess.run([*build, str(REPOSITORY)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("kd_app-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_the_wheel_holds_all_of_conf_and_all_of_the_package(unpacked: Path) -> None:
    for kept, pattern, where in (
        ("conf", "*.yaml", "kd_app/conf"),
        ("kd_app", "*.py", "kd_app"),
        ("kd_app/reporting/html", "page.*", "kd_app/reporting/html"),
        ("kd_app/models", "licenses.yaml", "kd_app/models"),
        ("kd_app", "py.typed", "kd_app"),
    ):
        files = sorted(
            path.relative_to(REPOSITORY / kept) for path in (REPOSITORY / kept).rglob(pattern)
        )
        assert len(files) > (20 if pattern.startswith("*") else 0)
        assert files == sorted(
            path.relative_to(unpacked / where) for path in (unpacked / where).rglob(pattern)
        )
        assert all(
            (unpacked / where / file).read_bytes() == (REPOSITORY / kept / file).read_bytes()
            for file in files
        )
    assert {path.name.split("-")[0] for path in unpacked.iterdir()} == {
        "kd_app",
        "hydra_plugins",
    }  # no tests, no benchmarks beside it


def test_commands_and_license_are_declared(unpacked: Path) -> None:
    (info,) = unpacked.glob("*.dist-info")
    assert "kd-distill = kd_app.commands.distill:main" in (info / "entry_points.txt").read_text(
        encoding="utf-8"
    )
    assert "kd-evaluate = kd_app.commands.evaluate:main" in (info / "entry_points.txt").read_text(
        encoding="utf-8"
    )
    assert "kd-report = kd_app.commands.report:main" in (info / "entry_points.txt").read_text(
        encoding="utf-8"
    )
    assert (info / "licenses" / "LICENSE").read_bytes() == (REPOSITORY / "LICENSE").read_bytes()
    assert "License-Expression: Apache-2.0" in (info / "METADATA").read_text(encoding="utf-8")


def test_a_command_composes_from_the_wheels_own_configuration(
    unpacked: Path, tmp_path: Path
) -> None:
    program = """
import kd_app
from kd_app.config.compose import compose_config
from kd_app.config.paths import CONF
config = compose_config("distill", ["data=folder", "experiment=feature"])
print(kd_app.__file__, CONF, config["data"]["name"])
import sys
sys.argv = ["kd-distill", "loss=[soft_targt]"]
from kd_app.commands.distill import main
main()
"""
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout.split() == [
        str(unpacked / "kd_app" / "__init__.py"),
        str(unpacked / "kd_app" / "conf"),
        "folder",
    ]
    assert ended.returncode == 2
    assert "Did you mean 'soft_target'?" in ended.stderr
    assert list(tmp_path.iterdir()) == []
