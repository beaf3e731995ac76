"""Authenticated streams over a pipe: the channel, the proofs that open it, and the streams in it."""
