"""The benchmarks of the README run."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import cifar, label_free, label_free_students, photos
from benchmarks.data_path import compare as compare_readers
from benchmarks.data_path import measure as measure_readers
from benchmarks.demo_candidates import CANDIDATES, EXTRACT, read_rows, render_table, write_rows
from benchmarks.exports import (
    TOLERANCE,
    Row,
    iterate_rows,
    render_page,
    try_export,
    try_export_in_process,
)
from benchmarks.gpu import EXACT, LAST_START, Report
from benchmarks.headline import Headline, describe_context, measure_headline, train_and_export
from benchmarks.lines import read_lines, write_lines
from benchmarks.models import parse_table
from benchmarks.photo_files import write_photos
from benchmarks.scale import split_groups, write_files
from benchmarks.sweep import build_overrides, train
from benchmarks.teacher_cache import build_format, describe_difference, measure_reading
from benchmarks.training_loop import compare
from kd_app.config import RequestError, RunError
from kd_app.config.compose import compose_config
from kd_app.reporting.exports import RatioEstimate
from kd_app.reporting.runs import write_curves
from kd_app.run_files import CURVES
from kd_app.specs.spec import build_spec
from kd_app.teacher_outputs.format import FORMATS
from tests.builders import teacher_folder


def test_the_training_loop_is_timed_beside_the_bare_one() -> None:
    (ratio,) = compare("resnet8_narrow", "resnet8_narrow", steps=2, rounds=1, skip=1)
    assert ratio > 0


@pytest.mark.parametrize("name", FORMATS)
def test_cached_rows_of_each_format_are_written_and_read(name: str, tmp_path: Path) -> None:
    format = build_format(name, 64)
    speed, _ = measure_reading(format, tmp_path, rows=4096, seconds=0.005)
    assert speed > 0


def test_the_difference_of_two_formats_has_an_interval_over_seeds() -> None:
    assert describe_difference("int8", 4, [0.1, -0.1, 0.3]) == (
        "int8, T=4: +0.10 points of test accuracy against exact"
        " (3 seeds, 95 % interval -0.40 to +0.60)"
    )
    assert describe_difference("int8", 4, [0.5]).endswith("(one seed, no interval)")


def test_finished_exports_are_read_from_the_journal(
    tmp_path: Path,
) -> None:
    known = {module: variant for module, (variant, _) in parse_table().items()}
    small, other = (
        Row(known["byobnet"], 0.5 * TOLERANCE, None),
        Row(known["resnet"], None, "The export did not finish within 1 s of processor time."),
    )
    results = {row.variant.module: row for row in (other, small)}
    with patch(
        "benchmarks.exports.parse_table", lambda: {name: (known[name], "") for name in results}
    ):
        with patch(
            "benchmarks.exports.try_export_in_process", lambda variant, _: results[variant.module]
        ):
            assert list(iterate_rows(tmp_path / "journal")) == [
                small,
                other,
            ]  # smaller model first
        with (tmp_path / "journal").open("a", encoding="utf-8") as file:
            file.write('\n{"variant": {"mod')  # interrupted while writing
        with patch(
            "benchmarks.exports.try_export_in_process", side_effect=AssertionError("exported again")
        ):
            assert list(iterate_rows(tmp_path / "journal")) == [small, other]
    page = render_page(results)
    assert "| byobnet | `test_byobnet` | 456,856 | 64 | yes |" in page
    assert "| resnet | `test_resnet` | 469,688 | 64 | no |" in page
    assert "Of 2 tested models 1 are equal;" in page
    assert "- resnet: The export did not finish within 1 s of processor time." in page
    assert page.count(" | not tried |") == len(known) - 2
    assert "The command stopped before: beit, byoanet, cait," in page
    assert "Not tried" not in render_page(dict.fromkeys(known, other))


def test_a_failed_export_is_a_no_with_a_reason_in_one_line() -> None:
    variant = parse_table()["byobnet"][0]
    with patch("benchmarks.exports.export", side_effect=RunError("It can't be\nwritten.")):
        assert try_export(variant) == Row(variant, None, "It can't be written.")


@pytest.mark.slow
def test_an_export_that_takes_too_long_is_stopped() -> None:
    variant = parse_table()["byobnet"][0]
    assert try_export_in_process(variant, 1) == Row(
        variant, None, "The export did not finish within 1 s of processor time."
    )


def test_the_trainings_of_a_sweep_run_alone(tmp_path: Path) -> None:
    teacher_folder(tmp_path / "teacher")
    train(
        [
            *build_overrides(tmp_path / "teacher", tmp_path / "stages", 1),
            "trainer.limit_train_batches=2",
        ],
        trials=2,
    )
    assert len(list((tmp_path / "stages").glob("student-*/model/model.safetensors"))) == 2


def times(value: float, low: float, high: float) -> RatioEstimate:
    return RatioEstimate(value=value, low=low, high=high)


def test_a_headline_is_reached_when_all_three_targets_are() -> None:
    good = Headline(times(0.97, 0.96, 0.98), times(10, 9, 11), times(50, 49, 51))
    assert good.is_reached
    assert (
        str(good)
        == "97.0 % of the teacher's accuracy (96.0 to 98.0), latency lower by 10.0x (9.0 to 11.0),"
        " cost lower by 50.0x (49.0 to 51.0)"
    )
    for worse in (
        Headline(times(0.9699, 0.96, 0.98), good.faster, good.cheaper),
        Headline(good.retention, times(9.9, 9, 11), good.cheaper),
        Headline(good.retention, good.faster, times(49.9, 49, 51)),
    ):
        assert not worse.is_reached


@pytest.mark.slow
def test_the_headline_is_measured_on_the_files_that_were_exported(tmp_path: Path) -> None:
    train_and_export(tmp_path, tmp_path / "stages", smoke=True)
    results = measure_headline(tmp_path)
    assert results.faster.low <= results.faster.value <= results.faster.high
    assert results.retention.value >= 0
    full, tenth, as_good = describe_context(tmp_path)
    assert full.startswith("With all labels: ")
    assert tenth.startswith("With a tenth of the labels: ")
    assert "as good as the teacher" in as_good


@pytest.mark.slow
def test_the_cifar_benchmark_runs_on_any_folder_of_small_images(
    tmp_path: Path,
) -> None:
    colors = np.random.default_rng(0)
    for name, count in {"train": 20, "test": 4}.items():
        for label in range(10):
            (folder := tmp_path / "images" / name / str(label)).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(colors.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(
                    folder / f"{number}.jpg"
                )
    smoke = [
        f"stages={tmp_path / 'stages'}",
        "trainer.limit_train_batches=1",
        "trainer.limit_val_batches=1",
    ]
    names = [*(pair.name for pair in cifar.PAIRS), cifar.FEW]
    cifar.train_pairs(tmp_path / "images", tmp_path / "runs", smoke, names)
    table = cifar.render_table(tmp_path / "runs")
    assert [line.split(" | ")[0].removeprefix("| ") for line in table[2:]] == [
        "cnn -> vit",
        "vit -> mixer",
        "swin -> mobilenet",
        "1 % of the labels",
        "10 % of the labels",
        "100 % of the labels",
    ]
    assert all(" points (" in line for line in table[2:])


def test_weights_get_the_names_of_a_model_whose_entries_have_the_same_order() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    weights = {
        f"stem.{name}": torch.full_like(tensor, number)
        for number, (name, tensor) in enumerate(model.state_dict().items())
    }
    renamed = photos.rename_weights(weights, model)
    assert {name: tensor.flatten()[0].item() for name, tensor in renamed.items()} == {
        name: number for number, name in enumerate(model.state_dict())
    }
    first, *others = weights
    for wrong in (
        {name: weights[name] for name in others},
        {**weights, first: torch.zeros(2, 4)},
        {f"{name}s": tensor for name, tensor in weights.items()},
    ):
        with pytest.raises(RequestError, match="do not correspond"):
            photos.rename_weights(wrong, model)


def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(RequestError, match="pip install --no-deps no-such-package"):
        photos.find_package("no_such_package")


def test_the_page_is_the_last_of_three_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(photos, "run_command", lambda *command: commands.append(command))
    monkeypatch.setattr(photos, "write_teacher", lambda folder: folder)
    photos.distill_photos(Path("mine"), tmp_path)
    assert [command for command, _ in commands] == ["distill", "export", "report"]
    (_, distill), *_ = commands
    assert "data.root=mine" in distill
    assert not any(override.startswith("data.license") for override in distill)
    build_spec(compose_config("distill", [each for each in distill if "checkpoint" not in each]))
    output = capsys.readouterr().out
    assert f"The page: {tmp_path / 'run' / 'report.html'}" in output
    assert output.endswith("make demo-photos DATA=my_photos\n")


def test_the_extract_of_the_demo_is_the_table_of_the_docs(tmp_path: Path) -> None:
    rows = read_rows(EXTRACT)
    write_rows(tmp_path / "again.csv", rows[::-1])
    assert (tmp_path / "again.csv").read_bytes() == EXTRACT.read_bytes()
    page = (EXTRACT.parent / "measured.md").read_text(encoding="utf-8")
    assert "\n".join(render_table(rows)) in page
    assert {row.candidate for row in rows} <= set(CANDIDATES)
    assert all(row.gain_low > 0 for row in rows if row.candidate in ("chosen", "float32"))


def test_photographs_of_a_size_are_written_for_two_classes(tmp_path: Path) -> None:
    files = sorted(write_photos(tmp_path, 4, width=60, height=45).glob("*/*.jpg"))
    assert [file.parent.name for file in files] == ["china", "china", "flower", "flower"]
    with Image.open(files[0]) as image:
        assert image.size == (60, 45)


def test_the_ways_to_read_take_turns_over_all_images() -> None:
    calls: list[tuple[str, int, int]] = []

    def build(name: str) -> Any:
        return lambda epoch, numbers: calls.append((name, epoch, len(numbers)))

    seconds = measure_readers({"a": build("a"), "b": build("b")}, images=100, rounds=2)
    assert [len(times) for times in seconds.values()] == [4, 4]
    assert [name for name, _, _ in calls] == ["a", "b", *"ab", *"ba", *"ab", *"ba"]
    assert {size for _, _, size in calls} == {50}


def test_a_way_that_takes_half_the_time_is_twice_as_fast() -> None:
    ratio, low, high = compare_readers([2.0, 2.2, 1.8, 2.0], [1.0, 1.1, 0.9, 1.0])
    assert ratio == pytest.approx(2.0)
    assert low <= ratio <= high


def test_a_part_on_the_gpu_that_fails_or_comes_too_late_is_on_the_page() -> None:
    def fail() -> list[str]:
        raise RuntimeError("no\nkernel")

    report = Report()
    report.measure(EXACT, "32-true", lambda: ["0", "2.3"])
    report.measure(EXACT, "16-mixed", fail)
    report.start -= LAST_START + 1
    report.measure(EXACT, "bf16-mixed", lambda: ["0", "2.3"])
    page = report.render("Card")
    assert "| 32-true | 0 | 2.3 |" in page
    assert "16-mixed: RuntimeError: no kernel" in page
    assert "bf16-mixed: no time was left" in page


def test_the_parts_of_the_growth_table_run_with_few_rows(tmp_path: Path) -> None:
    split_groups(2000, tmp_path)
    assert len((tmp_path / "split.csv").read_text().splitlines()) == 2001
    write_files(100, tmp_path)
    assert len(list((tmp_path / "files").glob("*/*.jpg"))) == 100


def test_the_lines_of_losses_without_labels_are_the_table_of_their_guide(tmp_path: Path) -> None:
    lines = read_lines(label_free.Line, label_free.FILE)
    write_lines(label_free.sort_lines(lines[::-1]), tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == label_free.FILE.read_bytes()
    guide = label_free.FILE.parent / "guides" / "without-labels.md"
    assert label_free.write_table(lines) in guide.read_text(encoding="utf-8")


def test_the_curves_of_students_without_labels_are_their_purity_on_validation(
    tmp_path: Path,
) -> None:
    points = {
        "teacher": [{"step": 1, "validation/purity": 0.9}],
        "student": [
            {"step": 1, "validation/purity": 0.2},
            {"step": 1, "train/loss": 3.0},
            {"step": 2, "validation/purity": 0.25},
        ],
    }
    (tmp_path / "run").mkdir()
    write_curves(tmp_path / "run" / CURVES, points)
    assert label_free_students.render_curves(tmp_path) == "run: 20.0 25.0"


def test_the_lines_of_students_without_labels_are_the_table_of_their_guide() -> None:
    lines = read_lines(label_free_students.Line, label_free_students.FILE)
    guide = label_free.FILE.parent / "guides" / "without-labels.md"
    assert label_free_students.render_table(lines) in guide.read_text(encoding="utf-8")
    # each student is measured at least once, and its interval holds its value
    assert all(each.purity_gap_low < each.purity_gap < each.purity_gap_high for each in lines)
