"""The policy methods: one module each, which declares `METHOD`. See `cai.core.plugins` for those of other packages."""

from cai.core.plugins import POLICY_METHOD, Registry
from cai.pipeline.policy_method import PolicyMethod
from cai.recipe import Recipe

METHODS: Registry[PolicyMethod] = Registry(POLICY_METHOD, PolicyMethod)


def is_watched(recipe: Recipe) -> bool:
    """Whether a gold reward model looks for over-optimization while the recipe's policy trains."""
    return recipe.wants_watch and METHODS.get(recipe.policy.method).watch
