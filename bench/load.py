"""What else the machine did while something was timed.

/proc/stat counts the CPU time of everybody; less our own (getrusage) and less the kernel's threads it is that of other
programs. Kernel threads are left out because they also write back and commit the journal on our behalf; what they used
is recorded beside. Time stolen by a hypervisor counts as other load: somebody else had our core.
"""

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PF_KTHREAD = 0x00200000  # include/linux/sched.h
CORES_DISTURBED = 0.10  # More than this much of one core used by others, and the repetition is disturbed.
SLACK_SECONDS = 0.03  # /proc/stat counts in ticks of 10 ms per core; short repetitions need room for that.


@dataclass(frozen=True, slots=True)
class Load:
    wall_seconds: float
    own_seconds: float
    kernel_seconds: float
    other_seconds: float

    @property
    def disturbed(self) -> bool:
        return self.other_seconds > self.wall_seconds * CORES_DISTURBED + SLACK_SECONDS


@dataclass(frozen=True, slots=True)
class Snapshot:
    wall: float
    own: float
    kernel: float
    busy: float

    @staticmethod
    def take() -> "Snapshot":
        return Snapshot(time.perf_counter(), own_seconds(), _kernel_seconds(), _busy_seconds())

    def until(self, later: "Snapshot") -> Load:
        own, kernel = later.own - self.own, later.kernel - self.kernel
        other = max(0.0, later.busy - self.busy - own - kernel)
        return Load(later.wall - self.wall, own, kernel, other)


def own_seconds() -> float:
    """With the programs we started and waited for: a compiler, the C harness."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _busy_seconds() -> float:
    """All but idle and iowait. `guest` is already inside `user`."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, _first_line("/proc/stat").split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_SECOND


def _kernel_seconds() -> float:
    """Of the kernel's threads; 0 where a container hides them, and then their time counts as other load."""
    ticks = 0
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = _first_line(f"/proc/{entry.name}/stat")
        except OSError:
            continue  # It ended meanwhile.
        fields = stat.rpartition(")")[2].split()  # The name, in parentheses, may itself hold blanks.
        if int(fields[6]) & PF_KTHREAD:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_SECOND


def _first_line(path: str) -> str:
    return Path(path).read_text().partition("\n")[0]


def settle(seconds_max: float = 60.0, *, quiet_count_min: int = 3) -> float:
    """Waits for background work: until this process uses no CPU, then until dirty pages are on disk.

    One rule for all peers, without asking any: a compaction, a checkpoint or a segment being prepared costs CPU. Dirty
    pages matter because the next fdatasync would wait for them. Returns how long it took.
    """
    started = time.perf_counter()
    quiet_count = 0
    while quiet_count < quiet_count_min and time.perf_counter() - started < seconds_max:
        before = own_seconds()
        time.sleep(0.03)
        quiet_count = quiet_count + 1 if own_seconds() - before < 0.002 else 0
    os.sync()
    return time.perf_counter() - started
