"""The parts of the model card that are about an embedding."""

from typing import Final

from kd_app.reporting.card_metadata import map_hub_license, name_dataset, name_license, write_title
from kd_app.reporting.embedding_table import build_embedding_table, list_embedding_sentences
from kd_app.reporting.markdown import escape_code, to_list_items, to_table
from kd_app.reporting.results import Results
from kd_app.reporting.sentences import format_count

_TASK: Final = "image-feature-extraction"
_CODE: Final = """\
import timm
import torch

# "student" is the folder that holds this file
model = timm.create_model("local-dir:student", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
with torch.inference_mode():
    embedding = model(transform(image)[None])
embedding = torch.nn.functional.normalize(embedding, dim=1)"""


def build_embedding_card(
    results: Results, *, provenance: list[str], licenses: list[str]
) -> list[str]:
    """Return the paragraphs of the card. provenance, licenses: list items."""
    student, teacher = results.models["student"], results.models.get("teacher")
    source = f", distilled from {escape_code(teacher.name)}" if teacher else ""
    table = build_embedding_table(results)
    rows = [["", *table.heads], ["---", *("---:" for _ in table.heads)]] if table else []
    rows += [[name, *cells] for name, cells in table.rows] if table else []
    return [
        f"---\n{_write_metadata(results)}\n---",
        f"# {write_title(results)}",
        f"{escape_code(student.name)} maps an image to an embedding with"
        f" {format_count(student.params)} parameters and {format_count(student.macs)} multiply-adds"
        f" per image{source} without labels. Images whose embeddings have a large cosine are alike"
        " for the teacher.",
        "## How to use it",
        f"```python\n{_CODE}\n```",
        "## Results",
        to_table(rows) if rows else "",
        *results.cautions,
        to_list_items(list_embedding_sentences(results)),
        "## Training",
        to_list_items(provenance),
        "## Licenses",
        to_list_items(licenses),
    ]


def _write_metadata(results: Results) -> str:
    from huggingface_hub import ModelCardData

    license, license_name = map_hub_license(name_license(results))
    return ModelCardData(
        license=license,
        license_name=license_name,
        library_name="timm",
        pipeline_tag=_TASK,
        tags=[_TASK, "timm", "knowledge-distillation", "kd_app"],
        model_name=f"{write_title(results)} ({name_dataset(results)})",
    ).to_yaml()
