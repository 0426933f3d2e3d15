"""The replica process: a replica of a set, its clients and its peers."""
