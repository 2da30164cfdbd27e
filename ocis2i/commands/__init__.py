"""The verbs of the command line: each reads its flags, calls one function, prints its result."""
