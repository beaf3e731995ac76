"""What tests need and programs do not: a clock, an in-memory network, a laboratory of real NATs, suites for every stream.

It ships with the package, so that whoever builds on p2ptunnel can test against the same networks as the package itself.
"""
