"""Entries without a hard constraint: `free` (no constraint), `frozen` (untrained kernels) and `pull` (a penalty)."""

import jax
import numpy as np

from qkjax.train.constraints.record import QUERY_AND_KEY, Argument, Constraint, Head, xavier_pair


def _same(head: Head) -> dict[str, np.ndarray]:
    return {"query": head.query, "key": head.key}


CONSTRAINTS = {
    "free": Constraint(
        description="no constraint",
        parameters=QUERY_AND_KEY,
        init=xavier_pair,
        kernels=lambda p, shape: (p["query"], p["key"]),
        nearest=_same,
        factored=False,
        trained=True,
        target=None,
        argument=None,
    ),
    "frozen": Constraint(
        description="query and key kernels keep their initial values",
        parameters=QUERY_AND_KEY,
        init=xavier_pair,
        kernels=lambda p, shape: tuple(jax.lax.stop_gradient((p["query"], p["key"]))),
        nearest=_same,
        factored=False,
        trained=False,
        target=None,
        argument=None,
    ),
    "pull": Constraint(
        description="a penalty pulls the weighted cosine of the layer towards c",
        parameters=QUERY_AND_KEY,
        init=lambda key, shape, cosine: xavier_pair(key, shape),
        kernels=lambda p, shape, cosine: (p["query"], p["key"]),
        nearest=lambda head, cosine: _same(head),
        factored=False,
        trained=True,
        target=lambda cosine: cosine,
        argument=Argument(meaning="the cosine of pull(c)", type=float, low=-1, high=1, example=0.5),
    ),
}
