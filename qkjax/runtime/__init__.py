"""The environment of a run: files, interrupts, several processes, devices."""
