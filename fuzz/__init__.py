"""Hostile bytes for everything that reads what others wrote; `python -m fuzz --help`, or `make fuzz`."""
