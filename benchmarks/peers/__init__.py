"""Other libraries beside this one, each in an environment of its own: speed, memory and quality."""
