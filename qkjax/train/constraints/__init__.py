"""Constraints on the query-key interaction of a layer. Each constraint is a parametrisation of the layer's kernels.

A constraint maps a layer's own parameters to plain query and key kernels. For any values of these parameters, the
kernels satisfy the constraint exactly. The constraint is therefore satisfied at every step of any optimiser, and in the
exported checkpoint. (The paper trains no models.)

Each constraint is an entry in the dict `CONSTRAINTS` of unconstrained.py, symmetry.py, spectrum.py or coordinates.py.
"""

from qkjax.train.constraints.record import Constraint
from qkjax.train.constraints.registry import CONSTRAINTS, constraint, example_name, schedule

__all__ = ["CONSTRAINTS", "Constraint", "constraint", "example_name", "schedule"]
