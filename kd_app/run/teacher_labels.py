"""Whether the teacher was trained on labels that the student does not see: such a
teacher passes them on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_app.config import RequestError
from kd_app.data.base import RunData
from kd_app.data.splits import shorten_digest
from kd_app.models.composite import EmaTeacher, TeacherEnsemble
from kd_app.models.spec import ModelSpec
from kd_app.reporting.results import TeacherLabels, read
from kd_app.run.known_images import KnownImages
from kd_app.run.workspace import Workspace
from kd_app.run_files import RESULTS, STUDENT


def find_teacher_labels(workspace: Workspace, *, ready: bool) -> TeacherLabels | None:
    """Which labels the teacher was trained on; None without a teacher, or if the
    student sees all labels. ready: the teacher is used without training.
    """
    teacher, data = workspace.spec.teacher, workspace.data
    if teacher is None or data.num_labeled is None:
        return None
    share = _read_share(workspace.spec.config)
    return _find_labels(teacher, data, share) if ready else "same"


def compare_labels(run: Path, data: RunData, share: float) -> TeacherLabels:
    """Which labels the student of a finished run knows, compared with those of `data`,
    of which `share` is used.

    Images are recognized by their content. A run with few labels is compared only if it
    has the same images: a larger share of the labels then includes a smaller one.
    """
    try:
        results = read(run / RESULTS)
    except RequestError:
        return "unknown"
    known, hidden = KnownImages.read(run), data.list_unlabeled_rows()
    if hidden is None or results.data is None or not known.splits:
        return "unknown"
    digests = data.hash_images(whole=known.record is None or known.record.whole)
    hidden_digests = {shorten_digest(digests[number]) for number in hidden.tolist()}
    if any(known.splits.get(digest) == "train" for digest in hidden_digests):
        other_share = _read_share(results.config)
        if other_share < 1 and results.data.fingerprint != data.fingerprint:
            return "unknown"
        if other_share > share:
            return "more"
    return results.data.teacher_labels or "same"


def _find_labels(teacher: ModelSpec, data: RunData, share: float) -> TeacherLabels:
    """Which labels a teacher knows that is used as it is."""
    if isinstance(teacher, EmaTeacher):
        return "same"
    if isinstance(teacher, TeacherEnsemble):
        labels = {_find_labels(member, data, share) for member in teacher.members.values()}
        return "more" if "more" in labels else "unknown" if "unknown" in labels else "same"
    path = teacher.origin.path
    is_student = path is not None and path.name == STUDENT and (path.parent / RESULTS).is_file()
    return compare_labels(path.parent, data, share) if path and is_student else "unknown"


def _read_share(config: Mapping[str, Any]) -> float:
    """The share of the training images whose label a run uses."""
    return float(config["data"].get("label_fraction") or 1)
