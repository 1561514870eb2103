"""C1: a process that takes part in a save is killed before and after each of its writes, syncs,
renames and messages; and at random. The programs are the shipped ones (tests/fault/kill_point.cc is
preloaded), over network namespaces, with TLS; only the model is missing
(tests/fakes/fake_worker.cc).

After each kill: the newest step that was acknowledged is there, every step folder verifies and
holds what was saved, and the job goes on to its end. Nothing is left behind (M4).

Of messages, and of the second agent, only each eighth point is tried; KILL_SAMPLE=1 tries all.
KILL_RANDOM is the number of random kills, KILL_SEED what they are drawn from.
"""

import collections
import concurrent.futures
import contextlib
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
# pylint: disable=wrong-import-position
import hosts as network
from cluster import PROGRAM, Cluster, Supervisor
from harness import BIN, EndToEndTest, Job, main, read_bytes, wait_until

FAKE = os.path.join(os.environ.get("FAKE_PROGRAMS", ""), "fake_worker")
LIBRARY = os.environ.get("KILL_POINT", "")
SAMPLE = int(os.environ.get("KILL_SAMPLE", "8"))
RANDOM = int(os.environ.get("KILL_RANDOM", "40"))
SEED = int(os.environ.get("KILL_SEED", "1"))
CELLS = 6  # clusters at a time

SETS = ["model.moe.experts=2", "model.layers=1", "model.hidden=8", "model.moe.expert_width=8",
        "elastic.slots_per_node=1", "train.global_batch=4",
        "train.micro_batch=1", "elastic.nodes.min=2", "elastic.nodes.max=2", "health.lease_ttl=2s",
        "health.progress_timeout=10s", "health.max_failures=100000",
        "health.max_no_progress_generations=1000", "launch.allow_root=true"]
# Saves at 4 and 8; the second is broken.
SAVES = ["train.steps=8", "checkpoint.every_steps=4"]

# Where a rank finds what is preloaded into it.
WORKER = f"""\
#!/bin/sh
kill_point="$HOME/kill-point-$OMPI_COMM_WORLD_RANK"
[ -f "$kill_point" ] && exec env $(cat "$kill_point") {FAKE} "$@"
exec {FAKE} "$@"
"""


class Target:
    """One process of a save; which files count, and by which the save is known."""

    def __init__(self, name, paths, begin):
        self.name, self.paths, self.begin = name, paths, begin

    def environment(self, folder, at):
        return {"LD_PRELOAD": LIBRARY, "KILL_POINT_FOLDER": folder,
                "KILL_POINT_PATHS": ":".join(self.paths),
                "KILL_POINT_FROM": ":".join(self.begin), "KILL_POINT_AT": at}


AGENT = (["/checkpoints/", "/dev/shm/moesaic"], ["/step-8.", "-s8"])
RANK = (["/dev/shm/moesaic"], ["-r0.1", "-r1.1"])  # of its two buffers, the second


@unittest.skipIf(network.why_not(), network.why_not())
class KillPointsTest(EndToEndTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # Agents find their worker beside themselves.
        os.mkdir(cls.path("bin"))
        cls.program = shutil.copy(PROGRAM, cls.path("bin"))
        shutil.copy(os.path.join(BIN, "moesaic-orted-shim"), cls.path("bin"))
        with open(cls.path("bin", "moesaic-worker"), "w", encoding="utf-8") as file:
            file.write(WORKER)
        os.chmod(cls.path("bin", "moesaic-worker"), 0o755)

    @staticmethod
    def supervise(cluster, environment_of):
        def start(index):
            return Supervisor(
                lambda: cluster.start_agent(index, environment=environment_of(f"agent {index}")),
                0.05)
        coordinator = Supervisor(
            lambda: cluster.launch_coordinator(environment=environment_of("coordinator")), 0.05)
        wait_until(lambda: os.path.exists(os.path.join(cluster.folder, "state", "address")),
                   "the coordinator", 20)
        return [coordinator, *map(start, range(len(cluster.hosts)))]

    @staticmethod
    def end(cluster, supervisors):
        for index, agent in enumerate(supervisors[1:]):
            agent.end()
            # Killed at its end, or while it started: the next one clears up.
            if agent.process.returncode != 0:
                log = f"last-{os.path.basename(cluster.folder)}.log"
                last = cluster.start_agent(index, log=log)
                wait_until(lambda last=last: b"listens at" in read_bytes(last.log), "another agent",
                           10)
                last.send_signal(signal.SIGTERM)
                last.wait()
        supervisors[0].end()

    # ---- What must hold.

    def expect_usable(self, job):
        """Every step folder verifies and holds what was saved; what was acknowledged is there."""
        root = job.checkpoints
        self.expect(0, self.moesaic("ckpt", "verify", "--all", root))
        for step in job.steps():
            checked = subprocess.run([FAKE, "check", os.path.join(root, step)], capture_output=True,
                                     check=False)
            self.assertEqual(checked.returncode, 0, checked.stderr.decode())
        self.assertEqual(read_bytes(os.path.join(job.run_dir, "lost")), b"")
        self.assertGreaterEqual(int(job.steps()[-1].split("-")[1]), self.acknowledged(job))

    @staticmethod
    def acknowledged(job):
        return max(map(int, read_bytes(os.path.join(job.run_dir, "acknowledged")).split()),
                   default=0)

    @staticmethod
    def expect_no_parts(job):
        """Of steps that are not whole; nor one that was whole and no longer is."""
        def parts():
            folders = [os.path.join(job.checkpoints, name)
                       for name in (".staging", ".trash", ".quarantine")]
            return [name for folder in folders if os.path.isdir(folder)
                    for name in os.listdir(folder)]
        wait_until(lambda: not parts(), lambda: f"the end of {parts()}", 5)

    @staticmethod
    def expect_no_rest(hosts):
        wait_until(lambda: not hosts.leftovers(), lambda: f"M4: {hosts.leftovers()}", 10)

    # ---- Enumerated points.

    def save_and_kill(self, hosts, target, at):
        """A short job with two saves; the point that was hit, or all points when `at` is "none"."""
        name = f"{target.name}-{at}".replace(" ", "-")
        cluster = Cluster(self, hosts, program=self.program, name=name)
        try:
            return self.try_save_and_kill(cluster, target, at)
        except BaseException as error:
            fired = read_bytes(os.path.join(cluster.folder, "fired")).decode()
            raise AssertionError(f"{name} ({fired}): {error}\n{cluster.logs()}") from error

    def try_save_and_kill(self, cluster, target, at):
        hosts, folder = cluster.hosts, cluster.folder
        job = Job(self, f"{target.name}-{at}".replace(" ", "-"), [*SETS, *SAVES])
        preload = target.environment(folder, at)
        for host in hosts:
            for rank in range(2):
                path = os.path.join(host.folder, f"kill-point-{rank}")
                if os.path.exists(path):
                    os.remove(path)
                if target.name == f"rank {rank}":
                    with open(path, "w", encoding="utf-8") as file:
                        file.write(" ".join(f"{key}={value}" for key, value in preload.items()))
        of = lambda process: preload if target.name == process else {}
        supervisors = self.supervise(cluster, of)
        try:
            cluster.submit(job)
            self.expect(0, cluster.verb("wait", job.name, "--timeout", "60s"))
            self.expect_no_parts(job)
        finally:
            self.end(cluster, supervisors)
        self.expect_usable(job)
        self.assertEqual(job.steps()[-1], "step-000000008")
        self.expect_no_rest(hosts)
        name = "points" if at == "none" else "fired"
        return read_bytes(os.path.join(folder, name)).decode().splitlines()

    def kill_at_points(self, target, every_file=1):
        cells = queue.Queue()

        def trial(at):
            cell = cells.get()
            try:
                return self.save_and_kill(cell, target, at)
            finally:
                cells.put(cell)

        with contextlib.ExitStack() as stack:
            for _ in range(CELLS):
                cells.put(stack.enter_context(network.Hosts(2)))
            names = [point.split()[0] for point in trial("none")]
            files = [name for name in names if name.startswith("file-")]
            messages = [name for name in names if name.startswith("message-")]
            trials = files[::every_file] + messages[::SAMPLE]
            with concurrent.futures.ThreadPoolExecutor(CELLS) as pool:
                futures = [pool.submit(trial, at) for at in trials]
        broken = [str(future.exception()) for future in futures if future.exception()]
        self.assertEqual(len(broken), 0, f"{len(broken)} of {len(trials)}\n" + "\n".join(broken))
        fired = [future.result() for future in futures]
        kinds = collections.Counter(" ".join(hit[0].split()[1:3]) for hit in fired if hit)
        print(f"{target.name}: {len(files)} points of files, {len(messages)} of messages; "
              f"killed {kinds.total()} times: {dict(kinds)}", file=sys.stderr, flush=True)
        # Those of messages are not the same each time; those of files are, but for the
        # coordinator's store.
        for kind, share in (("file-", 0.8), ("message-", 0.5)):
            hits = [bool(hit) for at, hit in zip(trials, fired) if at.startswith(kind)]
            self.assertGreaterEqual(sum(hits), share * len(hits), f"{kind} of {target.name}")

    def test_c1_points_of_the_coordinator(self):
        self.kill_at_points(Target("coordinator", ["/checkpoints/", "coordinator.sqlite"],
                                   ["/step-8."]))

    def test_c1_points_of_an_agent(self):
        self.kill_at_points(Target("agent 0", *AGENT))

    def test_c1_points_of_another_agent(self):
        self.kill_at_points(Target("agent 1", *AGENT), SAMPLE)

    def test_c1_points_of_a_rank(self):
        self.kill_at_points(Target("rank 0", *RANK))

    def test_c1_points_of_another_rank(self):
        self.kill_at_points(Target("rank 1", *RANK))

    # ---- Random kills.

    def test_c1_random_kills(self):
        with network.Hosts(3) as hosts:
            cluster = Cluster(self, hosts, program=self.program, name="random")
            job = Job(self, "random", [*SETS, "elastic.nodes.max=3", "train.steps=1000000",
                                       "checkpoint.every_steps=5",
                                       "checkpoint.keep.last=20"])
            supervisors = self.supervise(cluster, lambda process: {})
            try:
                cluster.submit(job)
                kills = self.kill_at_random(cluster, job)
                cluster.expect("stop", job.name)
                cluster.wait_for_state(job.name, "CANCELLED")
                self.expect_no_parts(job)
            except BaseException as error:
                raise AssertionError(f"{error}\n{cluster.logs()}") from error
            finally:
                self.end(cluster, supervisors)
            self.expect_usable(job)
            self.expect_no_rest(hosts)
        print(f"killed {dict(kills)}; {self.acknowledged(job)} steps acknowledged", file=sys.stderr,
              flush=True)

    def kill_at_random(self, cluster, job):
        choose, kills = random.Random(SEED), collections.Counter()
        while kills.total() < RANDOM:
            before = self.acknowledged(job)
            wait_until(lambda: self.acknowledged(job) > before,
                       lambda: f"a commit after {dict(kills)}", 60)
            time.sleep(choose.uniform(0, 0.3))
            victim = choose.choice(["coordinator", "agent", "rank", "rank", "mpirun", "orted"])
            kills[victim] += self.kill(cluster, victim, choose)
            newest = os.path.join(job.checkpoints, job.steps()[-1])
            checked = subprocess.run([FAKE, "check", newest], capture_output=True, check=False)
            self.assertEqual(checked.returncode, 0, checked.stderr.decode())
            if kills.total() % 3 == 0:  # else blame keeps nodes away for longer and longer
                for host in cluster.hosts:
                    cluster.verb("node", "uncordon", host.name)
        return kills

    @staticmethod
    def kill(cluster, victim, choose):
        """How many were killed: none when there was none."""
        program = {"rank": "fake_worker"}.get(victim, victim)
        if victim == "coordinator":
            pids = [cluster.coordinator.pid]
        elif victim == "agent":
            pids = [agent.pid for agent in cluster.agents.values()]
        else:
            pids = [pid for host in cluster.hosts for pid in host.pids(program)]
        try:
            os.kill(choose.choice(pids), signal.SIGKILL)
        except (IndexError, ProcessLookupError):
            return 0
        return 1


if __name__ == "__main__":
    main()
