"""Train a job, look at what it left, use it."""

import math
import os

from harness import EndToEndTest, Job, main

STEP_KEYS = ["step", "generation", "loss", "aux_loss", "grad_norm", "lr", "tokens", "seconds",
             "tokens_per_second", "expert_load_max_over_mean", "flops"]
SUMMARY_KEYS = ["job", "state", "generation", "step", "loss", "validation_loss", "perplexity",
                "tokens", "seconds", "tokens_per_second", "checkpoint", "restarts"]


class TrainTest(EndToEndTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.job = Job(cls, "tiny", ["train.validate_every_steps=20"])
        cls.trained = cls.job.run()

    def test_summary_is_the_last_line(self):
        summary = self.expect(0, self.trained).json
        self.assertEqual(list(summary), SUMMARY_KEYS)
        self.assertEqual(summary["job"], "tiny")
        self.assertEqual(summary["state"], "SUCCEEDED")
        self.assertEqual((summary["generation"], summary["step"], summary["restarts"]), (1, 60, 0))
        self.assertEqual(summary["tokens"], 60 * 8 * 32)
        self.assertAlmostEqual(summary["perplexity"], math.exp(summary["validation_loss"]))
        self.assertTrue(os.path.isdir(summary["checkpoint"]))

    def test_metrics_have_one_object_a_step(self):
        lines = self.job.lines()
        self.assertEqual([line["step"] for line in lines], list(range(1, 61)))
        for line in lines:
            validated = ["validation_loss"] if line["step"] % 20 == 0 else []
            copied = ["snapshot_seconds"] if "snapshot_seconds" in line else []
            routing = ["routing"] + (["validation_routing"] if validated else [])
            self.assertEqual(list(line), STEP_KEYS + validated + copied + routing)
            self.assertEqual([len(line["routing"][key]) for key in ("layers", "max_vio", "loads")],
                             [2, 2, 2])
            self.assertGreater(line["routing"]["rows"], 0)
            self.assertEqual(line["tokens"], 8 * 32)
            self.assertEqual(len(line["expert_load_max_over_mean"]), 2)
            self.assertGreaterEqual(min(line["expert_load_max_over_mean"]), 1)
        self.assertEqual(lines[-1]["loss"], self.trained.json["loss"])

    def test_the_run_can_be_looked_at(self):
        events = os.listdir(os.path.join(self.job.run_dir, "tensorboard"))
        self.assertEqual(len(events), 1)
        self.assertTrue(events[0].startswith("events.out.tfevents."), events)
        page = os.path.join(self.job.run_dir, "report.html")
        report = self.expect(0, self.moesaic("report", self.job.run_dir, "--html", page, "-o",
                                             "json")).json
        self.assertEqual((report[0]["steps"], report[0]["skipped"]), (60, 0))
        self.assertEqual(report[0]["validation_loss"], self.trained.json["validation_loss"])
        with open(page, encoding="utf-8") as file:
            self.assertIn("Load of each expert", file.read())

    def test_validation_loss_falls(self):
        losses = [line["validation_loss"] for line in self.job.lines() if "validation_loss" in line]
        self.assertEqual(losses, sorted(losses, reverse=True))
        self.assertLess(losses[-1], math.log(384) - 1.5)

    def test_progress_is_shown(self):
        for part in ("step 60/60", "tokens/s", "eta", "expert load", "validation", "is saved in"):
            self.assertIn(part, self.trained.err)

    def test_checkpoints_verify(self):
        listed = self.expect(0, self.moesaic("ckpt", "ls", self.job.checkpoints, "-o", "json")).json
        steps = [entry["step"] for entry in listed["checkpoints"]]
        self.assertEqual(steps[-1], 60)
        # One that is due while another is written is skipped.
        self.assertLessEqual(set(steps), {20, 40, 60})
        verified = self.expect(0, self.moesaic("ckpt", "verify", "--all", self.job.checkpoints,
                                               "-o", "json"))
        self.assertTrue(verified.json["ok"])
        shown = self.expect(0, self.moesaic("ckpt", "show", self.job.checkpoints, "-o",
                                            "json")).json
        self.assertEqual(shown["step"], 60)
        self.assertEqual(shown["validation_loss"], self.trained.json["validation_loss"])

    def test_eval_equals_the_run(self):
        evaluated = self.moesaic("eval", "--checkpoint", self.job.checkpoints, "--samples", "32",
                                 "--threads", "1", "-o", "json")
        measured = self.expect(0, evaluated).json
        self.assertEqual(measured["step"], 60)
        self.assertAlmostEqual(measured["validation_loss"], self.trained.json["validation_loss"],
                               places=5)
        in_run = self.job.lines()[-1]["validation_routing"]
        alone = {"wire_rows": 0, "wire_bytes": 0}  # one process sends nothing
        self.assertEqual(measured["routing"], {**in_run, **alone})

    def test_eval_shows_routing_and_leaves_experts_out(self):
        def evaluate(*flags):
            return self.moesaic("eval", "--checkpoint", self.job.checkpoints, "--samples", "32",
                                "--threads", "1", *flags)
        table = self.expect(0, evaluate()).out.splitlines()
        self.assertIn("validation loss", table[0])
        self.assertEqual(table[1].split()[:2], ["layer", "busiest"])
        whole = self.expect(0, evaluate("-o", "json")).json
        fewer = self.expect(0, evaluate("--active", "1", "-o", "json")).json
        self.assertEqual(set(fewer["routing"]["active"]), {1})
        worse = self.expect(0, evaluate("--skip-best", "2", "-o", "json")).json
        self.assertGreater(worse["validation_loss"], whole["validation_loss"])
        self.assertIn("no shared expert", self.expect(2, evaluate("--without-shared")).err)
        self.assertIn("may choose from", self.expect(2, evaluate("--skip-best", "99")).err)

    def test_generate_is_deterministic_for_a_seed(self):
        def text(seed, *more):
            return self.expect(0, self.moesaic(
                "generate", "--checkpoint", self.job.checkpoints, "--prompt", "Ab", "--tokens",
                "40",
                "--seed", str(seed), "-o", "json", *more)).json["text"]
        self.assertEqual(text(1), text(1))
        self.assertNotEqual(text(1), text(2))
        self.assertEqual(text(1, "--temperature", "0"), text(2, "--temperature", "0"))

    def test_finished_job_says_so(self):
        again = self.expect(0, self.job.run())
        self.assertIn("--resume never", again.err)
        self.assertEqual((again.json["state"], again.json["step"]), ("SUCCEEDED", 60))
        self.assertEqual(again.json["validation_loss"], self.trained.json["validation_loss"])
        self.assertEqual(len(self.job.lines()), 60)

    def test_m4_nothing_is_left(self):
        self.expect_nothing_left()

    def test_reads_again_what_config_show_prints(self):
        shown = self.expect(0, self.moesaic("config", "show", "-f", "job.yaml", "--resolved", "-o",
                                            "textproto"))
        with open(self.path("shown.textproto"), "w", encoding="utf-8") as file:
            file.write(shown.out)
        again = self.expect(0, self.moesaic("config", "show", "-f", "shown.textproto", "--resolved",
                                            "-o", "textproto"))
        self.assertEqual(again.out, shown.out)


if __name__ == "__main__":
    main()
