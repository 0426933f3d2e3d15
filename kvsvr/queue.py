"""A durable task queue on any store: docs/queue.md."""

from kvsvr.services.queue import Backlog, Put, Queue, Task
from kvsvr.services.roster import Roster

__all__ = ["Backlog", "Put", "Queue", "Roster", "Task"]
