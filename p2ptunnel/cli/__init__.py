"""The command line: one module a command, loaded when chosen, no logic of its own."""
