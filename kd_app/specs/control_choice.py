"""``controls=auto``: the controls that suit the data's labels.

Like the rule of ``loss=auto``, it reads the configuration alone.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from kd_app.config.paths import read_settings
from kd_app.specs.loss_choice import AUTO, has_few_labels

Config = dict[str, Any]

FOR_FEW_LABELS: Final = "pseudo_labels"
"""The control that needs images without labels."""


def resolve_controls(config: Config) -> Config:
    """Replace ``controls=auto`` by the controls that suit the data: `FOR_FEW_LABELS` is
    left out if every image has a label, unless one of its own settings was changed.

    Other configurations are returned unchanged.
    """
    controls = config.get("controls")
    if not isinstance(controls, Mapping) or controls.get(AUTO) is not True:
        return config
    chosen = {name: node for name, node in controls.items() if name != AUTO}
    if not has_few_labels(config) and not _is_changed(chosen.get(FOR_FEW_LABELS)):
        chosen.pop(FOR_FEW_LABELS, None)
    return {**config, "controls": chosen}


def _is_changed(node: Any) -> bool:
    """Whether a setting of the control differs from its file's. Its loss is shared with
    labels_only and follows the student's.
    """
    return isinstance(node, Mapping) and any(
        node.get(key) != value for key, value in _read_control().items()
    )


@lru_cache
def _read_control() -> Mapping[str, Any]:
    settings: Config = read_settings(f"controls/{FOR_FEW_LABELS}")[FOR_FEW_LABELS]
    return settings
