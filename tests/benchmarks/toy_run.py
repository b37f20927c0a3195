"""``benchmarks run`` of the toy scenario in a process of its own: toy_run.py folder."""

import sys

import test_resume

from benchmarks.commands import app
from benchmarks.reports import curves
from benchmarks.scenarios import SCENARIOS
from benchmarks.training import resume

if __name__ == "__main__":
    SCENARIOS["toy"] = test_resume.TOY
    resume.INTERVAL = 0.0  # a checkpoint of every step
    curves.plot = lambda records, path: path
    app([*map(str, test_resume.SGD), sys.argv[1]])
