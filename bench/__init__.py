"""kvsvr beside what one would pick instead: `python -m bench`.

A run is peers x cells x repetitions. `cells/` says what is done and timed, `adapters/` how each peer does it,
`runner.py` in which order and when again, `load.py` whether something else disturbed it, `limits.py` what the machine
allows at best, `results.py` what is made of the figures. `document.py` is a run as a file, and
`report.py`, `page.py`, `plots.py` and `compare.py` show one. docs/benchmarks.md says why it is fair.
"""
