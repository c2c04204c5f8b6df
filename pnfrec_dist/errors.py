"""The exceptions that commands print as one line."""

import difflib
import re
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input is wrong. The message says in one line what is wrong, the value, and what to do.

    Commands print it on stderr and exit with 2; any other exception is a bug and keeps its traceback.
    """


class RunError(RuntimeError):
    """The input was right, but the run failed. Commands print it on stderr and exit with 1."""


def require(ok: bool, name: str, value: object, rule: str) -> None:
    """Raises InputError about a setting's value unless ok."""
    if not ok:
        shown = (", ".join(map(repr, value)) or "empty") if isinstance(value, tuple) else repr(value)
        raise InputError(f"{name} is {shown}; it must be {rule}")


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that ends an error about an unknown name: the nearest known one, else all of them."""
    known = sorted(known)
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    if close:
        return f"did you mean {by_lower[close[0]]!r}?"
    return f"known: {', '.join(known)}"


def first_line(error: BaseException, *, with_class: bool = False) -> str:
    """The first line of an error's text, or its class if it has none. More may follow, so a final full stop is left
    out. with_class: after the name of its class.
    """
    kind, text = type(error).__name__, str(error).strip()
    line = text.splitlines()[0].rstrip(".") if text else kind
    return f"{kind}: {line}" if with_class and line != kind else line


def one_line(text: str) -> str:
    """An error's text in one line, up to a line of dashes, if there is one, and without the final full stop."""
    return " ".join(re.sub(r"[-─]{4,}.*", "", text, flags=re.DOTALL).split()).rstrip(".")
