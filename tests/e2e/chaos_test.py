"""M1, M3, M4, C1: `moesaic chaos` breaks a job on four hosts, first by each of its faults in turn,
then by random ones. Supervisors start again what was killed, as a site does. When it is over the
job is stopped; it has the weights of one that nobody disturbed for as many steps, and nothing is
left.

CHAOS_SEED and CHAOS_UNTIL (such as 8h) make another and a longer run of it; docs/chaos.md.
"""

import json
import os
import subprocess
import sys
import time
import unittest

import hosts as network
from cluster import Cluster, Supervisor
from harness import EndToEndTest, Job, main, wait_until

SEED = int(os.environ.get("CHAOS_SEED", "1"))
UNTIL = os.environ.get("CHAOS_UNTIL", "90s")
LEASE = 3
PROGRESS = 6

SETS = [
    "train.reproducible=true", "model.moe.experts=8", "elastic.slots_per_node=1",
    "train.global_batch=12", "train.micro_batch=1", "elastic.nodes.min=2", "elastic.nodes.max=4",
    "checkpoint.memory_every_steps=10", "checkpoint.every_steps=20", f"health.lease_ttl={LEASE}s",
    f"health.progress_timeout={PROGRESS}s", "health.max_failures=1000",
    "health.max_no_progress_generations=10", "launch.allow_root=true"]

FAULTS = {"kill", "segv", "exit0", "exit7", "hang_collective", "stop", "slow", "drop_net",
          "disk_full", "corrupt_shard"}
SCHEDULE = f"""\
job: chaos
seed: {SEED}
recover_within: 40s
faults:
  - {{at: 1s, target: rank 1, fault: kill}}
  - {{at: 2s, target: rank, fault: segv}}
  - {{at: 3s, target: rank, fault: exit0}}
  - {{at: 4s, target: rank, fault: exit7}}
  - {{at: 5s, target: rank 0, fault: hang_collective}}
  - {{at: 6s, target: rank, fault: "stop:2s"}}
  - {{at: 7s, target: rank, fault: "slow:3x:3s"}}
  - {{at: 8s, target: coordinator, fault: kill}}
  - {{at: 9s, target: node n1, fault: kill}}
  - {{at: 10s, target: node n2, fault: "stop:1s"}}
  - {{at: 11s, target: node n3, fault: "stop:6s"}}
  - {{at: 12s, target: node n2, fault: "drop_net:6s"}}
  - {{at: 13s, target: node, fault: "disk_full:3s"}}
  - {{at: 14s, target: checkpoint, fault: corrupt_shard}}
  - {{at: 15s, target: node n0, fault: kill}}
random:
  every: 4s
  until: {UNTIL}
  targets: [rank, node, coordinator, checkpoint]
  faults: [kill, segv, exit0, exit7, hang_collective, "stop:1s", "stop:6s", "slow:3x:3s",
           "drop_net:2s", "drop_net:6s", "disk_full:3s", corrupt_shard]
"""


@unittest.skipIf(network.why_not(), network.why_not())
class ChaosTest(EndToEndTest):
    def supervise(self, cluster):
        chaos = ["--allow-chaos"]
        supervisors = [Supervisor(lambda: cluster.launch_coordinator(chaos))]
        wait_until(lambda: cluster.verb("list").code == 0, "the coordinator to answer", 20,
                   every=0.1)
        return supervisors + [Supervisor(lambda index=index: cluster.start_agent(index, chaos))
                              for index in range(4)]

    def break_it(self, cluster, job):
        """What `moesaic chaos` says."""
        with open(self.path("chaos.yaml"), "w", encoding="utf-8") as file:
            file.write(SCHEDULE)
        cluster.submit(job, ["train.steps=1000000"])
        with open(self.path("chaos.json"), "w+", encoding="utf-8") as out:
            chaos = subprocess.Popen(
                cluster.command("chaos", "-f", "chaos.yaml", "-o", "json"), cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL, stdout=out, stderr=sys.stderr)
            while chaos.poll() is None:
                time.sleep(5)
                for host in cluster.hosts:  # an operator who knows that the nodes are not to blame
                    cluster.verb("node", "uncordon", host.name)
            out.seek(0)
            said = out.read()
        self.assertIn(chaos.returncode, (0, 1), said)
        return json.loads(said)

    def test_m3_c1_chaos(self):
        job = Job(self, "chaos", SETS)
        with network.Hosts(4) as hosts:
            cluster = Cluster(self, hosts)
            supervisors = self.supervise(cluster)
            try:
                told = self.break_it(cluster, job)
                for fault in told["faults"]:
                    print(fault, file=sys.stderr, flush=True)
                self.assertEqual(told["violations"], [])
                cluster.expect("stop", job.name)
                cluster.wait_for_state(job.name, "CANCELLED")
                done = cluster.status(job.name)["committed_step"]
                self.assertEqual(FAULTS - {fault["fault"].split(":")[0].split()[0]
                                           for fault in told["faults"]}, set())
            except BaseException:
                print(cluster.verb("status", job.name), cluster.verb("events", job.name).out,
                      cluster.logs(),
                      file=sys.stderr)
                raise
            finally:
                for supervisor in reversed(supervisors):
                    supervisor.end()
            self.assertEqual(hosts.leftovers(), [])
        self.expect_nothing_left()

        reference = Job(self, "undisturbed", [*SETS, f"train.steps={done}", "elastic.nodes.min=1",
                                              "elastic.nodes.max=1"])
        self.expect(0, reference.run())
        self.assertEqual({step: line for step, line in job.curve().items() if step <= done},
                         reference.curve())
        diff = self.expect(0, self.moesaic("ckpt", "diff", job.checkpoints, reference.checkpoints,
                                           "-o", "json")).json
        for kind in ("changed", "added", "removed"):
            self.assertEqual(diff["objects"][kind], [], json.dumps(diff)[:2000])


if __name__ == "__main__":
    main()
