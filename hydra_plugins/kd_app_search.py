"""Hydra's door to the search: what it calls for ``hydra/sweeper=search``. Hydra looks
for plug-ins in this package; the work is done in kd_app.
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
    """Runs the trials that `kd_app.search.study` proposes; `space` and the
    sweeps on the command line say what is searched.
    """

    def __init__(self, *, space: dict[str, str], **settings: Any) -> None:
        self._space = space
        self._settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Hydra hands over what trials are launched with."""
        self.config, self.hydra_context = config, hydra_context
        plugins = Plugins.instance()
        self.launcher: Launcher = plugins.instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the search to its end."""
        from omegaconf import OmegaConf

        from kd_app.search.trials import require_optuna

        require_optuna()
        from kd_app.search.space import parse_space
        from kd_app.search.study import Search, SearchSettings

        parse = OverridesParser.create(
            config_loader=self.hydra_context.config_loader
        ).parse_overrides
        said = parse(arguments)
        words = [str(override.input_line) for override in said if not override.is_sweep_override()]
        space = self._sweeps(parse, said)
        settings = SearchSettings(
            **{
                key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v
                for key, v in self._settings.items()
            }
        )
        out = Path(str(self.config.hydra.sweep.dir))
        search = Search(out, settings, parse_space(space))
        for batch in search.iterate_batches():
            trials = [
                [*words, *(f"{key}={value}" for key, value in params.items())]
                for _, params in batch
            ]
            self.validate_batch_is_legal(trials)
            self.launcher.launch(trials, initial_job_idx=batch[0][0])

    def _sweeps(self, parse: Any, said: Sequence[Override]) -> list[Override]:
        """The configured space, with what the command line says in its place: another
        range, or one value.
        """
        named = {override.get_key_element() for override in said}
        configured = [f"{key}={value}" for key, value in self._space.items() if key not in named]
        return [
            *parse(configured),
            *(override for override in said if override.is_sweep_override()),
        ]
