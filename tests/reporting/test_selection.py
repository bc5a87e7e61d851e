"""The metric by which trials are ranked."""

from kd_app.jobs.sweep import select_winner
from kd_app.reporting.results import Results
from kd_app.reporting.selection import read_selection
from kd_app.reporting.tables import Trial, build_sweep_table
from tests.reporting.embedding_results import build_embedding_results
from tests.reporting.run_folders import build_results
from tests.reporting.test_tables import render_flat


def _build_trial(number: int, overlap: float) -> Trial:
    results = build_embedding_results()
    assert results.embedding is not None
    split = results.embedding.test
    assert split is not None
    split.models["student"].overlap.value = overlap
    record = results.embedding.model_copy(update={"validation": split.model_copy(deep=True)})
    return Trial(number, (f"seed={number}",), results.model_copy(update={"embedding": record}))


def test_classes_are_ranked_by_accuracy_and_embeddings_by_the_teachers_neighbors() -> None:
    classes, embedding = (
        read_selection(build_results()),
        read_selection(build_embedding_results(), "test"),
    )
    assert classes is not None
    assert classes.title == "top-1"
    assert embedding is not None
    assert (embedding.title, embedding.value) == ("teacher's neighbors", 0.6)
    assert (embedding.low, embedding.high, embedding.num_images) == (0.58, 0.62, 100)


def test_what_is_not_measured_has_no_score() -> None:
    missing: Results = build_results().model_copy(update={"validation": None})
    assert (
        read_selection(missing)
        is read_selection(build_embedding_results())
        is read_selection(None)
        is None
    )


def test_the_trial_with_most_of_the_teachers_neighbors_wins() -> None:
    trials = [_build_trial(0, 0.4), _build_trial(1, 0.7)]
    assert select_winner(trials) == 1
    table = render_flat(build_sweep_table(trials, winner=1))
    assert "Validation teacher's neighbors of each trial" in table
    assert table.index("* 1 seed=1") < table.index("0 seed=0")
    assert "Its share of the teacher's neighbors on test is 70.00 %" in table
