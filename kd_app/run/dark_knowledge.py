"""What the teacher knows beyond the labels, and the images that show it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_app.metrics.class_similarity import Alike, measure_soft_labels
from kd_app.metrics.examples import choose_examples
from kd_app.metrics.record import Predictions
from kd_app.reporting.examples import EXAMPLES, write_examples
from kd_app.reporting.results import Knowledge, Results, SimilarPair
from kd_app.run.workspace import Workspace


def measure_teacher_knowledge(
    shop: Workspace, teacher: Predictions, split: str, *, before: Results | None = None
) -> Knowledge:
    """The teacher's soft labels on the images of `split`, at the temperatures of the
    run's losses. For a finished run they come from its results, `before`: its losses
    are not built to measure it.
    """
    if before is None:
        taught = shop.spec.recipe.label_temperatures
    else:
        similarities = before.knowledge.softened if before.knowledge else []
        taught = [similarity.temperature for similarity in similarities]
    found = measure_soft_labels(teacher.logits, teacher.target, taught=taught)
    plain, *softened = (_name_classes(each, shop.classes) for each in found["alike"])
    return Knowledge.model_validate(
        {
            "split": split,
            "num_images": found["num_images"],
            "entropy": found["entropy"],
            "similar": plain["similar"],
            "matrix": plain["matrix"],
            "softened": softened,
        }
    )


def _name_classes(alike: Alike, classes: tuple[str, ...]) -> dict[str, Any]:
    pairs = [
        {**pair, "first": classes[pair["first"]], "second": classes[pair["second"]]}
        for pair in alike["similar"]
    ]
    return {**alike, "similar": pairs}


def show_examples(
    shop: Workspace, answers: Mapping[str, Predictions], similar: Sequence[SimilarPair], out: Path
) -> None:
    """Write ``examples.parquet``; none where none are wanted, and what an earlier
    attempt wrote goes. `similar`: pairs of classes by name.
    """
    count = shop.spec.config["examples"]
    if not count:
        (out / EXAMPLES).unlink(missing_ok=True)
        return
    first = answers["student"]
    number = {name: place for place, name in enumerate(shop.classes)}
    pairs = [(number[pair.first], number[pair.second]) for pair in similar]
    chosen = choose_examples(answers, pairs=pairs, count=count)
    index = [int(first.index[each.row]) for each in chosen]
    png = {each: shop.data.make_thumbnail(each) for each in dict.fromkeys(index)}
    write_examples(
        out / EXAMPLES,
        chosen,
        index=first.index,
        file=[shop.data.files[each] for each in index],
        target=first.target,
        logits={role: found.logits for role, found in answers.items()},
        png=[png[each] for each in index],
    )
