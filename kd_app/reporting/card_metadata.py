"""Metadata of the model card: the YAML header that the Hugging Face hub reads."""

import re
from typing import Final

from kd_app.metrics.model_metrics import MODEL_METRICS
from kd_app.reporting.card_usage import is_external
from kd_app.reporting.markdown import escape_text
from kd_app.reporting.metrics import Split
from kd_app.reporting.results import Results

_TASK: Final = "image-classification"

_LICENSE_NAMES: Final = """
    agpl-3.0 apache-2.0 apple-amlr bsd-2-clause bsd-3-clause cc-by-3.0 cc-by-4.0 cc-by-nc-2.0
    cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-4.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0
    cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 fair-noncommercial-research-license gpl-2.0 gpl-3.0
    lgpl-2.1 lgpl-3.0 mit mpl-2.0 odbl odc-by openrail pddl unknown unlicense
"""
_HUB_LICENSES: Final = frozenset(_LICENSE_NAMES.split())
"""Identifiers of the hub (huggingface.co/docs/hub/repositories-licenses), limited to
licenses that are common for images and image models.
"""


def write_metadata(results: Results, split: Split) -> str:
    """YAML for the hub: license, library, task, tags, and the student's metrics on
    `split` as a model index.
    """
    from huggingface_hub import EvalResult, ModelCardData

    from kd_app.models.license import Policy

    name = name_dataset(results)
    evaluation = [
        EvalResult(
            task_type=_TASK,
            task_name="Image Classification",
            dataset_type=_to_identifier(name),
            dataset_name=name,
            dataset_split=split.split or ("test" if split is results.test else "validation"),
            metric_type=spec.hub,
            metric_name=spec.label,
            metric_value=round(value, 6),
        )
        for spec in MODEL_METRICS
        if spec.hub and (value := split.student.look_up(spec.name).value) is not None
    ]
    external = is_external(results)
    tags = [_TASK]
    if not external:
        tags.append("timm")
    if "teacher" in results.models:
        tags.append("knowledge-distillation")
    license, license_name = map_hub_license(name_license(results))
    card = ModelCardData(
        license=license,
        license_name=license_name,
        license_link=Policy().look_up(name_license(results)).link if license_name else None,
        library_name="pytorch" if external else "timm",
        pipeline_tag=_TASK,
        tags=[*tags, "kd_app"],
        model_name=write_title(results),
        eval_results=evaluation,
    )
    return card.to_yaml()


def write_title(results: Results) -> str:
    """'resnet8 for digits'."""
    return f"{escape_text(results.models['student'].name)} for {name_dataset(results)}"


def name_dataset(results: Results) -> str:
    """The name of the data set; 'images' if it has none."""
    assert results.data is not None
    return escape_text(results.data.name or "images")


def name_license(results: Results) -> str:
    """The license of the shipped student."""
    return results.license.ships if results.license else results.models["student"].license


def map_hub_license(name: str) -> tuple[str, str | None]:
    """``license`` and ``license_name`` of the metadata.

    The hub rejects unknown identifiers: any other license is 'other' with a name.
    """
    plain = name.strip().lower()
    if plain in _HUB_LICENSES:
        return plain, None
    if plain.startswith("none"):
        return "unknown", None
    return "other", _to_identifier(plain)


def _to_identifier(text: str) -> str:
    """Replace all but letters, digits, dots and dashes."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-") or "unknown"
