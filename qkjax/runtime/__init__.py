"""Manages the environment of a run: files, interrupts, distributed processes and devices."""
