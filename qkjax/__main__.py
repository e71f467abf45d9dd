"""`python -m qkjax` is the `qkjax` command."""

from qkjax.cli import main

main()
