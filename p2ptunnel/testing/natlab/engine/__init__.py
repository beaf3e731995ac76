"""The data plane: one process that delays, loses and translates packets between TUN devices (IPv4 NATs, any link).

It starts as a program of its own, with the standard library only and no site-packages, so that it is up in
milliseconds; therefore the modules here import each other relatively and nothing else of p2ptunnel.
"""
