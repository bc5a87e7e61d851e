"""What the controls say, in sentences: each is as strong as its figures, and no
stronger.
"""

from kd_app.reporting.distillation_gain import describe_gains
from kd_app.reporting.results import Difference, Results
from kd_app.reporting.tables import build_summary
from tests.reporting.run_folders import made
from tests.reporting.test_tables import words

CONTROLS = ("labels_only", "match_wall_time", "smoothed_labels", "shuffled_teacher", "other_family")
GAIN = (0.02, 0.01, 0.03)
NONE = (0.002, -0.008, 0.012)
LITTLE = (0.002, -0.002, 0.006)


def results(**gains: tuple[float, float, float]) -> Results:
    """A run with these controls: value, low and high of the student's gain over each."""
    found = made()
    assert found.test is not None
    found.test.gains = {
        control: Difference(value=value, low=low, high=high)
        for control, (value, low, high) in gains.items()
    }
    return found


def advice(**gains: tuple[float, float, float]) -> str:
    return next(
        sentence
        for sentence in describe_gains(results(**gains))
        if sentence.startswith("Recommendation")
    )


def test_a_gain_over_every_control_recommends_distilling() -> None:
    found = describe_gains(results(**dict.fromkeys(CONTROLS, GAIN)))
    assert len(found) == len(CONTROLS) + 2
    assert (
        found[0]
        == "Distilled minus the same net on the labels alone: +2.00 points (+1.00 to +3.00): a"
        " gain."
    )
    assert "what the teacher knows about the very image" in found[3]
    assert found[-2] == "Recommendation: distill. Plain training is measurably worse."


def test_what_was_not_asked_is_named() -> None:
    assert "'controls=[match_wall_time,smoothed_labels,shuffled_teacher]' would show" in advice(
        labels_only=GAIN
    )


def test_plain_training_is_recommended_where_no_gain_is_shown() -> None:
    said = advice(labels_only=NONE)
    assert said.startswith(
        "Recommendation: plain training (fine-tuning) on the labels, without a teacher: as good as"
        " distilling as far as 300 images"
    )
    assert "they could not show a small difference" in said
    assert "as good as distilling as far as 300 images tell, and less than 1 point worse" in advice(
        labels_only=LITTLE
    )
    assert advice(labels_only=(-0.02, -0.03, -0.01)).endswith(
        "on the labels, without a teacher: better than distilling as far as 300 images tell."
    )


def test_longer_training_and_softer_labels_are_recommended_where_they_do_as_well() -> None:
    assert "on the labels for as long, without a teacher" in advice(
        labels_only=GAIN, match_wall_time=NONE, smoothed_labels=GAIN
    )
    assert "with smoothed labels, without a teacher" in advice(
        labels_only=GAIN, match_wall_time=GAIN, smoothed_labels=NONE
    )


def test_what_a_control_has_of_the_gain_itself_is_said_where_there_is_a_gain() -> None:
    _, softness, *_ = describe_gains(
        results(labels_only=GAIN, smoothed_labels=(0.005, -0.005, 0.015))
    )
    assert softness.endswith(
        "no gain that softness alone would not explain. Of the +2.00 points over the labels alone"
        " it has +1.50 itself."
    )
    assert "itself" not in " ".join(describe_gains(results(labels_only=NONE, smoothed_labels=NONE)))


def test_a_loss_is_called_one() -> None:
    assert describe_gains(results(labels_only=(-0.02, -0.03, -0.01)))[0].endswith(
        "-2.00 points (-3.00 to -1.00): distilling did worse."
    )


def test_no_more_is_claimed_than_one_seed_shows() -> None:
    assert describe_gains(results(labels_only=GAIN))[-1].startswith(
        "These are differences between models of one seed (3), not between methods"
    )


def test_what_was_decided_for_a_control_is_told() -> None:
    found = results(match_wall_time=GAIN, other_family=GAIN)
    student = found.models["student"]
    found.models |= {
        "match_wall_time": student.model_copy(update={"decided": {"max_epochs": 57}}),
        "other_family": student.model_copy(
            update={"name": "wrn_16_1", "decided": {"macs": 220, "student_macs": 100}}
        ),
    }
    longer, other, *_ = describe_gains(found)
    assert "the labels alone for as long in wall time (57 epochs)" in longer
    assert "another family of about the cost (wrn_16_1, 2.2 times the multiply-adds)" in other


def test_without_a_control_nothing_is_said_and_a_control_of_ones_own_is_told_by_its_name() -> None:
    assert describe_gains(made({"teacher": 3.0, "student": 2.0})) == []
    assert (
        describe_gains(results(my_control=GAIN))[0]
        == "Distilled minus my control: +2.00 points (+1.00 to +3.00)."
    )
    assert "Recommendation: none." in advice(my_control=GAIN)


def test_the_summary_has_a_row_for_each_control() -> None:
    found = results(labels_only=GAIN, match_wall_time=NONE)
    assert found.test is not None
    found.test.__pydantic_extra__["match_wall_time"] = found.test.student
    shown = words(build_summary(found))
    assert "as long" in shown
    assert "+0.20 -0.80 to +1.20" in shown
