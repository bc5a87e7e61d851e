"""Dark knowledge: what the teacher's soft labels add to the labels, and example images
that show it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_app.metrics.class_similarity import ClassSimilarity, measure_soft_labels
from kd_app.metrics.examples import choose_examples
from kd_app.metrics.record import Predictions
from kd_app.reporting.examples import write_examples
from kd_app.reporting.knowledge_results import Knowledge, SimilarPair
from kd_app.reporting.results import Results
from kd_app.run.workspace import Workspace
from kd_app.run_files import EXAMPLES


def measure_teacher_knowledge(
    workspace: Workspace, teacher: Predictions, split: str, *, before: Results | None = None
) -> Knowledge:
    """Measure the teacher's soft labels on the images of `split`, at the temperatures
    of the run's losses.

    For a finished run the temperatures come from its results, `before`, because its
    losses are not built for a measurement.
    """
    if before is None:
        temperatures = workspace.spec.recipe.label_temperatures
    else:
        similarities = before.knowledge.softened if before.knowledge else []
        temperatures = [similarity.temperature for similarity in similarities]
    metrics = measure_soft_labels(
        teacher.logits, teacher.target, training_temperatures=temperatures
    )
    plain, *softened = (_name_classes(each, workspace.classes) for each in metrics["alike"])
    return Knowledge.model_validate(
        {
            "split": split,
            "num_images": metrics["num_images"],
            "entropy": metrics["entropy"],
            "similar": plain["similar"],
            "matrix": plain["matrix"],
            "softened": softened,
        }
    )


def _name_classes(similarity: ClassSimilarity, classes: tuple[str, ...]) -> dict[str, Any]:
    pairs = [
        {**pair, "first": classes[pair["first"]], "second": classes[pair["second"]]}
        for pair in similarity["similar"]
    ]
    return {**similarity, "similar": pairs}


def show_examples(
    workspace: Workspace,
    predictions: Mapping[str, Predictions],
    similar: Sequence[SimilarPair],
    out: Path,
) -> None:
    """Write ``examples.parquet`` with as many images as ``examples`` sets; with
    ``examples=0`` delete the file of an earlier attempt.

    similar: pairs of similar classes, by name.
    """
    count = workspace.spec.config["examples"]
    if not count:
        (out / EXAMPLES).unlink(missing_ok=True)
        return
    student = predictions["student"]
    class_index = {name: number for number, name in enumerate(workspace.classes)}
    pairs = [(class_index[pair.first], class_index[pair.second]) for pair in similar]
    examples = choose_examples(predictions, pairs=pairs, count=count)
    index = [int(student.index[example.row]) for example in examples]
    png = {number: workspace.data.make_thumbnail(number) for number in dict.fromkeys(index)}
    write_examples(
        out / EXAMPLES,
        examples,
        index=student.index,
        file=[workspace.data.files[number] for number in index],
        target=student.target,
        logits={role: record.logits for role, record in predictions.items()},
        png=[png[number] for number in index],
    )
