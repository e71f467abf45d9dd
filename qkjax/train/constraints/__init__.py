"""Constraints on the query-key interaction of a layer, as parametrisations of its kernels.

Each turns a layer's own parameters into plain query and key kernels that satisfy the constraint exactly, whatever the
parameters are. It therefore holds at every step of any optimiser, and in the exported checkpoint. (The paper trains
nothing; this is our extension.)

A constraint is one entry in one file of this folder: unconstrained.py, symmetry.py, spectrum.py or coordinates.py.
"""

from qkjax.train.constraints.record import Constraint
from qkjax.train.constraints.registry import CONSTRAINTS, constraint, example_name, schedule

__all__ = ["CONSTRAINTS", "Constraint", "constraint", "example_name", "schedule"]
