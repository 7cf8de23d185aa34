"""`dopsd library plan`: what a library holds and takes, before anything starts."""

from __future__ import annotations

from dopsd.config import RunConfig
from dopsd.library.catalogue.catalogue import known_catalogue
from dopsd.library.catalogue.estimate import Estimate, estimate
from dopsd.library.catalogue.recipe import Recipes
from dopsd.plan.cards import Card


def plan_library(config: RunConfig, card: Card, efficiency: float) -> Estimate:
    """Raises as ``catalogue_of`` does."""
    catalogue = known_catalogue(config, recipes := Recipes(config))
    return estimate(recipes.config, catalogue, card, efficiency)
