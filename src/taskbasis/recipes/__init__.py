"""Recipes that people have: mergekit's YAML, read strictly and said in our words."""

from taskbasis.recipes.layers import Place, Tower, find_place, find_towers
from taskbasis.recipes.planning import Wanted, plan
from taskbasis.recipes.problems import RecipeError
from taskbasis.recipes.reading import parse_recipe, read_recipe
from taskbasis.recipes.schema import Document, Location, ModelRef, RecipeFile
from taskbasis.recipes.translating import Step, Translation, translate
from taskbasis.recipes.writing import to_yaml

__all__ = [
    "Document",
    "Location",
    "ModelRef",
    "Place",
    "RecipeError",
    "RecipeFile",
    "Step",
    "Tower",
    "Translation",
    "Wanted",
    "find_place",
    "find_towers",
    "parse_recipe",
    "plan",
    "read_recipe",
    "to_yaml",
    "translate",
]
