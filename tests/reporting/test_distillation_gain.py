"""Sentences about the controls claim no more than the metrics show."""

from kd_app.reporting.distillation_gain import describe_gains
from kd_app.reporting.metrics import Difference
from kd_app.reporting.results import Results
from kd_app.reporting.tables import build_summary
from tests.reporting.run_folders import build_results
from tests.reporting.test_tables import render_flat

CONTROLS = ("labels_only", "match_wall_time", "smoothed_labels", "shuffled_teacher", "other_family")
GAIN = (0.02, 0.01, 0.03)
NONE = (0.002, -0.008, 0.012)
SMALL = (0.002, -0.002, 0.006)


def results(**gains: tuple[float, float, float]) -> Results:
    """A run with these controls: value, low and high of the gain over each."""
    run = build_results()
    assert run.test is not None
    run.test.gains = {
        control: Difference(value=value, low=low, high=high)
        for control, (value, low, high) in gains.items()
    }
    return run


def advice(**gains: tuple[float, float, float]) -> str:
    return next(
        sentence
        for sentence in describe_gains(results(**gains))
        if sentence.startswith("Recommendation")
    )


def test_a_gain_over_every_control_recommends_distilling() -> None:
    sentences = describe_gains(results(**dict.fromkeys(CONTROLS, GAIN)))
    assert len(sentences) == len(CONTROLS) + 2
    assert (
        sentences[0]
        == "Distilled minus the same network trained on labels only: +2.00 points (+1.00 to"
        " +3.00): a gain."
    )
    assert "a gain from the teacher's knowledge of the individual image" in sentences[3]
    assert sentences[-2] == "Recommendation: distill. Plain training is measurably worse."


def test_missing_controls_are_named() -> None:
    assert "'controls=[match_wall_time,smoothed_labels,shuffled_teacher]' would show" in advice(
        labels_only=GAIN
    )


def test_plain_training_is_recommended_only_if_an_equivalence_test_shows_it() -> None:
    plain = "Recommendation: plain training (fine-tuning) on the labels, without a teacher."
    assert advice(labels_only=NONE) == (
        "Recommendation: none. These 300 images show neither a gain of distillation over labels"
        " only nor that training without a teacher is as good (within 1 point): the gain may be up"
        " to +1.20 points. More test images would tell."
    )
    assert advice(labels_only=SMALL) == (
        f"{plain} On these 300 images it is shown to be less than 1 point worse than distillation."
    )
    assert advice(labels_only=(-0.02, -0.03, -0.01)) == (
        f"{plain} On these 300 images it is better than distillation."
    )
    assert "neither a gain of distillation over match wall time nor" in advice(
        labels_only=GAIN, match_wall_time=NONE
    )


def test_a_student_that_starts_from_random_weights_is_not_fine_tuned() -> None:
    run = results(labels_only=SMALL)
    run.models["student"].weights["source"] = "random"
    (sentence,) = (each for each in describe_gains(run) if each.startswith("Recommendation"))
    assert sentence.startswith("Recommendation: plain training on the labels, without a teacher.")


def test_longer_training_or_soft_labels_are_recommended_if_as_good() -> None:
    assert "on the labels for as long, without a teacher" in advice(
        labels_only=GAIN, match_wall_time=SMALL, smoothed_labels=GAIN
    )
    assert "with smoothed labels, without a teacher" in advice(
        labels_only=GAIN, match_wall_time=GAIN, smoothed_labels=SMALL
    )


def test_the_share_of_a_control_is_stated_if_there_is_a_gain() -> None:
    _, soft, *_ = describe_gains(results(labels_only=GAIN, smoothed_labels=(0.005, -0.005, 0.015)))
    assert soft.endswith(
        "no gain beyond that of soft labels alone is shown. This control alone reaches +1.50 of the"
        " +2.00 points over labels only."
    )
    assert "This control alone" not in " ".join(
        describe_gains(results(labels_only=NONE, smoothed_labels=NONE))
    )


def test_a_loss_is_stated() -> None:
    assert describe_gains(results(labels_only=(-0.02, -0.03, -0.01)))[0].endswith(
        "-2.00 points (-3.00 to -1.00): distillation did worse."
    )


def test_the_claim_is_about_one_seed() -> None:
    assert describe_gains(results(labels_only=GAIN))[-1].startswith(
        "These are differences between models of one seed (3), not between methods"
    )


def test_resolved_settings_of_a_control_are_stated() -> None:
    run = results(match_wall_time=GAIN, other_family=GAIN)
    student = run.models["student"]
    run.models |= {
        "match_wall_time": student.model_copy(update={"decided": {"max_epochs": 57}}),
        "other_family": student.model_copy(
            update={"name": "wrn_16_1", "decided": {"macs": 220, "student_macs": 100}}
        ),
    }
    longer, other, *_ = describe_gains(run)
    assert "labels only for the same wall time (57 epochs)" in longer
    assert "another family of about the same cost (wrn_16_1, 2.2 times the multiply-adds)" in other


def test_the_students_own_labels_are_compared_with_the_teachers() -> None:
    run = results(labels_only=GAIN, pseudo_labels=(0.005, 0.001, 0.009))
    run.models["pseudo_labels"] = run.models["student"].model_copy(
        update={"decided": {"pseudo_labels": 1023, "unlabeled": 1200, "confidence": 0.95}}
    )
    sentence = describe_gains(run)[1]
    assert sentence == (
        "Distilled minus the same network trained on the labels and on its own pseudo-labels (for"
        " 1,023 of the 1,200 images without a label): +0.50 points (+0.10 to +0.90): the teacher"
        " helps beyond the student's own labels. This control alone reaches +1.50 of the +2.00"
        " points over labels only."
    )
    unclear = describe_gains(results(labels_only=GAIN, pseudo_labels=NONE))[1]
    assert "no help from the teacher beyond the student's own labels is shown" in unclear
    assert "on the labels and the student's own pseudo-labels, without a teacher" in advice(
        labels_only=GAIN, pseudo_labels=SMALL
    )


def test_with_few_labels_pseudo_labels_are_a_control_to_add() -> None:
    run = results(labels_only=GAIN)
    run.config["data"] = {"label_fraction": 0.1}
    assert "'controls=[match_wall_time,smoothed_labels,pseudo_labels]' would show" in " ".join(
        describe_gains(run)
    )


def test_without_a_control_there_is_no_sentence_and_an_external_control_keeps_its_name() -> None:
    assert describe_gains(build_results({"teacher": 3.0, "student": 2.0})) == []
    assert (
        describe_gains(results(my_control=GAIN))[0]
        == "Distilled minus my control: +2.00 points (+1.00 to +3.00)."
    )
    assert "Recommendation: none." in advice(my_control=GAIN)


def test_the_summary_has_a_row_for_each_control() -> None:
    run = results(labels_only=GAIN, match_wall_time=NONE)
    assert run.test is not None
    run.test.__pydantic_extra__["match_wall_time"] = run.test.student
    text = render_flat(build_summary(run))
    assert "match wall time" in text
    assert "+0.20 -0.80 to +1.20" in text
