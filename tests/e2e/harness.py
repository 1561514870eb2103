"""What the end-to-end tests share: the real programs, run in a folder that is thrown away.

Every process of a run inherits HOME=<the folder>, by which a test finds the ranks and what is left.
"""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

BIN = os.environ.get("E2E_PROGRAMS", "")
SHARED_MEMORY = "/dev/shm"
DEADLINE = 240  # seconds that a run may take on a busy machine

JOB = """\
name: tiny
model:
  layers: 2
  hidden: 32
  heads: 2
  sequence: 32
  moe: {experts: 5, active: 2, expert_width: 48}
data:
  tokenizer: bpe.model
  train: [{path: train}]
  validation: [{path: validation}]
train:
  steps: 60
  global_batch: 8
  micro_batch: 2
  precision: fp32
  validate_samples: 32
  optimizer: {adamw: {lr: 3.0e-3}}
  schedule: constant
elastic: {slots_per_node: 2}
launch: {threads: 1, oversubscribe: true}
checkpoint: {every_steps: 20}
"""


def write_text(path):
    """About 150 KB of sentences in which a word says much about the next one."""
    choose = random.Random(7)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(choose.choice(letters) for _ in range(choose.randint(2, 8)))
             for _ in range(120)]
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(400):
            for _ in range(8):
                at = choose.randrange(len(words))
                sentence = []
                for _ in range(8):
                    sentence.append(words[at])
                    at = (at * 7 + choose.randint(1, 4)) % len(words)
                file.write(" ".join(sentence).capitalize() + ".\n")
            file.write("\n")


def read_bytes(path):
    """Of a file that may go away meanwhile, as those of /proc do."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def wait_until(condition, what, seconds=DEADLINE, every=0.02):
    """`what`: text, or a function that makes it when it is too late."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s for {what() if callable(what) else what}")
        time.sleep(every)


class Result:
    """How a command ended."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def json(self):
        return json.loads(self.out.splitlines()[-1])

    def __str__(self):
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


class Job:
    """A job file in its own run folder runs/<name>."""

    def __init__(self, test, name, sets=(), file="job.yaml"):
        self.test, self.name, self.file = test, name, file
        self.run_dir = test.path("runs", name)
        self.sets = [f"name={name}", f"run.dir={self.run_dir}", *sets]
        self.checkpoints = os.path.join(self.run_dir, "checkpoints")

    def command(self, sets=(), arguments=()):
        flags = [word for value in [*self.sets, *sets] for word in ("--set", value)]
        return ["run", "-f", self.file, "-o", "json", *flags, *arguments]

    def run(self, sets=(), arguments=()):
        return self.test.moesaic(*self.command(sets, arguments))

    def start(self, sets=()):
        return Running(self, self.command(sets))

    def lines(self):
        path = os.path.join(self.run_dir, "metrics.jsonl")
        return [json.loads(line) for line in read_bytes(path).splitlines() if line.endswith(b"}")]

    def curve(self):
        """By step, what the step computed: of a step done twice the last line counts."""
        keys = ("loss", "aux_loss", "grad_norm", "lr", "tokens", "expert_load_max_over_mean")
        return {line["step"]: [line[key] for key in keys] for line in self.lines()}

    def steps(self):
        return sorted(name for name in os.listdir(self.checkpoints) if name.startswith("step-"))


class Running:
    """A run in the background."""

    def __init__(self, job, arguments):
        self.job = job
        self.log = tempfile.TemporaryFile()  # closed by finish()
        self.process = subprocess.Popen(
            [os.path.join(BIN, "moesaic"), *arguments], cwd=job.test.folder,
            env=job.test.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log)

    def wait_for_step(self, step, generation=1):
        def reached():
            if self.process.poll() is not None:
                raise AssertionError(f"ended before step {step}: {self.finish()}")
            lines = self.job.lines()
            return bool(lines) and (lines[-1]["generation"], lines[-1]["step"]) >= (generation,
                                                                                    step)
        wait_until(reached, f"step {step} of generation {generation}", every=0.001)

    def wait_for_text(self, text):
        """On stderr."""
        wait_until(lambda: text in self.said(), repr(text))

    def said(self):
        return os.pread(self.log.fileno(), 1 << 20, 0).decode(errors="replace")

    def kill_a_worker(self, step, generation=1):
        """kill -9 of the last rank once that step is done."""
        rank = self.last_rank(generation)
        self.wait_for_step(step, generation)
        os.kill(rank, signal.SIGKILL)

    def interrupt_after(self, step, generation=1):
        """Ctrl-C once that step is done. The last rank stands still until the other ones must have
        heard of it, so that a fast job does not end before."""
        rank = self.last_rank(generation)
        self.wait_for_step(step, generation)
        os.kill(rank, signal.SIGSTOP)
        self.interrupt()
        self.wait_for_text("draining: ")
        time.sleep(1)
        os.kill(rank, signal.SIGCONT)

    def last_rank(self, generation):
        self.wait_for_step(1, generation)
        return max(self.job.test.processes("moesaic-worker"))

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

    def finish(self):
        try:
            out, _ = self.process.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, _ = self.process.communicate()
        with self.log:
            return Result(self.process.returncode, out.decode(), self.said())


class EndToEndTest(unittest.TestCase):
    """A folder with a job file, a tokenizer and token files, made once a test class."""

    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="moesaic-e2e-")
        cls.shared_before = set(os.listdir(SHARED_MEMORY))
        os.mkdir(cls.path("tmp"))
        cls.environment = {"PATH": os.environ["PATH"], "HOME": cls.folder,
                           "TMPDIR": cls.path("tmp")}
        with open(cls.path("job.yaml"), "w", encoding="utf-8") as file:
            file.write(JOB)
        write_text(cls.path("text.txt"))
        for arguments in (
                ["tokenizer", "--input", "text.txt", "--vocabulary", "384", "--output",
                 "bpe.model"],
                ["prepare", "--tokenizer", "bpe.model", "--input", "text.txt",
                 "--document-separator", "blank-line", "--output", "train",
                 "--validation-output", "validation", "--validation-share", "0.1"]):
            made = cls.moesaic("data", *arguments)
            if made.code != 0:
                raise AssertionError(str(made))

    @classmethod
    def tearDownClass(cls):
        for pid in cls.processes(""):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(cls.folder)

    @classmethod
    def copy_corpora(cls, *folders):
        """Where the job files of configs/ look for them."""
        for folder in folders:
            os.makedirs(cls.path(folder), exist_ok=True)
            for name in ("bpe.model", "train.bin", "train.idx", "validation.bin", "validation.idx"):
                shutil.copy(cls.path(name), cls.path(folder))

    @classmethod
    def path(cls, *parts):
        return os.path.join(cls.folder, *parts)

    @classmethod
    def moesaic(cls, *arguments):
        done = subprocess.run([os.path.join(BIN, "moesaic"), *arguments], cwd=cls.folder,
                              env=cls.environment, stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=DEADLINE, check=False)
        return Result(done.returncode, done.stdout.decode(errors="replace"),
                      done.stderr.decode(errors="replace"))

    @classmethod
    def processes(cls, program):
        """Ids of the processes of this test whose command line names the program."""
        mark = f"HOME={cls.folder}".encode()
        return [int(pid) for pid in os.listdir("/proc") if pid.isdigit()
                and mark in read_bytes(f"/proc/{pid}/environ").split(b"\0")
                and program.encode() in read_bytes(f"/proc/{pid}/cmdline").split(b"\0")[0]]

    def expect(self, code, result):
        """The exit code; and whatever happened, nobody is shown a stack trace."""
        self.assertEqual(result.code, code, str(result))
        for trace in ("terminate called", "Backtrace", "Exception raised from", "frame #",
                      "core dumped"):
            self.assertNotIn(trace, result.out + result.err)
        return result

    def expect_nothing_left(self):
        """M4: no process, no shared memory, no temporary file."""
        self.assertEqual(self.processes(""), [])
        self.assertEqual(os.listdir(self.path("tmp")), [])
        wait_until(lambda: not self.abandoned_shared_memory(), "shared memory to be removed", 5)

    def abandoned_shared_memory(self):
        """New folders of agents that live no longer; those of tests beside this one are locked."""
        abandoned = []
        for name in set(os.listdir(SHARED_MEMORY)) - self.shared_before:
            lock = os.path.join(SHARED_MEMORY, name, "owner.lock")
            if not name.startswith(f"moesaic-{os.getuid()}-") or not os.path.exists(lock):
                continue
            with open(lock, "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    abandoned.append(name)
                except OSError:
                    pass
        return abandoned


def main():
    if not BIN:
        sys.exit("E2E_PROGRAMS must name the folder of the programs, such as build/release/bin")
    unittest.main(verbosity=2)
