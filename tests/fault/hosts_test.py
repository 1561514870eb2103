"""Agents, the shim and mpirun over several hosts (network namespaces), without a coordinator's
rules: tests/fakes/fake_coordinator.cc commands the agents, and ranks only meet in barriers
(tests/fakes/barrier_worker.cc). After each test nothing may be left on any host (M4)."""

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from hosts import Hosts, why_not  # pylint: disable=wrong-import-position

PROGRAMS = os.environ.get("E2E_PROGRAMS", "")
FAKES = os.environ.get("FAKE_PROGRAMS", "")
SLOTS = 2


class Coordinator:
    """fake_coordinator, with what it says as lines to wait for."""

    def __init__(self, hosts, run_dir):
        self.lines = queue.Queue()
        self.said = []
        self.process = subprocess.Popen(
            [os.path.join(FAKES, "fake_coordinator"), f"{hosts.address}:0", run_dir, str(SLOTS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        threading.Thread(target=self.read, daemon=True).start()
        self.address = f"{hosts.address}:{self.wait('listening').split()[1]}"

    def read(self):
        for line in self.process.stdout:
            self.lines.put(line.strip())

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait(self, beginning, seconds=20.0):
        """The next line that begins so, also of those that were passed over before."""
        deadline = time.monotonic() + seconds
        while True:
            for line in self.said:
                if line.startswith(beginning):
                    self.said.remove(line)
                    return line
            try:
                self.said.append(self.lines.get(timeout=max(0.01, deadline - time.monotonic())))
            except queue.Empty:
                raise AssertionError(
                    f"no \"{beginning}\" within {seconds} s; {self.said}") from None

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class HostsCase(unittest.TestCase):
    COUNT = 3

    def setUp(self):
        reason = why_not()
        if reason:
            self.skipTest(reason)
        self.hosts = self.enterContext(Hosts(self.COUNT))
        self.bin = os.path.join(self.hosts.folder, "bin")
        os.makedirs(self.bin)
        for program in ("moesaic", "moesaic-orted-shim"):
            shutil.copy(os.path.join(PROGRAMS, program), self.bin)
        shutil.copy(os.path.join(FAKES, "barrier_worker"), os.path.join(self.bin, "moesaic-worker"))
        self.coordinator = Coordinator(self.hosts, self.hosts.folder)
        self.addCleanup(self.coordinator.close)
        self.agents = [self.start_agent(host) for host in self.hosts]
        for host in self.hosts:
            self.coordinator.wait(f"registered {host.name}")

    def start_agent(self, host):
        return host.start(os.path.join(self.bin, "moesaic"), "agent", "--coordinator",
                          self.coordinator.address,
                          "--insecure", "--listen", f"{host.address}:0", "--slots", str(SLOTS),
                          log="agent.log")

    def log(self, host):
        with open(os.path.join(host.folder, "agent.log"), encoding="utf-8",
                  errors="replace") as file:
            return file.read()

    def rank_log(self, name, generation=1):
        path = os.path.join(self.hosts.folder, "logs", f"generation-{generation}", name)
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def started(self):
        return os.path.join(self.hosts.folder, "started")

    def start(self):
        """A generation on all hosts; returns when its ranks have met."""
        if os.path.exists(self.started()):
            os.remove(self.started())
        begin = time.monotonic()
        self.coordinator.tell("start " + " ".join(host.name for host in self.hosts))
        generation = int(self.coordinator.wait("started").split()[1])
        while not os.path.exists(self.started()):
            if time.monotonic() > begin + 20:
                self.fail("ranks did not meet; " + "\n".join(self.log(host) for host in self.hosts)
                          + self.rank_log("mpirun.log", generation))
            time.sleep(0.005)
        self.tell_time("launch over %d hosts" % len(self.hosts), begin)
        return generation

    def tell_time(self, what, begin):
        print(f"{self.id().split('.')[-1]}: {what}: {time.monotonic() - begin:.2f} s", flush=True)

    def ended(self, host, generation, seconds=10.0):
        return self.coordinator.wait(f"ended {host.name} {generation} ", seconds)

    def wait_for(self, condition, what, seconds):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                self.fail(f"{what} takes more than {seconds} s: {self.hosts.leftovers()}")
            time.sleep(0.02)

    def processes_of_ranks(self, host):
        return [pid for program in ("moesaic-worker", "orted", "mpirun", "moesaic-orted-shim")
                for pid in host.pids(program)]

    def expect_clean(self, hosts, seconds=0.0):
        """No process but the agent, and no file of a generation."""
        for host in hosts:
            self.wait_for(lambda host=host: not self.processes_of_ranks(host),
                          f"{host.name}: processes", seconds)
            self.wait_for(lambda host=host: not [p for p in host.shared_memory() if "+g" in p
                                                 or "vader" in p],
                          f"{host.name}: shared memory", seconds)

    def end_agents(self):
        """Each leaves nothing (M4)."""
        for agent in self.agents:
            if agent.poll() is None:
                agent.send_signal(signal.SIGTERM)
                agent.send_signal(signal.SIGINT)
                agent.wait(timeout=15)
        self.assertEqual(self.hosts.leftovers(), [])

    def kill_generation(self, command):
        generation = self.start()
        begin = time.monotonic()
        self.coordinator.tell(command)
        for host in self.hosts:
            self.ended(host, generation)
        self.tell_time(f"{command} -> clean", begin)
        self.expect_clean(self.hosts)


class ThreeHostsTest(HostsCase):
    def test_m4_runs_to_the_end_in_the_order_of_hosts(self):
        generation = self.start()
        for rank in range(SLOTS * self.COUNT):
            self.assertIn(f"rank {rank} of {SLOTS * self.COUNT} on n{rank // SLOTS}, with a token",
                          self.rank_log(f"rank-{rank}.log"))
        for host in self.hosts:
            self.assertEqual(len(host.pids("moesaic-worker")), SLOTS)
        with open(os.path.join(self.hosts.folder, "stop"), "w", encoding="utf-8"):
            pass
        for host in self.hosts:
            self.assertIn(" exit 0 rank -", self.ended(host, generation))
        self.expect_clean(self.hosts)
        self.end_agents()

    def test_m3_killed_orted_names_its_host(self):
        generation = self.start()
        begin = time.monotonic()
        self.assertEqual(self.hosts[2].kill("orted"), 1)
        self.assertIn("its orted was killed by signal 9", self.ended(self.hosts[2], generation))
        self.tell_time("orted killed -> its agent says so", begin)
        failure = self.ended(self.hosts[0], generation)
        self.tell_time("orted killed -> the head says so", begin)
        self.assertIn(f"rank {2 * SLOTS} node n2", failure)
        self.coordinator.tell("kill now")
        self.ended(self.hosts[1], generation)
        self.expect_clean(self.hosts)
        self.end_agents()

    def test_m3_killed_rank_is_named(self):
        generation = self.start()
        begin = time.monotonic()
        os.kill(self.hosts[1].pids("moesaic-worker")[0], signal.SIGKILL)
        failure = self.ended(self.hosts[0], generation)
        self.tell_time("rank killed -> the head says so", begin)
        self.assertRegex(failure,
                         f"exit 137 rank [{SLOTS}{SLOTS + 1}] rank . was killed by signal 9")
        self.coordinator.tell("kill now")
        for host in self.hosts:
            if host.name != "n0":
                self.ended(host, generation)
        self.tell_time("rank killed -> clean", begin)
        self.expect_clean(self.hosts)
        self.end_agents()

    def kill_agent(self, index):
        generation = self.start()
        begin = time.monotonic()
        self.agents[index].kill()
        self.agents[index].wait()
        self.coordinator.wait(f"lost n{index}")
        self.coordinator.tell("kill now")
        others = [host for host in self.hosts if host.index != index]
        for host in others:
            self.ended(host, generation)
        self.tell_time("agent killed -> others clean", begin)
        self.expect_clean(others)
        # Its ranks go with it; its files when the next agent comes.
        self.wait_for(lambda: not self.processes_of_ranks(self.hosts[index]), "end of its ranks", 5)
        self.tell_time("agent killed -> its ranks gone", begin)
        self.agents[index] = self.start_agent(self.hosts[index])
        self.coordinator.wait(f"registered n{index}")
        self.expect_clean(self.hosts)
        self.start()
        self.coordinator.tell("kill now")
        for host in self.hosts:
            self.ended(host, generation + 1)
        self.end_agents()

    def test_m4_ranks_die_with_their_agent(self):
        self.kill_agent(1)

    def test_m4_ranks_die_with_the_agent_of_the_head(self):
        self.kill_agent(0)

    def test_m2_stopped_agent_learns_that_its_generation_is_over(self):
        generation = self.start()
        self.agents[1].send_signal(signal.SIGSTOP)
        self.coordinator.tell("kill now")
        self.ended(self.hosts[0], generation)
        self.ended(self.hosts[2], generation)
        begin = time.monotonic()
        self.agents[1].send_signal(signal.SIGCONT)
        self.ended(self.hosts[1], generation)
        self.tell_time("agent resumed -> clean", begin)
        self.expect_clean(self.hosts)
        self.end_agents()

    def test_m3_cut_host_stops_after_its_grace(self):
        generation = self.start()
        self.hosts[1].cut()
        self.coordinator.tell("kill now")
        self.ended(self.hosts[0], generation)
        self.ended(self.hosts[2], generation)
        self.expect_clean([self.hosts[0], self.hosts[2]])
        # Its agent finds out by keep-alive pings (15 s), waits for its grace (3 s), and cleans up.
        self.expect_clean([self.hosts[1]], 30)
        self.hosts[1].restore()
        self.assertIn(f"ended {generation}", self.coordinator.wait("registered n1", 30))
        self.end_agents()

    def test_m3_dead_host_at_launch_is_named(self):
        self.agents[2].kill()
        self.agents[2].wait()
        begin = time.monotonic()
        self.coordinator.tell("start n0 n1 n2")
        failure = self.ended(self.hosts[0], 1)
        self.tell_time("launch without an agent -> the head says so", begin)
        self.assertIn(f"rank {2 * SLOTS} node n2", failure)
        self.assertIn("does not answer", failure)
        self.coordinator.tell("kill now")
        self.ended(self.hosts[1], 1)
        self.expect_clean([self.hosts[0], self.hosts[1]])

    def test_m2_strangers_are_refused(self):
        """Whoever lacks the token of the generation that runs gets no process."""
        self.start()
        address = self.log(self.hosts[1]).split("listens at ")[1].split(";")[0]
        agents = os.path.join(self.hosts.folder, "agents")
        with open(agents, "w", encoding="utf-8") as file:
            file.write(f"victim {address}\n")
        orted = "orted -mca ess env -mca ess_base_jobid 1 -mca ess_base_vpid 1"
        for job, number, token, command, answer in (
                ("job", "1", "guess", orted, "stale generation"),
                ("job", "0", "token-1", orted, "stale generation"),
                ("other", "1", "token-1", orted, "stale generation"),
                ("job", "1", "token-1", "orted; id", "not a command"),
                ("job", "1", "token-1", "sh -c id", "not a command"),
                ("job", "1", "token-1", orted + " -mca mca_base_component_path /tmp",
                 "not a command"),
                ("job", "1", "token-1", orted, "has had its orted")):
            asked = self.hosts[0].start(
                os.path.join(self.bin, "moesaic-orted-shim"), "victim", command, log="stranger.log",
                environment={"MOESAIC_SHIM_JOB": job, "MOESAIC_SHIM_GENERATION": number,
                             "MOESAIC_TOKEN": token, "MOESAIC_SHIM_HOSTS": agents})
            self.assertEqual(asked.wait(timeout=20), 255)
            with open(asked.log, encoding="utf-8") as file:
                self.assertIn(answer, file.read().splitlines()[-1])
        self.coordinator.tell("kill now")
        for host in self.hosts:
            self.ended(host, 1)
        self.end_agents()

    def test_preemption_is_passed_on(self):
        self.agents[1].send_signal(signal.SIGUSR1)
        self.assertIn("USR1", self.coordinator.wait("preempted n1"))
        self.coordinator.tell("leave n1")
        self.coordinator.wait("lost n1")
        self.assertEqual(self.agents[1].wait(timeout=10), 0)
        self.end_agents()


class FourHostsTest(HostsCase):
    COUNT = 4

    def test_m4_killed_generation_is_gone_at_once(self):
        self.kill_generation("kill now")
        self.kill_generation("kill")
        self.end_agents()


if __name__ == "__main__":
    if not PROGRAMS or not FAKES:
        sys.exit("E2E_PROGRAMS and FAKE_PROGRAMS must name the folders of the programs")
    unittest.main(verbosity=2)
