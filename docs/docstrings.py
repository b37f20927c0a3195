"""What the reference is made of: docstrings as Markdown, presets as functions."""

import inspect
import re
import textwrap
from pathlib import Path

import griffe

REFERENCE = Path(__file__).resolve().parent / "reference"
# What can be linked to, by the last part of its name.
ENTRIES = {
    entry.rpartition(".")[2]: entry
    for page in REFERENCE.glob("*.md")
    for entry in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
}

DISPLAY = re.compile(r"^( *)\.\. math::\n((?:\1 +.*\n|\n)+)", re.MULTILINE)
LITERAL = re.compile(r"^( *)(\S.*):\n\n((?:\1 +.*\n|\n)+)", re.MULTILINE)
INLINE = re.compile(r":math:`([^`]*)`")
# "``(value, state)``: the loss and ...": the colon would end the name of a type.
RETURNED = re.compile(r"^( *Returns:\n +``[^`\n]*``): ", re.MULTILINE)
ROLE = re.compile(r":(?:func|class|meth|data):`([^`]*)`")


def as_markdown(docstring: str) -> str:
    """``docstring`` with its roles, equations and literal blocks in Markdown."""
    text = DISPLAY.sub(_display, docstring + "\n")
    text = LITERAL.sub(_literal, text)
    text = RETURNED.sub(r"\1 – ", text)
    text = INLINE.sub(lambda m: "$" + re.sub(r"\s+", " ", m[1]) + "$", text)
    return ROLE.sub(_reference, text).rstrip()


def _block(opening: str, match: re.Match, body: str, closing: str) -> str:
    lines = [opening, *textwrap.dedent(body).strip("\n").splitlines(), closing]
    return textwrap.indent("\n".join(lines), match[1])


def _display(match: re.Match) -> str:
    return "\n" + _block("$$", match, match[2], "$$") + "\n\n"


def _literal(match: re.Match) -> str:
    if not match[2].endswith(":"):  # the colon of a sentence
        return match[0]
    block = _block("```python", match, match[3], "```")
    return f"{match[1]}{match[2]}\n\n{block}\n\n"


def _reference(match: re.Match) -> str:
    name = re.sub(r"\s+", "", match[1]).rpartition(".")[2]
    return f"[`{name}`][{ENTRIES[name]}]" if name in ENTRIES else f"`{name}`"


class Roles(griffe.Extension):
    """Converts each docstring when it is read."""

    def on_instance(self, *, obj, **_):
        """Called for every object of the package."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


class Presets(griffe.Extension):
    """The presets that are made of `newton_cg` and a table, as functions.

    Read from the source alone they would be attributes without signature or docstring.
    """

    def on_package(self, *, pkg, **_):
        """Called once all modules of the package are read."""
        from ncg_optax import presets

        module = pkg["presets"]
        base = module["newton_cg"]
        for name, defaults in presets.DEFAULTS.items():
            if name == base.name:
                continue
            parameters = [
                griffe.Parameter(
                    parameter.name,
                    annotation=parameter.annotation,
                    kind=parameter.kind,
                    default=repr(defaults[parameter.name]),
                )
                for parameter in base.parameters
            ]
            text = as_markdown(inspect.getdoc(getattr(presets, name)))
            preset = griffe.Function(
                name,
                parameters=griffe.Parameters(*parameters),
                returns=base.returns,
                docstring=griffe.Docstring(text, lineno=1),
            )
            preset.docstring.parent = preset
            module.set_member(name, preset)
