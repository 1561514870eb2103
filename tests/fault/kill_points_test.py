"""C1: a process that takes part in a save is killed before and after each of its writes, syncs, renames
and messages; and at random. The programs are the shipped ones (tests/fault/kill_point.cc is preloaded),
over network namespaces, with TLS; only the model is missing (tests/fakes/fake_worker.cc).

After each kill: the newest step that was acknowledged is there, every step folder verifies and holds what
was saved, and the job goes on to its end. Nothing is left behind (M4).

KILL_MESSAGES (1: every point of a message, 8: each eighth) and KILL_RANDOM (how many) set how much is
done; KILL_SEED what is random.
"""

import collections
import concurrent.futures
import contextlib
import os
import queue
import random
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
# pylint: disable=wrong-import-position
import hosts as network
from cluster import PROGRAM, Cluster, Supervisor
from harness import BIN, EndToEndTest, Job, main, read_bytes, wait_until

FAKE = os.path.join(os.environ.get("FAKE_PROGRAMS", ""), "fake_worker")
LIBRARY = os.environ.get("KILL_POINT", "")
MESSAGES = int(os.environ.get("KILL_MESSAGES", "8"))
RANDOM = int(os.environ.get("KILL_RANDOM", "40"))
SEED = int(os.environ.get("KILL_SEED", "1"))
CELLS = 4  # clusters at a time

SETS = ["model.moe.experts=2", "model.layers=1", "model.hidden=8", "model.moe.expert_width=8",
        "elastic.slots_per_node=1", "train.global_batch=4",
        "train.micro_batch=1", "elastic.nodes.min=2", "elastic.nodes.max=2", "health.lease_ttl=2s",
        "health.progress_timeout=10s", "health.max_failures=100000",
        "health.max_no_progress_generations=1000", "launch.allow_root=true"]
# Saves at 4, 8 and 12; the one of step 8 is broken.
SAVES = ["train.steps=12", "checkpoint.every_steps=4"]

# Where a rank finds what is preloaded into it.
WORKER = f"""\
#!/bin/sh
kill_point="$HOME/kill-point-$OMPI_COMM_WORLD_RANK"
[ -f "$kill_point" ] && exec env $(cat "$kill_point") {FAKE} "$@"
exec {FAKE} "$@"
"""


class Target:
    """One process of a save, and by which files its part in it is known."""

    def __init__(self, name, paths, begin, end):
        self.name, self.paths, self.begin, self.end = name, paths, begin, end

    def environment(self, folder, at):
        return {"LD_PRELOAD": LIBRARY, "KILL_POINT_FOLDER": folder, "KILL_POINT_PATHS": ":".join(self.paths),
                "KILL_POINT_FROM": ":".join(self.begin), "KILL_POINT_UNTIL": ":".join(self.end),
                "KILL_POINT_AT": str(at)}


def targets():
    agent = (["/checkpoints/", "/dev/shm/moesaic"], ["/step-8.", "-s8"], ["/step-12.", "-s12"])
    return [Target("coordinator", ["/checkpoints/", "coordinator.sqlite"], ["/step-8."], ["/step-12."]),
            Target("agent 0", *agent), Target("agent 1", *agent),
            # Of its two buffers, the second.
            Target("rank 0", ["/dev/shm/moesaic"], ["-r0.1"], []), Target("rank 1", ["/dev/shm/moesaic"], ["-r1.1"], [])]


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

    # ---- What must hold.

    def expect_usable(self, job):
        """Every step folder verifies and holds what was saved; what was acknowledged is there."""
        root = job.checkpoints
        self.expect(0, self.moesaic("ckpt", "verify", "--all", root))
        for step in job.steps():
            checked = subprocess.run([FAKE, "check", os.path.join(root, step)], capture_output=True, check=False)
            self.assertEqual(checked.returncode, 0, checked.stderr.decode())
        self.assertEqual(read_bytes(os.path.join(job.run_dir, "lost")), b"")
        acknowledged = max(map(int, read_bytes(os.path.join(job.run_dir, "acknowledged")).split()), default=0)
        self.assertGreaterEqual(int(job.steps()[-1].split("-")[1]), acknowledged)

    def expect_no_rest(self, hosts, job):
        for name in (".staging", ".trash", ".quarantine"):
            folder = os.path.join(job.checkpoints, name)
            self.assertEqual(os.listdir(folder) if os.path.isdir(folder) else [], [], name)
        wait_until(lambda: not hosts.leftovers(), lambda: f"M4: {hosts.leftovers()}", 10)

    # ---- Enumerated points.

    def save_and_kill(self, hosts, target, at):
        """A short job with three saves; the point that was hit, or all points when `at` is "none"."""
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
        supervisors = [Supervisor(lambda: cluster.launch_coordinator(environment=of("coordinator")), 0.05)]
        wait_until(lambda: os.path.exists(os.path.join(cluster.folder, "state", "address")), "the coordinator", 20)
        supervisors += [Supervisor(lambda i=i: cluster.start_agent(i, environment=of(f"agent {i}")), 0.05)
                        for i in range(2)]
        try:
            cluster.submit(job)
            self.expect(0, cluster.verb("wait", job.name, "--timeout", "60s"))
        finally:
            for supervisor in reversed(supervisors):
                supervisor.end()
        self.expect_usable(job)
        self.assertEqual(job.steps()[-1], "step-000000012")
        self.expect_no_rest(hosts, job)
        return read_bytes(os.path.join(folder, "points" if at == "none" else "fired")).decode().splitlines()

    def test_c1_every_point_of_every_process(self):
        cells = queue.Queue()

        def trial(target, at):
            cell = cells.get()
            try:
                return self.save_and_kill(cell, target, at)
            finally:
                cells.put(cell)

        with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(CELLS) as pool:
            for _ in range(CELLS):
                cells.put(stack.enter_context(network.Hosts(2)))
            trials = []
            for target, points in zip(targets(), pool.map(lambda target: trial(target, "none"), targets())):
                names = [point.split()[0] for point in points]
                files = [name for name in names if name.startswith("file-")]
                messages = [name for name in names if name.startswith("message-")]
                print(f"{target.name}: {len(files)} points of files, {len(messages)} of messages", file=sys.stderr,
                      flush=True)
                self.assertTrue(files and messages, points)
                trials += [(target, at) for at in files + messages[::MESSAGES]]
            futures = [pool.submit(trial, *one) for one in trials]
        broken = [str(future.exception()) for future in futures if future.exception()]
        self.assertEqual(broken, [], "\n".join([f"{len(broken)} of {len(trials)}", *broken]))
        fired = [future.result() for future in futures]
        self.tell(trials, fired)
        # Messages are not the same each time; files are, but for those of the coordinator's store.
        for kind, share in (("file-", 0.95), ("message-", 0.6)):
            hits = [bool(hit) for (_, at), hit in zip(trials, fired) if at.startswith(kind)]
            self.assertGreaterEqual(sum(hits), share * len(hits), kind)

    @staticmethod
    def tell(trials, fired):
        for target in targets():
            hits = [hit for (who, _), hit in zip(trials, fired) if who.name == target.name]
            kinds = collections.Counter(" ".join(hit[0].split()[1:3]) for hit in hits if hit)
            print(f"{target.name}: killed {sum(kinds.values())} of {len(hits)} times: {dict(kinds)}", file=sys.stderr,
                  flush=True)


if __name__ == "__main__":
    main()
