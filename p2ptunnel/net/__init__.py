"""Sockets: the driver of the pure machines, TCP simultaneous open, observation of one's own addresses."""
