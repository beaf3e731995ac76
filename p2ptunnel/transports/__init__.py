"""Transports: each gives one reliable byte pipe to a peer."""
