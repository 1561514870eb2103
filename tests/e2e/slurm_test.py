"""Agents that Slurm starts: examples/slurm against Debian's Slurm, on hosts that are namespaces."""

import os
import shutil
import subprocess
import unittest

import hosts as network
from cluster import Cluster, Events, PROGRAM
from harness import EndToEndTest, Job, main, wait_until

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPT = os.path.join(HERE, "..", "..", "examples", "slurm", "agents.sbatch")

CONFIG = """\
ClusterName=test
SlurmctldHost={controller}({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmctldPort=16817
SlurmdPort=16818
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=20
"""

SETS = ["train.steps=100000", "elastic.slots_per_node=1", "elastic.nodes.min=1",
        "elastic.nodes.max=2",
        "launch.allow_root=true", "checkpoint.every_steps=0"]


def why_not():
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch")
               if shutil.which(name) is None]
    return network.why_not() or (f"not installed: {', '.join(missing)}" if missing else "")


class Slurm:
    """munged and slurmctld on this machine, a slurmd in each host."""

    def __init__(self, folder, hosts):
        self.folder, self.hosts = folder, hosts
        self.environment = {"PATH": os.environ["PATH"], "HOME": folder,
                            "SLURM_CONF": os.path.join(folder, "slurm.conf")}
        self.daemons = []

    def path(self, name):
        return os.path.join(self.folder, name)

    def start(self):
        for name in ("state", "spool"):
            os.mkdir(self.path(name))
        with open(self.path("munge.key"), "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(os.urandom(128))
        config = CONFIG.format(controller=os.uname().nodename, address=self.hosts.address,
                               folder=self.folder)
        for host in self.hosts:
            os.mkdir(self.path(f"spool/{host.name}"))
            config += f"NodeName={host.name} NodeAddr={host.address} CPUs=1 State=UNKNOWN\n"
        config += "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"
        for name, text in (("slurm.conf", config), ("cgroup.conf", "CgroupPlugin=cgroup/v1\n")):
            with open(self.path(name), "w", encoding="utf-8") as file:
                file.write(text)
        self.daemon(["munged", "--foreground", "--force", f"--key-file={self.path('munge.key')}",
                     f"--socket={self.path('munge.sock')}", f"--pid-file={self.path('munged.pid')}",
                     f"--log-file={self.path('munged.log')}",
                     f"--seed-file={self.path('munge.seed')}"])
        wait_until(lambda: os.path.exists(self.path("munge.sock")), "munged", 20)
        self.daemon(["slurmctld", "-D", "-c"])
        for host in self.hosts:
            # Its plug-in looks for control groups, and uses none.
            host.start("sh", "-c",
                       f"mount -t tmpfs none /sys/fs/cgroup; exec slurmd -D -N {host.name}",
                       environment=self.environment, log="slurmd.log")
        wait_until(lambda: self.run("sinfo", "-h", "-t", "idle", "-o",
                                    "%D").strip() == str(len(self.hosts)),
                   "idle nodes", 60, every=0.5)

    def daemon(self, command):
        with open(self.path(f"{command[0]}.out"), "wb") as out:
            self.daemons.append(subprocess.Popen(command, env=self.environment, cwd=self.folder,
                                                 stdin=subprocess.DEVNULL, stdout=out, stderr=out))

    def run(self, *command, environment=None):
        done = subprocess.run(command, env={**self.environment, **(environment or {})},
                              cwd=self.folder,
                              capture_output=True, timeout=60, check=False)
        if done.returncode != 0:
            raise AssertionError(f"{command}: {done.stderr.decode()}")
        return done.stdout.decode()

    def stop(self):
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


@unittest.skipIf(why_not(), why_not())
class SlurmTest(EndToEndTest):
    def test_allocations_come_and_go(self):
        with network.Hosts(2) as hosts:
            folder = self.path("slurm")
            os.mkdir(folder)
            slurm, cluster = Slurm(folder, hosts), Cluster(self, hosts)
            events = None
            try:
                slurm.start()
                cluster.start_coordinator()
                job = Job(self, "on-slurm", SETS)
                cluster.submit(job)
                cluster.wait_for_state(job.name, "WAITING")
                events = Events(cluster, job.name)
                variables = {"MOESAIC_COORDINATOR": cluster.address,
                             "MOESAIC_TLS_DIR": cluster.certs,
                             "MOESAIC": PROGRAM, "MOESAIC_SLOTS": "1"}
                batch = ["sbatch", "--parsable", "--nodes=1", "--export=ALL", SCRIPT]

                first = slurm.run(*batch, environment=variables).strip()
                wait_until(lambda: events.last_step()["step"] > 5,
                           lambda: f"steps; {cluster.logs()}", 60)
                self.assertEqual(cluster.status(job.name)["ranks"], 1)
                second = slurm.run(*batch, environment=variables).strip()
                wait_until(lambda: cluster.status(job.name)["ranks"] == 2, "two ranks", 60,
                           every=0.2)

                before = events.last_step()["step"]
                slurm.run("scancel", first)
                wait_until(lambda: cluster.status(job.name)["ranks"] == 1, "one rank", 60,
                           every=0.2)
                wait_until(lambda: events.last_step()["step"] > before + 10, "training to go on",
                           60)
                status = cluster.status(job.name)
                self.assertEqual(status["restarts"], 0, status)
                self.assertEqual(sorted(e["step"] for _, e in events.of_kind("step")),
                                 list(range(1, 1 + len(events.of_kind("step")))),
                                 "a step was done twice")

                cluster.expect("stop", job.name)
                cluster.verb("wait", job.name, "--timeout", "60s")
                slurm.run("scancel", second)
                wait_until(lambda: slurm.run("squeue", "-h").strip() == "", "an empty queue", 60,
                           every=0.5)
            finally:
                if events is not None:
                    events.close()
                cluster.close()
                slurm.stop()


if __name__ == "__main__":
    main()
