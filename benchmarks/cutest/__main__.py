"""Lets ``python -m benchmarks.cutest`` start the command-line program."""

from benchmarks.cutest.commands import app

if __name__ == "__main__":
    app(prog_name="python -m benchmarks.cutest")
