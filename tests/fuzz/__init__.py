"""Fuzzing of everything that qkjax reads.

`python -m tests.fuzz --minutes 60` mutates small valid inputs, one meaningful thing at a time, and checks that qkjax is
right or refuses them in one line (`oracle`). A mutated input is remade from a recipe: a kind of input and a list of
changes, in JSON. Recipes of failures are kept in `corpus/`, and tests/test_fuzz.py replays them.
"""
