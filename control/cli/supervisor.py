"""Keeps a cloud's processes running: starts them in order, starts again what dies, stops them in reverse.

It imports nothing but the standard library's small modules, so that it costs little memory. As the sub-reaper of all that
it starts, it also reaps the helpers that libvirt orphans and then waits to see vanish. When it dies, its children are
told to end (running servers are not its children's children any more, and go on).
"""
import contextlib
import ctypes
import fcntl
import json
import os
import signal
import sys
import time

#: Seconds: a process that dies is started again after 0.2, 0.4 ... up to MAX_DELAY; one that lived LONG starts over at 0.2.
FIRST_DELAY, MAX_DELAY, LONG = 0.2, 10.0, 20.0

#: Seconds that a process has to end before it is killed.
STOP_WITHIN = 20.0

#: Seconds after which a pid that could not be written down is written again.
NOTE_AGAIN = 2.0

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
CLONE_NEWNET = 0x40000000


class Process:
    """One supervised process, as processes.json describes it.

    name, argv; environment: what it has beside the supervisor's; namespace: file of the network namespace that it runs in;
    is_role: SIGUSR1 ends it, so that `brume down` can take the host down while the rest still runs.
    """

    def __init__(self, plan, run_dir, log_dir):
        self.name, self.argv, self.environment = plan["name"], plan["argv"], plan.get("environment", {})
        self.namespace, self.is_role = plan.get("namespace"), plan.get("is_role", False)
        self.pid_file = os.path.join(run_dir, self.name + ".pid")
        self.log = os.path.join(log_dir, self.name + ".log")
        self.pid = self.noted = 0       # noted: the pid that the pid file has
        self.started = 0.0
        self.delay = FIRST_DELAY
        self.due = 0.0
        self.stopping = False

    def start(self):
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                self._become(parent)
            except OSError as error:
                say(f"{self.name}: {error}")
            finally:
                os._exit(127)
        self.pid, self.started = pid, time.monotonic()
        self.note()

    def note(self):
        """Write the pid down. On a full disk that fails, and is tried again: the process runs all the same."""
        with contextlib.suppress(OSError):
            with open(self.pid_file, "w") as file:
                file.write(f"{self.pid}\n")
            self.noted = self.pid

    def _become(self, parent):
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            return
        os.setsid()
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, null), (1, log), (2, log)):
            os.dup2(source, target)
        if self.namespace:
            there = os.open(self.namespace, os.O_RDONLY)
            if libc.setns(there, CLONE_NEWNET) != 0:
                say(f"{self.name}: cannot enter {self.namespace}: {os.strerror(ctypes.get_errno())}")
                return
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        os.execvpe(self.argv[0], self.argv, {**inherited, **self.environment})  # noqa: S606 - the state directory's owner wrote the list

    def ended(self, status):
        lived = time.monotonic() - self.started
        self.delay = FIRST_DELAY if lived > LONG else min(self.delay * 2, MAX_DELAY)
        self.due = time.monotonic() + self.delay
        again = "" if self.stopping else f"; again in {self.delay:.1f} s"
        say(f"{self.name} (pid {self.pid}) ended with {describe(status)} after {lived:.1f} s{again}")
        self.pid = self.noted = 0
        with contextlib.suppress(OSError):
            os.remove(self.pid_file)


def describe(status):
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"status {os.WEXITSTATUS(status)}"


def say(text):
    with contextlib.suppress(OSError):          # a full disk takes no log; what is supervised goes on
        os.write(2, f"{time.strftime('%Y-%m-%dT%H:%M:%S')} supervisor: {text}\n".encode())


def rotate(path, limit=50 * 2**20):
    """Keep one older log beside a log that has grown past the limit."""
    with contextlib.suppress(OSError):
        if os.path.getsize(path) > limit:
            os.replace(path, path + ".1")


def reap(processes):
    """Collect every child that has ended, supervised or inherited."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        for process in processes:
            if process.pid == pid:
                process.ended(status)


def stop(processes):
    for process in reversed(processes):
        process.stopping = True
        if not process.pid:
            continue
        os.kill(process.pid, signal.SIGTERM)
        limit = time.monotonic() + STOP_WITHIN
        while process.pid and time.monotonic() < limit:
            signal.sigtimedwait(SIGNALS, 0.2)
            reap(processes)
        if process.pid:
            say(f"{process.name} (pid {process.pid}) did not end within {STOP_WITHIN:.0f} s: killed")
            os.kill(process.pid, signal.SIGKILL)
            while process.pid:
                signal.sigtimedwait(SIGNALS, 0.2)
                reap(processes)


SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
libc = ctypes.CDLL(None, use_errno=True)


def main():
    state_dir = sys.argv[1]
    run_dir, log_dir = os.path.join(state_dir, "run"), os.path.join(state_dir, "log")
    # Held by this process and all its children: who gets it knows that nothing of the cloud runs any more.
    lock = os.open(os.path.join(run_dir, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another supervisor, or a process that it started, still runs")
        sys.exit(75)
    os.set_inheritable(lock, True)
    with open(os.path.join(run_dir, "processes.json")) as file:
        processes = [Process(plan, run_dir, log_dir) for plan in json.load(file)]
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    with open(os.path.join(run_dir, "supervisor.pid"), "w") as file:
        file.write(f"{os.getpid()}\n")
    while True:
        now = time.monotonic()
        for process in processes:
            if not process.pid and process.due <= now:
                rotate(process.log)
                process.start()
            if process.pid and process.noted != process.pid:
                process.note()
        pause = min([*(process.due - now for process in processes if not process.pid),
                     *(NOTE_AGAIN for process in processes if process.pid and not process.noted), 60.0])
        caught = signal.sigtimedwait(SIGNALS, max(pause, 0.01))
        if caught and caught.si_signo in (signal.SIGTERM, signal.SIGINT):
            break
        if caught and caught.si_signo == signal.SIGUSR1:
            say("stopping the roles")
            stop([process for process in processes if process.is_role])
            processes = [process for process in processes if not process.is_role]
        reap(processes)
    say("stopping")
    stop(processes)
    os.remove(os.path.join(run_dir, "supervisor.pid"))


if __name__ == "__main__":
    main()
