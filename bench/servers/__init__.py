"""kvsvr's replicas beside the servers that people would run instead, on loopback: `python -m bench servers`.

processes.py   a server as a process: started, looked at, killed
systems.py     kvsvr, Redis, etcd, NATS, each as a set of processes
generator.py   the clients: native/bench/load.c
cells.py       what is measured, who stands beside whom, which bars
kills.py       the gap after kill -9, and what was lost; a timeline through a kill
run.py         in which order; from samples to a document
cli.py         the command
"""
