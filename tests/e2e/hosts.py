"""Hosts for tests: network namespaces joined by a bridge, each with a name and a /dev/shm of its
own.

    with Hosts(4) as hosts:
        agent = hosts[0].start("moesaic", "agent", ...)
        hosts[1].cut()

Needs root and iproute2. Names are unique to a run, so that runs do not meet; all is removed at the
end, whatever happened in between.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time

MARK = "MOESAIC_TEST_HOSTS"  # every process started in a host has it in its environment


def why_not():
    """Empty when hosts can be made; otherwise what is missing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "nsenter", "unshare", "mpirun"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    probe = f"moetest{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    if made.returncode != 0:
        return ("this machine does not let network namespaces be made: "
                + made.stderr.decode().strip())
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return ""


def run_ip(*arguments):
    done = subprocess.run(["ip", *arguments], capture_output=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.decode().strip()}")


def environment_of(pid):
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def command_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


class Host:
    """One host. Its network can be cut; its processes see only its own shared memory."""

    def __init__(self, hosts, index):
        self.hosts = hosts
        self.index = index
        self.name = f"n{index}"
        self.namespace = f"{hosts.prefix}n{index}"
        self.link = f"{hosts.prefix}v{index}"  # at the bridge
        self.address = f"{hosts.network}.{index + 1}"
        self.folder = os.path.join(hosts.folder, self.name)
        self.holder = None
        self.processes = []

    def make(self):
        os.makedirs(self.folder)
        run_ip("netns", "add", self.namespace)
        run_ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns",
               self.namespace)
        run_ip("link", "set", self.link, "master", self.hosts.bridge, "up")
        inside = ["-n", self.namespace]
        run_ip(*inside, "addr", "add", f"{self.address}/24", "dev", "eth0")
        run_ip(*inside, "link", "set", "eth0", "up")
        run_ip(*inside, "link", "set", "lo", "up")
        # One process holds the other namespaces of the host.
        ready = os.path.join(self.folder, "ready")
        script = (f"hostname {self.name} && mount -t tmpfs -o mode=1777 shm /dev/shm"
                  f" && touch {ready} && exec sleep infinity")
        self.holder = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.namespace}", "--", "unshare", "--uts", "--mount",
             "sh", "-c", script],
            env=self.environment({}), start_new_session=True)
        deadline = time.monotonic() + 10
        while not os.path.exists(ready):
            if time.monotonic() > deadline or self.holder.poll() is not None:
                raise RuntimeError(f"host {self.name} does not come up")
            time.sleep(0.01)

    def environment(self, more):
        variables = {"PATH": os.environ["PATH"], "HOME": self.folder, MARK: self.hosts.prefix}
        variables.update(more)
        return variables

    def enter(self, command):
        return ["nsenter", "-t", str(self.holder.pid), "--net", "--uts", "--mount", "--", *command]

    def start(self, *command, environment=None, log=None):
        """Runs a program in the host; its output goes to the file `log` of the host's folder."""
        path = os.path.join(self.folder, log or f"process{len(self.processes)}.log")
        with open(path, "ab") as out:
            process = subprocess.Popen(self.enter(command), env=self.environment(environment or {}),
                                       stdin=subprocess.DEVNULL, stdout=out,
                                       stderr=subprocess.STDOUT,
                                       start_new_session=True)
        process.log = path
        self.processes.append(process)
        return process

    def run(self, *command, timeout=60):
        return subprocess.run(self.enter(command), env=self.environment({}), capture_output=True,
                              timeout=timeout, check=False)

    def cut(self):
        """From now on nothing reaches the host and nothing leaves it; no connection is closed."""
        run_ip("link", "set", self.link, "down")

    def restore(self):
        run_ip("link", "set", self.link, "up")

    def pids(self, program=""):
        """Of the host's processes, those of a program if it is given; not of the holder."""
        inside = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True,
                                check=False)
        pids = [int(pid) for pid in inside.stdout.split()]
        return [pid for pid in pids if pid != self.holder.pid and command_of(pid)
                and program in ("", os.path.basename(command_of(pid).split(" ")[0]))]

    def kill(self, program, number=signal.SIGKILL):
        """Sends the signal to every process of that program; how many there were."""
        pids = self.pids(program)
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        return len(pids)

    def shared_memory(self):
        """All files below /dev/shm of the host."""
        found = self.run("find", "/dev/shm", "-mindepth", "1").stdout.decode()
        return sorted(found.splitlines())

    def remove(self):
        for process in self.processes + [self.holder]:
            if process is not None and process.poll() is None:
                process.kill()
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for process in self.processes + [self.holder]:
            if process is not None:
                process.wait()
        subprocess.run(["ip", "netns", "del", self.namespace], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self.link], capture_output=True, check=False)


class Hosts:
    """`count` hosts; hosts[i] is one. This machine itself is at `address` of their network."""

    _made = 0
    _lock = threading.Lock()

    def __init__(self, count):
        with Hosts._lock:
            Hosts._made += 1
            number = (os.getpid() * 7 + Hosts._made) % 65536
        self.prefix = f"mz{number:04x}"  # interfaces have at most 15 letters
        self.bridge = f"{self.prefix}br"
        self.network = f"10.{64 + (number >> 8) % 128}.{number & 255}"
        self.address = f"{self.network}.254"
        self.folder = tempfile.mkdtemp(prefix="moesaic-hosts-")
        self.hosts = [Host(self, index) for index in range(count)]

    def __enter__(self):
        try:
            run_ip("link", "add", self.bridge, "type", "bridge")
            run_ip("addr", "add", f"{self.address}/24", "dev", self.bridge)
            run_ip("link", "set", self.bridge, "up")
            for host in self.hosts:
                host.make()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_):
        self.remove()

    def __getitem__(self, index):
        return self.hosts[index]

    def __len__(self):
        return len(self.hosts)

    def __iter__(self):
        return iter(self.hosts)

    def leftovers(self):
        """M4: what is left in the hosts, as text: processes, and files in shared memory."""
        left = []
        for host in self.hosts:
            left += [f"{host.name}: process {pid} {command_of(pid)}" for pid in host.pids()]
            left += [f"{host.name}: {path}" for path in host.shared_memory()]
        return left

    def remove(self):
        for host in self.hosts:
            host.remove()
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True, check=False)
        # What left its namespace still has the mark.
        mark = f"{MARK}={self.prefix}".encode()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            if mark in environment_of(pid) and int(pid) != os.getpid():
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass
        shutil.rmtree(self.folder, ignore_errors=True)
