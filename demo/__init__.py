"""kvsvr on real input: `python -m demo`, or `make demo`.

Loads the files of this machine's Python standard library into an embedded store, asks it questions, then twice lets a
writer process overwrite a part of it and kills that process with SIGKILL in the middle. From the record of a third
process, which heard every acknowledgement and saw nothing of the store, it proves that nothing acknowledged is gone.

`steps.py` is the list of what happens; a new part of kvsvr is shown by a new step. `crash.py` runs the processes
`writer.py` and `witness.py`, `acks.py` is what they say to each other, `proof.py` what is concluded from it.

What it does not show: a loss of power. What a killed process wrote stays with the operating system, synced or not;
disks that drop what was not synced are simulated, by the tests.
"""
