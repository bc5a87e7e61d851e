"""Console tables: content, width, and the sentences below them."""

import io

import pytest
from rich.console import Console, RenderableType

from kd_app.reporting.results import Results
from kd_app.reporting.sentences import explain_undefined, format_points
from kd_app.reporting.tables import Trial, build_summary, build_sweep_table
from tests.reporting.run_folders import THREE, build_results


def render(renderable: RenderableType, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(renderable)
    return file.getvalue()


def render_flat(renderable: RenderableType, width: int = 80) -> str:
    return " ".join(render(renderable, width).split())


@pytest.mark.parametrize("width", [80, 120])
def test_the_summary_holds_every_row_and_fits_the_width(width: int) -> None:
    table = render(build_summary(build_results()), width)
    assert max(map(len, table.splitlines())) <= width
    for row in (
        r"top-1 accuracy 77.33 % 27.00 % 51.33 %",
        r"95 % interval 72.17 to 81.95 22.06 to 32.40 45.52 to 57.12",
        r"parameters 25.6 M 2.54 M 2.54 M",
        r"multiply-adds 4.09 G 56.5 M 56.5 M",
        r"size on disk 102 MB 10.2 MB 10.2 MB",
        r"images per second 42 as distilled 1,234",
        r"retention 66.38 %",
        r"gain +24.33 +18.52 to +30.32 points above labels only",
        r"gap closed 48.34 %",
        r"agreement 55.67 %",
        r"negative flips 30.00 %",
    ):
        assert row in " ".join(table.split())


def test_the_summary_states_split_number_of_images_and_seed() -> None:
    assert "All metrics: test split, 300 images, one seed (3)." in render_flat(
        build_summary(build_results())
    )
    table = render_flat(build_summary(build_results(test=False)))
    assert "All metrics: validation split" in table
    assert "The test set was not read." in table


def test_the_summary_is_plain_ascii_without_escape_codes() -> None:
    table = render(build_summary(build_results()))
    assert "\x1b" not in table
    assert set(table) - set("─") <= set(map(chr, range(32, 127))) | {"\n"}


def test_an_undefined_metric_is_explained() -> None:
    table = render_flat(
        build_summary(build_results({"teacher": 1.0, "labels_only": 1.0, "student": 1.5}))
    )
    assert "gap closed undefined" in table
    assert (
        "Gap closed is undefined because the teacher is not measurably better than the labels-only"
        " student" in table
    )
    assert "undefined" not in render_flat(build_summary(build_results()))
    hopeless = render_flat(build_summary(build_results({"teacher": -50.0, "student": 1.5})))
    assert "Retention is undefined because the teacher is right on none of these" in hopeless


def test_a_metric_without_an_interval_is_explained_wherever_undefined_ones_are() -> None:
    results = build_results()
    assert results.test is not None
    assert "has no interval" not in " ".join(explain_undefined(results.test))
    content = results.model_dump()
    for name in ("f1", "balanced_accuracy"):
        content["test"]["student"] |= {f"{name}_low": None, f"{name}_high": None}
    changed = Results.model_validate(content).test
    assert changed is not None
    (sentence,) = explain_undefined(changed)
    assert sentence.startswith("Where 'balanced accuracy', 'F1, mean over classes' has no interval")
    assert "how much other images would vary" in sentence


def test_further_controls_are_rows_and_weak_spots_are_sentences() -> None:
    content = build_results({**THREE, "smoothed": 1.5}).model_dump()
    content["test"]["groups"] = {
        "north": {
            "num_images": 200,
            "accuracy": {"teacher": {"value": 0.8}, "student": {"value": 0.75}},
        },
        "south": {
            "num_images": 1,
            "accuracy": {"teacher": {"value": 1.0}, "student": {"value": 0.0}},
        },
    }
    content["test"]["robustness"] = [
        {
            "corruption": kind,
            "severity": 3,
            "num_images": 300,
            "accuracy": {"teacher": 0.6, "student": right},
        }
        for kind, right in (("jpeg", 0.5), ("contrast", 0.3))
    ]
    table = render_flat(build_summary(Results.model_validate(content)))
    assert "gain, smoothed" in table
    assert "points above this control" in table
    losses = {
        k: t - s
        for k, (t, s) in enumerate(
            zip(
                *(
                    content["test"]["per_class"]["accuracy"][role]
                    for role in ("teacher", "student")
                ),
                strict=True,
            )
        )
    }
    assert f"Class 'c{max(losses, key=losses.__getitem__)}' loses most: the student gets" in table
    assert (
        "Group 'south' loses most: the student gets 0.00 % right, the teacher 100.00 % (1"
        " image)." in table
    )
    assert (
        "On corrupted images (2 kinds) the student gets 40.00 % right on average, the teacher"
        " 60.00 %." in table
    )


def test_without_a_teacher_no_loss_is_reported() -> None:
    table = render_flat(build_summary(build_results({"student": 2.0})))
    assert "loses most" not in table
    assert "corrupted" not in table


def test_the_verdict_states_margin_and_difference() -> None:
    assert (
        "Verdict: lost. The student's top-1 accuracy is more than 1 point below the teacher's: the"
        " difference is -26.00 points" in render_flat(build_summary(build_results()))
    )
    close = render_flat(
        build_summary(build_results({"teacher": 2.0, "labels_only": 1.0, "student": 2.0}))
    )
    assert "Verdict: not shown." in close
    assert "images would be needed." in close


def test_without_teacher_or_control_their_columns_and_rows_are_absent() -> None:
    alone = render_flat(build_summary(build_results({"student": 2.0})))
    for absent in ("teacher", "labels only", "distilled", "retention", "gain", "Verdict"):
        assert absent not in alone
    without_control = render_flat(build_summary(build_results({"teacher": 3.0, "student": 2.0})))
    assert "retention" in without_control
    assert "labels only" not in without_control


def test_a_run_without_metrics_states_the_reason() -> None:
    failed = build_results().model_copy(
        update={"test": None, "validation": None, "status": "failed", "reason": "The disk is full."}
    )
    assert (
        render_flat(build_summary(failed))
        == "Nothing is measured yet: the run's status is 'failed'. The disk is full."
    )


def test_notes_of_the_run_are_shown() -> None:
    assert "Note: 2 images were left out." in render_flat(
        build_summary(build_results(notes=["2 images were left out."]))
    )


def trials() -> list[Trial]:
    return [
        Trial(
            0,
            ("loss.soft_target.temperature=1", "loss=[cross_entropy,soft_target]"),
            build_results({"teacher": 3.0, "student": 1.0}, test=False),
        ),
        Trial(
            1,
            ("loss.soft_target.temperature=4", "loss=[cross_entropy,soft_target]"),
            build_results(THREE),
        ),
        Trial(2, ("seed=1",), None),
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_a_sweep_is_listed_best_first_with_a_star_at_the_winner(width: int) -> None:
    table = render_flat(build_sweep_table(trials(), winner=1), width)
    assert (
        table.index("* 1 loss.soft_target.temperature=4")
        < table.index("0 loss.soft_target.temperature=1")
        < table.index("2 seed=1 unreadable")
    )
    assert (
        "* Trial 1 won on validation. Its test top-1 is 51.33 % (interval 45.52 to 57.12, 300"
        " images)" in table
    )


def test_trials_without_a_result_have_a_status_and_a_reason() -> None:
    failed = build_results().model_copy(
        update={"validation": None, "test": None, "status": "failed", "reason": "The disk is full."}
    )
    listed = [
        *trials(),
        Trial(3, ("seed=-1",), None, "No such seed."),
        Trial(4, ("seed=3",), failed),
        Trial(5, ("seed=-2",), None, "No such seed."),
    ]
    table = render_flat(build_sweep_table(listed, winner=1))
    for text in (
        "3 seed=-1 refused",
        "4 seed=3 failed",
        "Trial 2 unreadable: its results.json is missing or damaged.",
        "Trials 3, 5 refused: No such seed.",
        "Trial 4 failed: The disk is full.",
    ):
        assert text in table


def test_a_sweep_without_test_or_winner_states_it() -> None:
    assert "* Trial 0 won on validation; the test set was not read." in render_flat(
        build_sweep_table(trials(), winner=0)
    )
    assert "No trial won" in render_flat(build_sweep_table(trials()[2:], winner=None))


def test_brackets_in_overrides_are_not_markup() -> None:
    assert "loss=[cross_entropy,soft_target]" in render(build_sweep_table(trials(), winner=1), 120)


def test_zero_has_a_plus_sign() -> None:
    assert [format_points(value) for value in (0.0, -0.0, -1e-9, 0.00001, -0.0042)] == [
        "+0.00",
        "+0.00",
        "+0.00",
        "+0.00",
        "-0.42",
    ]
