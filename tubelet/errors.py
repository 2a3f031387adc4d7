"""Errors that a user can act on: the command line prints them without a traceback."""


class TubeletError(Exception):
    """Says what is wrong, what was expected, where, and what to do, in one message."""
