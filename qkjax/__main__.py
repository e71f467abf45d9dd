"""Makes `python -m qkjax` run the `qkjax` command."""

from qkjax.cli import main

main()
