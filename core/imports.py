"""Functions that a user names as "module:function"."""

import importlib
from collections.abc import Callable
from typing import Any

from core.errors import UserError


def function_of(entry: str, name: str) -> Callable[..., Any]:
    """Imports the function that `entry` names as "module:function".

    name: the flag or field that holds `entry`, for the message. Raises UserError if the function cannot be imported or
    is not callable.
    """
    module, _, attribute = entry.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the user's module can raise anything
        raise UserError(f"{name}={entry!r}: cannot be imported ({error}); give module:function") from error
    if not callable(function):
        raise UserError(f"{name}={entry!r} is not a function; give module:function")
    return function
