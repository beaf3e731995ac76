"""Pure state machines: datagrams and time in, datagrams and events out."""
