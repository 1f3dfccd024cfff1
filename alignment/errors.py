"""The error that a user can act on."""


class UserError(Exception):
    """Bad input: a setting, a row or a file. The message names it and says what to do; no traceback is needed."""
