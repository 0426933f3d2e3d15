"""The replica set as a model that runs: the rules as a pure state machine, and a simulator that judges them.

The rules (start with core.py) are to be read beside docs/protocol/model.md; `python -m tests.sim.model` runs them
through faults (start with simulate.py). Standard library only.
"""
