"""SSH over streams: the system's OpenSSH by configuration, asyncssh by socket, host keys over the authenticated channel."""
