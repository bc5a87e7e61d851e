"""Teacher assistants: intermediate models between teacher and student, each distilled
from the previous one.

Mirzadeh et al., "Improved knowledge distillation via teacher assistant", AAAI 2020,
arXiv 1902.03393. With the student's own architecture as the assistants:
Furlanello et al., "Born-again neural networks", ICML 2018, arXiv 1805.04770.
"""

from dataclasses import replace

from kd_app.reporting.top1 import format_top1
from kd_app.run.model import RunModel
from kd_app.run.role_jobs import build_student_job
from kd_app.run.train import train
from kd_app.run.workspace import Workspace


def train_assistants(workspace: Workspace, teacher: RunModel) -> RunModel:
    """Train the assistants of ``teacher.chain`` in order, or load them from the cache.

    Returns the last assistant, which is the student's teacher; without assistants
    `teacher` itself.
    """
    recipe = workspace.spec.recipe
    for number, assistant in enumerate(workspace.spec.assistants, start=1):
        job = build_student_job(
            workspace,
            teacher,
            name=f"link-{number}",
            model=assistant.spec,
            # Not the student's seed: all seeds and trials share the assistants.
            recipe=replace(recipe, seed=assistant.seed, callbacks={}),
        )
        teacher = replace(train(workspace, job), role="teacher")
        workspace.console.print(
            f"Assistant {number}, {teacher.spec.name}:"
            f" {format_top1(workspace.load_predictions(teacher, 'validation'))} on validation"
        )
    return teacher
