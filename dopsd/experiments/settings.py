"""Trainings of a comparison that are there already: by the settings of now, or refused."""

from __future__ import annotations

from dopsd.checkpoint.compatibility import differences
from dopsd.config import RunConfig
from dopsd.config.load import shown_values
from dopsd.errors import ConfigError
from dopsd.run_folder.files import RunFolder
from dopsd.shown import value as shown_value


def refuse_other_settings(run: RunFolder, config: RunConfig) -> None:
    """Raises ConfigError when the run was begun with other values than those of ``config``, with
    the first key that differs: results never mix. Keys that an older dopsd did not know stand at
    their defaults in its runs. One that cannot be read is refused by its line."""
    for key, new, old in differences(config, shown_values(run.config())):
        raise ConfigError(
            f"{run.path} was trained with {key}={shown_value(old)}, this comparison has "
            f"{shown_value(new)}; allowed: another --folder, or taking that run away"
        )
