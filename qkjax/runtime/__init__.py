"""This process and its machine: files, interrupts, several hosts, devices."""
