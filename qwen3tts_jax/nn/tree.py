"""Parameters of a module by their dotted names."""

from collections.abc import Mapping

import jax


def leaf_path(key_path) -> str:
    """The dotted name of a parameter from its pytree path."""
    names = [
        str(getattr(k, "name", getattr(k, "idx", getattr(k, "key", ""))))
        for k in key_path
    ]
    return ".".join(names[:-1] if names[-1] == "value" else names)


def with_leaves(module, values: Mapping):
    """The module with some parameters replaced, path -> array; it is not changed."""
    values = dict(values)
    flat, tree = jax.tree_util.tree_flatten_with_path(module)
    made = [values.pop(leaf_path(path), leaf) for path, leaf in flat]
    assert not values, f"there are no parameters {sorted(values)}"
    return jax.tree.unflatten(tree, made)
