"""Constraints on the query-key interaction of a layer, as parametrisations of its kernels.

A constraint maps a layer's own parameters to plain query and key kernels. For any values of these parameters, the
kernels satisfy the constraint exactly. The constraint therefore holds at every step of any optimiser, and in the
exported checkpoint. (Training is our extension: the paper trains no models.)

Each constraint is one entry of `CONSTRAINTS` in unconstrained.py, symmetry.py, spectrum.py or coordinates.py.
"""

from qkjax.train.constraints.record import Constraint
from qkjax.train.constraints.registry import CONSTRAINTS, constraint, example_name, schedule

__all__ = ["CONSTRAINTS", "Constraint", "constraint", "example_name", "schedule"]
