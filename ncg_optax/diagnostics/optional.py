"""The import of packages that are needed for one function only."""

import importlib
from typing import Any


def import_optional(module: str, who: str) -> Any:
    """``module``, which ``watch.who`` needs.

    Raises:
      ImportError: if it cannot be imported; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"watch.{who} needs {package}, which cannot be imported: "
            'pip install "ncg_optax[watch]"'
        ) from error
