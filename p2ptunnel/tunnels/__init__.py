"""Local sockets tied to streams: what a forward listens on, what a service stands for."""
