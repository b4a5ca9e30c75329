"""Hydra's loader of configurations, which composes the same thing once.

Hydra composes a command line twice, to see whether it is a sweep and to run it: half a second on a slow machine. Each
cell of a sweep it composes from all its files twice, to see that it can and to run it, and before that we do, to answer
a mistake before anything starts. Values are the last that Hydra applies to what it has composed, so all before them
serves every cell with the same choices.
"""

from __future__ import annotations

import copy
from typing import Any

from hydra._internal import hydra as hydra_itself
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.types import RunMode
from omegaconf import OmegaConf

KEPT = 64
"""Compositions, the latest: more than the choices that a sweep goes through in turns."""


def install() -> None:
    """Have Hydra load by ``Loader``: it has a place for other loaders, but none to name one before it asks for the
    first composition.
    """
    hydra_itself.ConfigLoaderImpl = Loader  # type: ignore[attr-defined]


class Loader(ConfigLoaderImpl):
    """Composes what Hydra's own would, from the same places."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self._command: tuple[tuple[str | None, list[str]], Any] | None = None
        """The one that Hydra looked at to see whether it is a sweep, and what it was composed to."""
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
        if validate_sweep_overrides:
            self.validate_sweep_overrides_legal(parsed, run_mode, from_shell)
        # Hydra's own words for what it found, added when it asks again.
        found = [each for each in parsed[-1:] if str(each.input_line).startswith("hydra.mode=")]
        command = config_name, overrides[: len(overrides) - len(found)]
        if self._command is not None and self._command[0] == command:
            choices = self._command[1].hydra.runtime.choices
            # A choice that is missing is left out of a sweep, and an error in a run.
            if run_mode is RunMode.MULTIRUN or not any(OmegaConf.is_missing(choices, group) for group in choices):
                composed, self._command = self._command[1], None
                self._apply_overrides_to_config(found, composed)
                composed.hydra.overrides.hydra.extend([each.input_line for each in found])
                return composed
        if run_mode is RunMode.MULTIRUN:
            composed = super().load_configuration(config_name, overrides, run_mode, from_shell, False)
            if not found:
                self._command = command, copy.deepcopy(composed)
            return composed
        values = [each for each in parsed if self._is_value(each)]
        chosen = [each for each in parsed if each.is_hydra_override() or self._is_choice(each)]
        if len(values) + len(chosen) < len(parsed):
            return super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        lines = [str(each.input_line) for each in chosen]
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
