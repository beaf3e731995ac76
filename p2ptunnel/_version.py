"""The version of the package; the wire has a version of its own (`p2ptunnel.defaults.WIRE_VERSION`)."""

__version__ = "0.1.0"
