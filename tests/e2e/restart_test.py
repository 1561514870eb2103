"""Ranks that die and runs that are stopped: the loss curve is that of an uninterrupted run (C3)."""

import os
import signal

from harness import EndToEndTest, Job, main, wait_until

STEPS = "train.steps=160"


class RestartTest(EndToEndTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.reference = Job(cls, "reference", [STEPS])
        cls.uninterrupted = cls.reference.run()

    def expect_the_same_curve(self, job, ended):
        self.expect(0, self.uninterrupted)
        self.expect(0, ended)
        self.assertEqual(job.curve(), self.reference.curve())
        for key in ("loss", "validation_loss", "tokens", "step"):
            self.assertEqual(ended.json[key], self.uninterrupted.json[key], key)
        self.expect_nothing_left()

    def test_c3_killed_rank(self):
        job = Job(self, "killed", [STEPS])
        running = job.start()
        running.kill_a_worker(50)
        ended = running.finish()
        self.expect_the_same_curve(job, ended)
        self.assertEqual((ended.json["restarts"], ended.json["generation"]), (1, 2))
        self.assertIn("killed by signal 9", ended.err)

    def test_c3_killed_twice(self):
        job = Job(self, "killed-twice", [STEPS])
        running = job.start()
        running.kill_a_worker(30)
        running.kill_a_worker(70, generation=2)
        ended = running.finish()
        self.expect_the_same_curve(job, ended)
        self.assertEqual((ended.json["restarts"], ended.json["generation"]), (2, 3))

    def test_c3_killed_before_the_first_checkpoint(self):
        job = Job(self, "killed-early", [STEPS, "checkpoint.every_steps=0"])
        running = job.start()
        running.kill_a_worker(10)
        self.expect_the_same_curve(job, running.finish())

    def test_interrupted_run_saves_and_goes_on(self):
        job = Job(self, "stopped", [STEPS, "checkpoint.every_steps=0"])
        running = job.start()
        running.interrupt_after(30)
        stopped = self.expect(130, running.finish())
        self.assertEqual(stopped.json["state"], "CANCELLED")
        done = job.lines()[-1]["step"]
        self.assertLess(done, 160)
        self.assertEqual(job.steps(), [f"step-{done:09d}"])
        self.expect_nothing_left()
        resumed = job.run()
        self.expect_the_same_curve(job, resumed)
        self.assertEqual([line["step"] for line in job.lines()], list(range(1, 161)))

    def test_interrupted_twice_kills(self):
        job = Job(self, "stopped-twice", ["train.steps=1000000", "checkpoint.every_steps=0"])
        running = job.start()
        running.wait_for_step(5)
        # Ranks that cannot save, so that the first Ctrl-C alone does not end the run.
        for pid in self.processes("moesaic-worker"):
            os.kill(pid, signal.SIGSTOP)
        running.interrupt()
        running.wait_for_text("once more to kill the job")  # signals that wait together are one
        running.interrupt()
        ended = self.expect(130, running.finish())
        self.assertEqual(ended.json["state"], "CANCELLED")
        self.assertEqual(job.steps(), [])
        self.expect_nothing_left()

    def test_killed_program_leaves_no_ranks_and_goes_on(self):
        job = Job(self, "program-killed", [STEPS])
        running = job.start()
        running.wait_for_step(50)
        running.process.kill()
        running.finish()
        wait_until(lambda: not self.processes(""), "the ranks to end with the program", 30)
        self.expect_the_same_curve(job, job.run())  # which also sweeps the shared memory


if __name__ == "__main__":
    main()
