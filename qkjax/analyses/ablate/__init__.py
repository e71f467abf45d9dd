"""Measures the effects of editing modes on a set of images."""
