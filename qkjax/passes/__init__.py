"""Runs resumable passes over a set of images, on all devices and hosts."""
