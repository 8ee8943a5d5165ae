"""The commands, grouped as in the help: looking at pictures, searching, learning, checking."""
