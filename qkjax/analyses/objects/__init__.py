"""Whether the query and the key of a mode lie on the same object."""
