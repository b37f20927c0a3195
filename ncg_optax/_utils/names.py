"""Names that nothing has, in messages."""

import difflib
from collections.abc import Iterable


def meant(name: str, known: Iterable[str]) -> str:
    """`` (did you mean x?)`` with the most similar of the known names, or nothing.

    Examples:
      >>> from ncg_optax._utils.names import meant
      >>> meant("maxiters", ["maxiter", "rtol"]), meant("blue", ["maxiter", "rtol"])
      (' (did you mean maxiter?)', '')
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def listed(names: Iterable[str]) -> str:
    """The names, separated by commas; ``none`` if there is none."""
    return ", ".join(names) or "none"
