"""What ``make dist`` builds: sdist and wheel hold the sources and no data, and the
wheel runs where nothing of the checkout is.
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[1]


WORDS = ("debug=fdr", "logger=[csv]", "teacher.name=resnet8", "trainer=cpu", "out=run")
"""A run on digits of two batches."""


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with sdist and wheel, built without a network."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel"]
    result = subprocess.run(
        [*build, "-d", str(folder)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def wheel_folder(distribution: Path) -> Path:
    (wheel,) = distribution.glob("kd_app-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(distribution / "unpacked")
    return distribution / "unpacked"


def list_tracked() -> set[str]:
    """The files of the repository that git knows."""
    command = ["git", "-C", str(REPOSITORY), "ls-files"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_the_sdist_holds_sources_and_nothing_else(distribution: Path) -> None:
    (path,) = distribution.glob("kd_app-*.tar.gz")
    with tarfile.open(path) as archive:
        assert all(member.isfile() and member.mode & 0o7000 == 0 for member in archive)
        names = {member.name.partition("/")[2] for member in archive}
    folders = {"kd_app", "hydra_plugins", "conf", "sweeps"}
    files = {"README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md", "constraints.txt"}
    expected = {
        name
        for name in list_tracked()
        if name.partition("/")[0] in folders or name in {*files, "pyproject.toml", ".gitignore"}
    }
    assert names - {"PKG-INFO"} == expected


def test_both_files_hold_no_data_and_are_small(distribution: Path, wheel_folder: Path) -> None:
    kinds = {path.suffix for path in wheel_folder.rglob("*") if path.is_file()}
    sources = {".py", ".yaml", ".typed", ".css", ".js", ".jinja", ".html", ".json"}
    assert kinds - sources - {""} == {".txt"}  # the entry points
    assert not {path.name for path in wheel_folder.rglob("*")} & {"runs", "wandb", "__pycache__"}
    assert all(path.stat().st_size < 2**21 for path in distribution.iterdir() if path.is_file())


@pytest.mark.slow
def test_the_installed_wheel_runs_in_an_empty_environment(
    distribution: Path, tmp_path: Path
) -> None:
    (wheel,) = distribution.glob("kd_app-*.whl")
    environment, work = tmp_path / "environment", tmp_path / "work"
    work.mkdir()
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    run([sys.executable, "-m", "pip", "--python", str(python), *install], tmp_path)
    # The dependencies, but not kd_app: .pth files in this folder are not read, so an
    # editable installation there has no effect.
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    where = run([str(python), "-c", "import kd_app; print(kd_app.__file__)"], work)
    assert where.strip() == str(packages / "kd_app" / "__init__.py")
    command = str(environment / "bin" / "kd-distill")
    version = wheel.name.split("-")[1]
    assert run([command, "--version"], work) == f"kd-distill {version}\n"
    assert "Groups (<group>=<choice>" in run([command, "--help"], work)
    assert "Everything is in run" in run([command, *WORDS], work)
    assert (work / "run" / "student" / "model.safetensors").is_file()
    sweep = "import hydra_plugins; print(*hydra_plugins.__path__)"
    assert str(packages) in run([str(python), "-c", sweep], work)


def run(command: list[str], folder: Path) -> str:
    """The output of a command in a folder, without the checkout on Python's path."""
    environment = {key: os.environ[key] for key in os.environ if key != "PYTHONPATH"}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_wheel_holds_all_of_conf_and_all_of_the_package(wheel_folder: Path) -> None:
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
            path.relative_to(wheel_folder / where) for path in (wheel_folder / where).rglob(pattern)
        )
        assert all(
            (wheel_folder / where / file).read_bytes() == (REPOSITORY / kept / file).read_bytes()
            for file in files
        )
    assert {path.name.split("-")[0] for path in wheel_folder.iterdir()} == {
        "kd_app",
        "hydra_plugins",
    }  # no tests, no benchmarks beside it


def test_commands_and_license_are_declared(wheel_folder: Path) -> None:
    (info,) = wheel_folder.glob("*.dist-info")
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
    wheel_folder: Path, tmp_path: Path
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
    environment = {**os.environ, "PYTHONPATH": str(wheel_folder)}
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.split() == [
        str(wheel_folder / "kd_app" / "__init__.py"),
        str(wheel_folder / "kd_app" / "conf"),
        "folder",
    ]
    assert result.returncode == 2
    assert "Did you mean 'soft_target'?" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_tag_publishes_without_a_stored_secret() -> None:
    text = (REPOSITORY / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    rights = {name: job.get("permissions", {}) for name, job in jobs.items()}
    assert rights == {
        "build": {},
        "publish": {"id-token": "write"},
        "page": {"contents": "write"},
    }
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    assert "secrets." not in text
    assert jobs["publish"]["needs"] == "build"
    assert "make dist" in [step.get("run") for step in jobs["build"]["steps"]]


def test_the_lock_holds_every_dependency_within_its_range(wheel_folder: Path) -> None:
    (info,) = wheel_folder.glob("*.dist-info")
    lines = (info / "METADATA").read_text(encoding="utf-8").splitlines()
    needed = [
        Requirement(line.removeprefix("Requires-Dist: "))
        for line in lines
        if line.startswith("Requires-Dist: ")
    ]
    pins = [
        line.split("==")
        for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    ]
    lock = {canonicalize_name(name): version for name, version in pins}
    unlocked = [
        each.name
        for each in needed
        # the extra heic is installed by nobody but who asks for it: its wheels are LGPL
        if each.name not in ("kd_app", "pi-heif")
        and not each.specifier.contains(lock.get(canonicalize_name(each.name), "0"))
    ]
    assert unlocked == []
