"""From a tag to a connection: the punch agents of `protocol`, run over real sockets."""
