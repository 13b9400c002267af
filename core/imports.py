"""Functions that a user names as "module:function"."""

import importlib
from collections.abc import Callable
from typing import Any

from core.errors import UserError


def function_of(entry: str, name: str) -> Callable[..., Any]:
    """The function that `entry`, "module:function", names.

    Raises UserError if it cannot be imported or is not callable. name: of the flag or field, for the message.
    """
    module, _, attribute = entry.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the user's module can raise anything
        raise UserError(f"{name}={entry!r}: cannot be imported ({error}); give module:function") from error
    if not callable(function):
        raise UserError(f"{name}={entry!r} is not a function; give module:function")
    return function
