"""The Hydra plug-in for ``hydra/sweeper=search``, which runs `kd_app.search`.

Hydra discovers plug-ins only in the package ``hydra_plugins``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SearchSweeper(Sweeper):
    """Run the trials that `kd_app.search.study` proposes.

    `space` and the sweeps on the command line define the search space.
    """

    def __init__(self, *, space: dict[str, str], **settings: Any) -> None:
        self._space = space
        self._settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Store the configuration and create the launcher."""
        self.config, self.hydra_context = config, hydra_context
        plugins = Plugins.instance()
        self.launcher: Launcher = plugins.instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the search, batch by batch."""
        from omegaconf import OmegaConf

        from kd_app.config.compose import normalize_overrides
        from kd_app.search.objectives import check_objectives
        from kd_app.search.trials import require_optuna
        from kd_app.specs.task_choice import name_task

        require_optuna()
        from kd_app.search.space import parse_space
        from kd_app.search.study import Search, SearchSettings

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(arguments)
        fixed = [
            str(override.input_line) for override in overrides if not override.is_sweep_override()
        ]
        space = self._list_sweeps(parser, overrides)
        settings = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in self._settings.items()
        }
        out = Path(str(self.config.hydra.sweep.dir))
        choices = SearchSettings(**settings)
        plain = OmegaConf.to_container(self.config, resolve=False)
        check_objectives(choices.objectives, name_task(plain))
        search = Search(out, choices, parse_space(space))
        for batch in search.iterate_batches():
            trials = [
                [*fixed, *normalize_overrides(f"{key}={value}" for key, value in params.items())]
                for _, params in batch
            ]
            self.validate_batch_is_legal(trials)
            self.launcher.launch(trials, initial_job_idx=batch[0][0])

    def _list_sweeps(
        self, parser: OverridesParser, overrides: Sequence[Override]
    ) -> list[Override]:
        """The configured space and the sweeps on the command line.

        A range or a value on the command line replaces the configured range.
        """
        keys = {override.get_key_element() for override in overrides}
        configured = [f"{key}={value}" for key, value in self._space.items() if key not in keys]
        sweeps = [override for override in overrides if override.is_sweep_override()]
        return [*parser.parse_overrides(configured), *sweeps]
