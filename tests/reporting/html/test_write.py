"""The numbers of a report are those of results.json in all four formats, whatever the
names of classes and files.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kd_app.config import RequestError
from kd_app.metrics.classification import BINS
from kd_app.reporting.html import check_owner, write_report
from kd_app.reporting.html.from_predictions import BINS as DRAWN_BINS
from kd_app.reporting.results import Results
from kd_app.reporting.sentences import format_interval, format_percent
from tests.reporting.html.folders import CLASSES, FILES, run_folder


class Page(HTMLParser):
    """Elements and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    folder = tmp_path_factory.mktemp("one") / "run"
    results = run_folder(folder)
    write_report([folder], folder)
    return folder, results


def iterate_metrics(results: Results) -> Iterator[tuple[str, str, float, float, float]]:
    split = results.test
    assert split is not None
    for role in ("teacher", "labels_only", "student"):
        metrics = getattr(split, role).model_dump()
        for name in metrics:
            if f"{name}_low" in metrics and metrics[name] is not None:
                yield role, name, metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"]


def test_every_metric_of_results_json_is_in_the_json_and_in_the_csv(
    one: tuple[Path, Results],
) -> None:
    folder, results = one
    run = json.loads((folder / "report.json").read_text(encoding="utf-8"))["runs"][0]
    models = {model["role"]: model["figures"] for model in run["models"]}
    with (folder / "report.csv").open(encoding="utf-8", newline="") as file:
        rows = {
            (row["about"], row["figure"]): row
            for row in csv.DictReader(file)
            if row["run"] == "run" and row["split"] == "test"
        }
    known = list(iterate_metrics(results))
    assert len(known) >= 15
    for role, name, value, low, high in known:
        assert models[role][name] == {"value": value, "low": low, "high": high}
        assert [float(rows[role, name][key] or "nan") for key in ("value",)] == [value]
    assert results.test is not None
    assert results.test.pair is not None
    pair = results.test.pair.model_dump()
    for each in run["pair"]:
        if "." not in each["key"]:
            assert each["figure"] == {
                "value": pair[each["key"]],
                "low": pair[f"{each['key']}_low"],
                "high": pair[f"{each['key']}_high"],
            }
    assert {"retention", "gain", "agreement", "negative_flips"} <= {
        each["key"] for each in run["pair"]
    }


def test_page_and_markdown_show_the_metrics_of_results_json_with_intervals(
    one: tuple[Path, Results],
) -> None:
    folder, results = one
    page, text = (
        Page(folder / "report.html").text,
        (folder / "report.md").read_text(encoding="utf-8"),
    )
    for _, name, value, low, high in iterate_metrics(results):
        if name not in ("nll", "brier"):
            assert format_percent(value) in page
            assert format_percent(value) in text
            assert format_interval(low, high) in page
            assert format_interval(low, high) in text


def test_question_answer_and_basis_come_first(one: tuple[Path, Results]) -> None:
    page = Page(one[0] / "report.html").text
    order = [
        "Can the student replace the teacher?",
        "No. Verdict: lost.",
        "300 test images",
        "one seed (3)",
        "The evidence",
        "Configuration and provenance",
    ]
    places = [page.index(words) for words in order]
    assert places == sorted(places)


def test_names_of_classes_and_files_are_only_text(one: tuple[Path, Results]) -> None:
    page = Page(one[0] / "report.html")
    assert {tag for tag, _ in page.tags} & {
        "script",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
    } == set()
    assert [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)] == []
    addresses = [
        value
        for _, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "href", "data", "action", "srcset")
    ]
    assert all(address is not None and address.startswith(("#", "data:")) for address in addresses)
    for name in (*CLASSES, *FILES):
        assert " ".join(name.split()) in page.text
    text = (one[0] / "report.md").read_text(encoding="utf-8")
    assert "<script" not in re.sub(r"\\<", "", text)
    assert all(
        len(re.findall(r"(?<!\\)\|", line)) >= 3
        for line in text.splitlines()
        if line.startswith("| ")
    )


def test_accuracy_by_class_is_sorted_by_drop_and_adds_up_to_the_accuracy(
    one: tuple[Path, Results],
) -> None:
    folder, results = one
    rows = json.loads((folder / "report.json").read_text(encoding="utf-8"))["runs"][0]["classes"]
    changes = [row["change"] for row in rows]
    assert changes == sorted(changes)
    assert results.test is not None
    for role in ("teacher", "student"):
        assert sum(row["support"] * row["accuracy"][role] for row in rows) / 300 == pytest.approx(
            getattr(results.test, role).top1
        )
    flips = sum(row["support"] * row["negative_flips"] for row in rows) / 300
    assert results.test.pair is not None
    assert flips == pytest.approx(results.test.pair.negative_flips)


def test_the_reliability_diagram_adds_up_to_the_calibration_error_of_results_json(
    one: tuple[Path, Results],
) -> None:
    folder, results = one
    assert DRAWN_BINS == BINS
    for each in json.loads((folder / "report.json").read_text(encoding="utf-8"))["runs"][0][
        "reliability"
    ]:
        ece = sum(
            part["count"] / 300 * abs(part["confidence"] - part["accuracy"])
            for part in each["bins"]
        )
        assert ece == pytest.approx(getattr(results.test, each["role"]).ece, abs=1e-5)


def test_the_confusion_counts_every_image_and_its_diagonal_is_the_accuracy(
    one: tuple[Path, Results],
) -> None:
    folder, results = one
    counts = json.loads((folder / "report.json").read_text(encoding="utf-8"))["runs"][0][
        "confusion"
    ]["counts"]
    assert sum(map(sum, counts)) == 300
    assert results.test is not None
    assert sum(row[number] for number, row in enumerate(counts)) / 300 == pytest.approx(
        results.test.student.top1
    )


def test_the_same_runs_give_the_same_report(one: tuple[Path, Results], tmp_path: Path) -> None:
    write_report([one[0]], tmp_path)
    for name in ("report.html", "report.json", "report.csv", "report.md"):
        assert (tmp_path / name).read_bytes() == (one[0] / name).read_bytes()


def read_report(folder: Path) -> Mapping[str, Any]:
    report: Mapping[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


def test_somebody_elses_files_are_not_overwritten(
    one: tuple[Path, Results], tmp_path: Path
) -> None:
    write_report([one[0]], tmp_path / "ours")
    check_owner(tmp_path / "ours")
    check_owner(tmp_path)
    for name, text in (("report.md", "thesis"), ("report.json", '{"rows": 1, "mine": 2}')):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text(text, encoding="utf-8")
        with pytest.raises(RequestError, match=f"holds {name}, which kd-report did not write"):
            check_owner(folder)


def test_another_users_folder_is_refused(
    one: tuple[Path, Results], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("kd_app.reporting.html.write.write_atomically", refuse)
    with pytest.raises(RequestError, match=r"written to: Permission denied\. Choose another"):
        write_report([one[0]], tmp_path)


def test_the_best_run_on_validation_is_marked_and_differing_settings_are_listed(
    tmp_path: Path,
) -> None:
    for number, lift in enumerate((1.0, 2.5, 2.0)):
        config = {
            "seed": 0,
            "loss": {"soft_target": {"temperature": number + 1, "weight": 1.0}},
            "teacher": {"name": "a"},
        }
        run_folder(
            tmp_path / str(number),
            skill={"teacher": 3.0, "labels_only": 1.0, "student": lift},
            seed=0,
            config=config,
            test=number == 1,
        )
    write_report([tmp_path / str(number) for number in range(3)], tmp_path / "out")
    report = read_report(tmp_path / "out")
    assert [row["name"] for row in report["rows"]] == ["1", "2", "0"]
    assert [row["best"] for row in report["rows"]] == [True, False, False]
    assert [row["differs"] for row in report["rows"]] == [
        {"loss.soft_target.temperature": str(number)} for number in (2, 3, 1)
    ]
    page = Page(tmp_path / "out" / "report.html").text
    assert "Selected on validation: loss.soft_target.temperature=2. No. Verdict: lost." in page
    assert "temperature=2" in page


def test_seeds_of_a_method_are_summarized_and_no_seed_is_the_best(
    tmp_path: Path,
) -> None:
    for number in range(4):
        config = {
            "seed": number % 2,
            "loss": {"soft_target": {"temperature": 1 + number // 2, "weight": 1.0}},
            "teacher": {"name": "a"},
        }
        skill = {"teacher": 3.0, "labels_only": 1.0, "student": 1.0 + number // 2}
        run_folder(tmp_path / str(number), skill=skill, seed=number % 2, config=config)
    write_report([tmp_path / str(number) for number in range(4)], tmp_path / "out")
    report = read_report(tmp_path / "out")
    methods = report["comparisons"][0]["methods"]
    assert [method["runs"] for method in methods] == [{"0": "0", "1": "1"}, {"0": "2", "1": "3"}]
    tops = [run["models"][-1]["figures"]["top1"]["value"] for run in report["runs"]]
    assert [method["test"]["figure"]["value"] for method in methods] == [
        pytest.approx(sum(pair) / 2) for pair in (tops[:2], tops[2:])
    ]
    assert not any(row["best"] for row in report["rows"])
    assert (
        "Selected on validation: loss.soft_target.temperature=2. Verdicts of the 2 seeds: 2 lost."
        " Student minus teacher, mean over the seeds:" in report["answer"]
    )
    assert str(tmp_path) not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_runs_on_different_data_are_not_ranked_against_each_other(tmp_path: Path) -> None:
    run_folder(tmp_path / "five")
    run_folder(tmp_path / "three", names=CLASSES[:3])
    write_report([tmp_path / "five", tmp_path / "three"], tmp_path / "out")
    assert [row["best"] for row in read_report(tmp_path / "out")["rows"]] == [False, False]
    assert [len(part["methods"]) for part in read_report(tmp_path / "out")["comparisons"]] == [1, 1]
    assert (
        "Metrics of different data sets are not comparable, and nothing is selected across"
        " data sets" in Page(tmp_path / "out" / "report.html").text
    )


def test_missing_files_of_a_run_are_left_out_with_a_reason(tmp_path: Path) -> None:
    run_folder(tmp_path / "run")
    (tmp_path / "run" / "metrics.csv").unlink()
    (tmp_path / "run" / "predictions.parquet").write_bytes(b"cut off")
    write_report([tmp_path / "run"], tmp_path / "out")
    missing = read_report(tmp_path / "out")["runs"][0]["missing"]
    assert ["Curves are left out." in missing[0], "calibration are left out" in missing[1]] == [
        True,
        True,
    ]
    assert all(
        words in Page(tmp_path / "out" / "report.html").text
        for words in ("What this page leaves out", "has no metrics.csv", "retention")
    )


def test_a_student_without_teacher_and_a_run_that_failed_have_a_page(tmp_path: Path) -> None:
    run_folder(tmp_path / "plain", skill={"student": 2.0})
    write_report([tmp_path / "plain"], tmp_path / "plain")
    assert "How good is the student?" in (page := Page(tmp_path / "plain" / "report.html").text)
    assert "It was not compared with a teacher" in page
    run_folder(
        tmp_path / "failed",
        status="failed",
        reason="The disk is full.",
        test=False,
        validation=None,
        verdict=None,
    )
    write_report([tmp_path / "failed"], tmp_path / "failed")
    assert (
        "Nothing has been measured yet. The run's status is 'failed'. The disk is full."
        in Page(tmp_path / "failed" / "report.html").text
    )


def test_an_unreadable_run_is_a_row_with_a_reason_among_others_and_refused_alone(
    tmp_path: Path,
) -> None:
    run_folder(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "results.json").write_text("{", encoding="utf-8")
    write_report([tmp_path / "good", tmp_path / "bad"], tmp_path / "out")
    assert "it is truncated or not JSON" in Page(tmp_path / "out" / "report.html").text
    with pytest.raises(RequestError, match="truncated or not JSON"):
        write_report([tmp_path / "bad"], tmp_path / "out")


def test_paths_of_the_machine_and_secrets_are_not_in_a_report(tmp_path: Path) -> None:
    config = {
        "seed": 0,
        "data": {"name": "folder", "root": f"{tmp_path}/photos"},
        "logger": {"wandb": {"api_key": "s3cr3t-s3cr3t"}},
    }
    run_folder(tmp_path / "run", config=config)
    (tmp_path / "run" / "metrics.csv").unlink()
    run_folder(tmp_path / "cut")
    (tmp_path / "cut" / "results.json").write_text("{", encoding="utf-8")
    write_report([tmp_path / "run", tmp_path / "cut"], tmp_path / "out")
    for name in ("report.html", "report.json", "report.csv", "report.md"):
        content = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert str(tmp_path) not in content
        assert "s3cr3t" not in content
