"""Keys of a run's configuration that say where and how it is done, not what is trained."""

from typing import Final

NON_IDENTITY_KEYS: Final = (
    "out",
    "stages",
    "remake",
    "overwrite",
    "logger",
    "tags",
    "trial_pruning",
    "budget",
    "allow",
    "examples",
    "license",
)
"""The same run may be said with others of these: they name places, what is followed,
kept and allowed.
"""
NESTED_NON_IDENTITY_KEYS: Final = (
    *("data.num_workers", "data.cache", "data.license", "teacher.license", "student.license"),
    "teacher.outputs",
    *("trainer.on_nan", "trainer.checkpoint_minutes", "trainer.checkpoint_steps"),
)
"""Such keys inside of groups, dotted."""
