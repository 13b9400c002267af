"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake of the user's, found before long work starts.

    Its text is one line: the value, what is allowed, what to do. `main.py` prints that line and exits with code 2;
    every other exception is a bug and keeps its traceback.
    """
