"""Teacher assistants between teacher and student, and generations of one net: each is
taught by the one before it.

Mirzadeh et al., "Improved knowledge distillation via teacher assistant", AAAI 2020,
arXiv 1902.03393; Furlanello et al., "Born-again neural networks", ICML 2018, arXiv
1805.04770, where the assistants are the student's own net.
"""

from dataclasses import replace

from kd_app.run.measurement import format_top1
from kd_app.run.role_jobs import build_student_job
from kd_app.run.train import train
from kd_app.run.workspace import RunModel, Workspace


def train_assistants(workspace: Workspace, teacher: RunModel) -> RunModel:
    """Train the nets of ``teacher.chain`` one after the other, or find them; the last
    one, which teaches the student. The teacher itself where there are none.
    """
    recipe = workspace.spec.recipe
    for number, assistant in enumerate(workspace.spec.links, start=1):
        job = build_student_job(
            workspace,
            teacher,
            name=f"link-{number}",
            model=assistant.request,
            # A seed of its own, so that all seeds and trials of the student share the chain.
            recipe=replace(recipe, seed=assistant.seed, callbacks={}),
        )
        teacher = replace(train(workspace, job), role="teacher")
        workspace.console.print(
            f"Link {number} of the chain, {teacher.spec.name}:"
            f" {format_top1(workspace.load_predictions(teacher, 'validation'))} on validation"
        )
    return teacher
