"""The one exception for bad input: a sentence for the user, never a traceback."""


class UserError(Exception):
    """What is wrong (with the value), what was expected, what to do: printed as it is, exit status 2."""
