"""Which data arguments a function takes by name, and which of those given it gets."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ncg_optax._utils import names

# Names that `update` takes itself and never passes to a value_fn.
RESERVED = frozenset({"updates", "state", "params", "value", "grad", "value_fn"})


def _data_parameters(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of ``fn`` after the first, which takes params or outputs."""
    parameters = list(inspect.signature(fn).parameters.values())
    for i, parameter in enumerate(parameters):
        if parameter.kind in (
            parameter.POSITIONAL_ONLY,
            parameter.POSITIONAL_OR_KEYWORD,
        ):
            return parameters[:i] + parameters[i + 1 :]
        if parameter.kind is parameter.VAR_POSITIONAL:
            return parameters
    name = getattr(fn, "__name__", None) or repr(fn)
    raise TypeError(
        f"{name} must take the parameters as its first positional argument, but its "
        f"signature is {inspect.signature(fn)}."
    )


def named_parameters(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of ``fn`` after the first that can be passed by name."""
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p for p in _data_parameters(fn) if p.kind in by_name]


def _takes_any_name(fn: Callable[..., Any]) -> bool:
    """Whether ``fn`` has ``**kwargs``."""
    return any(p.kind is p.VAR_KEYWORD for p in _data_parameters(fn))


def data_names(fn: Callable[..., Any]) -> tuple[list[str], bool]:
    """Names of the parameters of ``fn`` after the first; whether it has ``**kwargs``.

    Those without a default come first.
    """
    named = sorted(named_parameters(fn), key=lambda p: p.default is not p.empty)
    return [p.name for p in named], _takes_any_name(fn)


def unused_names(
    fns: Iterable[Callable[..., Any]], given: Iterable[str]
) -> tuple[list[str], list[str]]:
    """The names that none of the functions takes, and those that they take.

    The first list is empty if a function has ``**kwargs``.
    """
    taken = [data_names(fn) for fn in fns]
    known = list(dict.fromkeys(name for some, _ in taken for name in some))
    if any(takes_any for _, takes_any in taken):
        return [], known
    return [name for name in given if name not in known], known


def warn_of_unused(
    who: str,
    fns: Sequence[Callable[..., Any]],
    given: Iterable[str],
    only_similar: bool = False,
) -> None:
    """Warns of data that no function takes: probably its name is misspelt.

    With ``only_similar`` the arguments may be for other functions, and a warning needs
    the similar name of an optional argument that is not given. (A required one that is
    not given is an error, which names the similar one as well.)
    """
    given = [name for name in given if name not in RESERVED]
    unused, known = unused_names(fns, given)
    optional = [
        p.name
        for fn in fns
        for p in named_parameters(fn)
        if p.default is not p.empty and p.name not in given
    ]
    for name in unused:
        if only_similar and not names.meant(name, optional):
            continue
        # As of this line, so that Python shows each text once.
        warnings.warn(
            f"ncg_optax: {who}: no function takes the argument {name}"
            f"{names.meant(name, known)}; the loss takes {names.listed(known)}. To "
            "silence this: warnings.filterwarnings('ignore', 'ncg_optax: .* no "
            "function takes').",
            stacklevel=1,
        )


def select_arguments(
    role: str, fn: Callable[..., Any], given: Mapping[str, Any], partial: bool = False
) -> dict[str, Any]:
    """Those of the ``given`` keyword arguments that ``fn`` takes.

    Args:
      role: how the error message calls ``fn``.
      fn: a function of the parameters and further arguments. If it has ``**kwargs`` it
        gets all arguments but the reserved ones, else those that it names.
      given: keyword arguments by name.
      partial: whether the missing arguments are passed later.

    Returns:
      The keyword arguments for ``fn``.

    Raises:
      TypeError: if a parameter without default is not given, unless ``partial``.
    """
    available = {k: v for k, v in given.items() if k not in RESERVED}
    if _takes_any_name(fn):
        return available
    by_name = named_parameters(fn)
    missing = [
        p.name for p in by_name if p.default is p.empty and p.name not in available
    ]
    if missing and not partial:
        reserved = sorted(RESERVED.intersection(missing))
        hint = (
            f" {', '.join(reserved)}: reserved by optax, rename the parameter."
            if reserved
            else " Pass them by name, or close over them: "
            "lambda params: loss(params, batch)."
        )
        raise TypeError(
            f"{role} needs the argument(s) {', '.join(missing)}, which were not given; "
            f"available: {names.listed(sorted(available))}"
            f"{names.meant(missing[0], available)}.{hint}"
        )
    return {p.name: available[p.name] for p in by_name if p.name in available}
