"""Hydra's loader of configurations, for sweeps: what differs in its values alone is composed once.

Hydra composes each cell of a sweep from all its files twice, to see that it can and to run it, and before that we do,
to answer a mistake before anything starts. Values are the last that Hydra applies to what it has composed, so all
before them serves every cell with the same choices.
"""

from __future__ import annotations

import copy
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.types import RunMode

KEPT = 64
"""Compositions, the latest: more than the choices that a sweep goes through in turns."""


class SweepLoader(ConfigLoaderImpl):
    """Composes what ``loader`` would, from the same places."""

    def __init__(self, loader: ConfigLoader) -> None:
        super().__init__(loader.get_search_path())
        self._kept: dict[tuple[str | None, tuple[str, ...]], Any] = {}

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> Any:
        parsed = OverridesParser.create().parse_overrides(overrides)
        values = [each for each in parsed if self._is_value(each)]
        choices = [each for each in parsed if each.is_hydra_override() or self._is_choice(each)]
        if run_mode is not RunMode.RUN or len(values) + len(choices) < len(parsed):
            return super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        lines = [str(each.input_line) for each in choices]
        key = config_name, tuple(lines)
        if key not in self._kept:
            self._kept[key] = super().load_configuration(config_name, lines, run_mode, from_shell)
            if len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
        composed = copy.deepcopy(self._kept[key])
        self._apply_overrides_to_config(values, composed)
        own = [each for each in parsed if not each.is_hydra_override()]
        composed.hydra.overrides.task = [each.input_line for each in own]
        words = composed.hydra.job.config.override_dirname
        composed.hydra.job.override_dirname = get_overrides_dirname(
            own, kv_sep=words.kv_sep, item_sep=words.item_sep, exclude_keys=words.exclude_keys
        )
        return composed

    def _is_value(self, override: Override) -> bool:
        """Whether it changes one value that is there, and nothing else."""
        return (
            override.type is OverrideType.CHANGE
            and not override.is_hydra_override()
            and not override.is_sweep_override()
            and not self.repository.group_exists(override.key_or_group)
        )

    def _is_choice(self, override: Override) -> bool:
        """Whether it is one of a group's."""
        return not isinstance(override.value(), dict) and self.repository.group_exists(override.key_or_group)
