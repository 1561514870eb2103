"""M3: a coordinator that stays away. Ranks train on for `health.orphan_grace`; then their agents
end them, and keep what was saved in memory. When the coordinator is back the job goes on from
there."""

import sys
import time
import unittest

import hosts as network
from cluster import Cluster, Events
from harness import EndToEndTest, Job, main, wait_until

STEPS = 1500
GRACE = 3
MEMORY_EVERY = 10
SETS = [f"train.steps={STEPS}", "train.global_batch=12", "train.micro_batch=1",
        "elastic.slots_per_node=1",
        "elastic.nodes.min=2", "elastic.nodes.max=2",
        f"checkpoint.memory_every_steps={MEMORY_EVERY}",
        "checkpoint.every_steps=0", f"health.orphan_grace={GRACE}s", "health.lease_ttl=2s",
        "launch.allow_root=true"]


@unittest.skipIf(network.why_not(), network.why_not())
class OrphanTest(EndToEndTest):
    def test_m3_ranks_end_after_the_grace_and_the_job_goes_on(self):
        with network.Hosts(2) as hosts:
            cluster = Cluster(self, hosts)
            try:
                self.live(cluster, hosts)
            except BaseException:
                print(cluster.logs(), file=sys.stderr)
                raise
            finally:
                cluster.close()
        self.expect_nothing_left()

    def live(self, cluster, hosts):
        job = Job(self, "orphan", SETS)
        cluster.start_coordinator()
        for index in range(2):
            cluster.start_agent(index)
        cluster.submit(job)
        events = Events(cluster, job.name)
        self.addCleanup(events.close)
        wait_until(lambda: events.last_step()["step"] > 3 * MEMORY_EVERY, "the first steps", 60)

        before, at = events.last_step(), time.monotonic()
        cluster.kill_coordinator()
        ranks = lambda: [pid for host in hosts for pid in host.pids("moesaic-worker")]
        wait_until(lambda: not ranks(), "the end of the ranks", GRACE + 15)
        alone = time.monotonic() - at
        reached = job.lines()[-1]["step"]
        print(f"ranks ended after {alone:.2f} s; {reached - before['step']} steps alone",
              file=sys.stderr, flush=True)
        self.assertGreater(alone, GRACE)
        self.assertLess(alone, GRACE + 5)
        self.assertGreater(reached, before["step"])
        self.assertEqual([agent.poll() for agent in cluster.agents.values()], [None, None])

        cluster.start_coordinator()
        wait_until(lambda: events.last_step()["generation"] > before["generation"],
                   lambda: f"training again: {cluster.verb('status', job.name)}", 30)
        first = next(e for _, e in events.of_kind("step") if e["generation"] > before["generation"])
        print(f"goes on at step {first['step']}", file=sys.stderr, flush=True)
        # From memory, for nothing was on disk; what was done alone may have to be done again.
        self.assertGreater(first["step"], before["step"] - 2 * MEMORY_EVERY)
        self.expect(0, cluster.verb("wait", job.name, "--timeout", "120s"))
        self.assertEqual(sorted(job.curve()), list(range(1, STEPS + 1)))
        for agent in cluster.agents.values():
            agent.terminate()
            self.assertEqual(agent.wait(timeout=20), 0)
        wait_until(lambda: not hosts.leftovers(), lambda: f"M4: {hosts.leftovers()}", 5)


if __name__ == "__main__":
    main()
