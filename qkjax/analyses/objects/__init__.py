"""Whether modes join parts of one object."""
