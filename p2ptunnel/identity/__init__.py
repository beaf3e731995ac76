"""Who is who: keys, pinned TLS, access lists and the files they live in."""
