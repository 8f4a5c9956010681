"""The exceptions that end a run in one sentence for the user, never a traceback."""


class UserError(Exception):
    """What is wrong (with the value), what was expected, what to do: printed as it is, exit status 2."""


class Diverged(UserError):
    """A training whose loss exploded or is no number: it ends at once, and the runner records it as diverged."""
