"""Keys of a run's configuration that do not affect what is trained."""

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
    "checks",
)
"""Top-level keys that may change when a run is resumed: paths, logging, permissions."""
NESTED_NON_IDENTITY_KEYS: Final = (
    *("data.num_workers", "data.cache", "data.license", "teacher.license", "student.license"),
    *("trainer.on_nan", "trainer.checkpoint_minutes", "trainer.checkpoint_steps"),
)
"""Such keys within groups, as dotted names."""
