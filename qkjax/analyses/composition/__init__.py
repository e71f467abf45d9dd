"""Measures which heads read what earlier heads write."""
