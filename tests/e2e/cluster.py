"""A cluster on hosts that are network namespaces: coordinator, agents and verbs, with TLS."""

import json
import os
import signal
import subprocess
import threading
import time

from harness import BIN, DEADLINE, Result, wait_until

PROGRAM = os.path.join(BIN, "moesaic")
PORT = 7470


class Events:
    """The events of a job as they come, each with the time of its arrival."""

    def __init__(self, cluster, job):
        self.list = []
        self.process = subprocess.Popen(
            cluster.command("events", job, "-f", "--steps", "-o", "json"), cwd=cluster.test.folder,
            env=cluster.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.list.append((time.monotonic(), json.loads(line)))

    def of_kind(self, kind, since=0.0):
        return [(at, event) for at, event in list(self.list)
                if event["kind"] == kind and at >= since]

    def last_step(self):
        steps = self.of_kind("step")
        return steps[-1][1] if steps else {"step": 0, "generation": 0}

    def notes(self):
        return [event["text"] for _, event in self.of_kind("note")]

    def close(self):
        self.process.kill()
        self.process.wait()
        self.thread.join()
        self.process.stdout.close()


class Supervisor:
    """Starts a program again whenever it dies, until it is told to end."""

    def __init__(self, start, pause=0.3):
        self.start, self.pause = start, pause
        self.ending = False
        self.process = start()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self):
        while True:
            self.process.wait()
            time.sleep(self.pause)
            if self.ending:
                return
            self.process = self.start()

    def end(self):
        """Ends the program as its operator would."""
        self.ending = True
        while self.thread.is_alive():
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
            self.thread.join(timeout=2)


class Cluster:
    """The coordinator runs on this machine, at the address that the hosts reach it by. Agents start
    the worker that lies beside `program`."""

    def __init__(self, test, hosts, agent_flags=(), program=PROGRAM, name="cluster"):
        self.test, self.hosts = test, hosts
        self.agent_flags, self.program = list(agent_flags), program
        self.environment = test.environment
        self.folder = test.path(f"{name}-{hosts.prefix}")
        os.mkdir(self.folder)
        self.address = f"{hosts.address}:{PORT}"
        self.certs = os.path.join(self.folder, "certs")
        made = test.moesaic("certs", "init", self.certs)
        if made.code != 0:
            raise AssertionError(str(made))
        self.connection = ["--coordinator", self.address, "--tls-dir", self.certs]
        self.coordinator = None
        self.agents = {}

    # ---- Processes.

    def launch_coordinator(self, flags=(), environment=None):
        with open(os.path.join(self.folder, "coordinator.log"), "ab") as log:
            self.coordinator = subprocess.Popen(
                [PROGRAM, "coordinator", "--listen", self.address, "--dir",
                 os.path.join(self.folder, "state"), "--tls-dir", self.certs, *flags],
                cwd=self.test.folder, env={**self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log, stderr=log)
        return self.coordinator

    def start_coordinator(self, flags=(), environment=None):
        self.launch_coordinator(flags, environment)
        wait_until(lambda: self.verb("list").code == 0, "the coordinator to answer", 20, every=0.1)

    def kill_coordinator(self, number=signal.SIGKILL):
        self.coordinator.send_signal(number)
        self.coordinator.wait()

    def start_agent(self, index, flags=(), environment=None, log="agent.log"):
        host = self.hosts[index]
        self.agents[index] = host.start(
            self.program, "agent", "--name", host.name, "--slots", "1", "--listen",
            f"{host.address}:0",
            *self.connection, *self.agent_flags, *flags, log=log,
            environment={"MOESAIC_LOG_LEVEL": "debug", **(environment or {})})
        return self.agents[index]

    def agent_pid(self, index):
        """Of the agent itself; the process that was started is what entered the host."""
        return self.agents[index].pid

    def kill_agent(self, index):
        os.kill(self.agent_pid(index), signal.SIGKILL)
        self.agents[index].wait()

    def close(self):
        if self.coordinator is not None and self.coordinator.poll() is None:
            self.coordinator.kill()
            self.coordinator.wait()

    # ---- Verbs.

    def command(self, verb, *arguments):
        # The flags of a verb with verbs of its own stand behind the inner one.
        words = [verb, *arguments]
        inner = 2 if verb in ("node", "ckpt") else 1
        return [PROGRAM, *words[:inner], *self.connection, *words[inner:]]

    def verb(self, *arguments, timeout=DEADLINE):
        done = subprocess.run(self.command(*arguments), cwd=self.test.folder, env=self.environment,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout,
                              check=False)
        return Result(done.returncode, done.stdout.decode(errors="replace"),
                      done.stderr.decode(errors="replace"))

    def expect(self, *arguments):
        result = self.verb(*arguments)
        self.test.assertEqual(result.code, 0, f"{arguments}: {result}")
        return result

    def submit(self, job, sets=(), flags=()):
        words = [word for value in [*job.sets, *sets] for word in ("--set", value)]
        return self.expect("submit", "-f", "job.yaml", *words, *flags).out.strip()

    def status(self, job):
        return self.expect("status", job, "-o", "json").json

    def wait_for_state(self, job, state, seconds=60):
        wait_until(lambda: self.status(job)["state"] == state, f"{job} to be {state}", seconds,
                   every=0.1)

    def logs(self):
        """For a failure: what everybody said last."""
        texts = []
        paths = [os.path.join(self.folder, "coordinator.log")]
        paths += [os.path.join(host.folder, "agent.log") for host in self.hosts]
        for path in paths:
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    texts.append(f"--- {path}\n{file.read()[-6000:]}")
            except OSError:
                pass
        return "\n".join(texts)
