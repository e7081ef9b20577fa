"""How the bundled worlds are made: one recipe a world, from nothing to the exported world, by `farworld recipe`."""

from __future__ import annotations

import difflib

from farworld.train.recipes.dmlab import DMLAB
from farworld.train.recipes.doom import DOOM
from farworld.train.recipes.minecraft import MINECRAFT
from farworld.train.recipes.recipe import Recipe

RECIPES = {recipe.name: recipe for recipe in (DMLAB, DOOM, MINECRAFT)}


def recipe_of(name: str) -> Recipe:
    """The recipe of a world; ValueError names those that there are."""
    if name in RECIPES:
        return RECIPES[name]
    nearest = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise ValueError(f"unknown recipe {name!r}, known are {', '.join(RECIPES)}{hint}")
