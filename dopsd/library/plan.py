"""`dopsd library plan`: what a library holds and takes, before anything starts."""

from __future__ import annotations

from dopsd.config import RunConfig
from dopsd.errors import ConfigError
from dopsd.library.catalogue import known_catalogue
from dopsd.library.estimate import Estimate, estimate
from dopsd.library.recipe import Recipes
from dopsd.plan.cards import Card


def plan_library(config: RunConfig, card: Card, efficiency: float) -> Estimate:
    """Raises as ``catalogue_of`` does, and ConfigError for a source that is drawn first."""
    catalogue = known_catalogue(config, recipes := Recipes(config))
    if catalogue is None:
        raise ConfigError(
            f"data.source: {config.data.source} is drawn when it is prepared; allowed: `dopsd "
            "prepare` first"
        )
    return estimate(recipes.config, catalogue, card, efficiency)
