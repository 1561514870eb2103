"""A dense job is trained; its model gets experts, and trains on from where it was."""

import os

from harness import JOB, EndToEndTest, Job, main

EXPERTS = "moe: {experts: 5, active: 2, expert_width: 48}"
COPIES = "moe: {experts: 4, active: 2, expert_width: 48}"
PIECES = "moe: {experts: 8, active: 4, expert_width: 24}"


class UpcycleTest(EndToEndTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for name, experts, recipe in [
            ("dense", "dense_width: 48", ""),
            ("copies", COPIES, ""),
            ("pieces", PIECES, "recipe: {router: {weight: {scale: 2}}}\n"),
        ]:
            with open(cls.path(f"{name}.yaml"), "w", encoding="utf-8") as file:
                file.write(JOB.replace(EXPERTS, experts) + recipe)
        cls.dense = Job(cls, "dense", ["train.steps=40"], file="dense.yaml")
        cls.trained = cls.dense.run()

    def loss_of(self, checkpoints):
        evaluated = self.moesaic("eval", "--checkpoint", checkpoints, "--data", "validation", "-o",
                                 "json")
        return self.expect(0, evaluated).json["validation_loss"]

    def upcycle(self, job, *arguments):
        return self.moesaic("ckpt", "upcycle", "--from", self.dense.checkpoints, "-f",
                            f"{job}.yaml",
                            "-o", "json", *arguments)

    def test_the_new_model_is_the_dense_one(self):
        self.expect(0, self.trained)
        dense = self.loss_of(self.dense.checkpoints)
        for job, method in [("copies", "copy"), ("pieces", "granular")]:
            with self.subTest(method=method):
                to = self.path(f"made-{method}")
                self.expect(0, self.upcycle(job, "--method", method, "--to", to))
                self.assertAlmostEqual(self.loss_of(to), dense, delta=1e-5 * dense)

    def test_a_run_starts_from_it(self):
        to = self.path("start")
        self.expect(0, self.upcycle("pieces", "--method", "granular", "--to", to))
        job = Job(self, "pieces", [f"train.init_from={to}", "train.steps=20"], file="pieces.yaml")
        trained = self.expect(0, job.run()).json
        self.assertEqual((trained["state"], trained["step"]), ("SUCCEEDED", 20))
        # Of the same data, which its first step sees as the dense one's did.
        self.assertLess(job.curve()[1][0], self.dense.curve()[1][0] - 0.5)
        self.assertLess(trained["validation_loss"], self.trained.json["validation_loss"])

    def test_a_run_resumes_with_the_moments(self):
        job = Job(self, "copies", ["train.steps=20"], file="copies.yaml")
        self.expect(0, self.upcycle("copies", "--to", job.checkpoints, "--keep-optimizer",
                                    "--set", "name=copies", "--set", f"run.dir={job.run_dir}"))
        shown = self.expect(0, self.moesaic("ckpt", "show", job.checkpoints, "-o", "json")).json
        self.assertEqual((shown["step"], shown["optimizer_updates"], shown["contents"]),
                         (0, 40, "full"))
        trained = self.expect(0, job.run()).json
        self.assertEqual((trained["state"], trained["step"]), ("SUCCEEDED", 20))
        self.assertLess(job.curve()[1][0], self.dense.curve()[1][0] - 0.5)
        last = self.expect(0, self.moesaic("ckpt", "show", job.checkpoints, "-o", "json")).json
        self.assertEqual((last["step"], last["optimizer_updates"]), (20, 60))
        # A new start leaves it alone, too.
        anew = self.expect(0, job.run(["train.steps=1"], ["--resume", "never"])).json
        self.assertEqual((anew["state"], anew["step"]), ("SUCCEEDED", 1))
        self.assertAlmostEqual(job.lines()[-1]["loss"], self.dense.curve()[1][0], delta=0.3)
        listed = self.expect(0, self.moesaic("ckpt", "ls", job.checkpoints, "-o", "json")).json
        self.assertEqual([entry["step"] for entry in listed["checkpoints"]], [1])
        self.assertEqual({entry["step"] for entry in listed["quarantined"]}, {0, 20})

    def test_what_does_not_fit_is_refused(self):
        to = self.path("never")
        refused = self.upcycle("pieces", "--to", to)
        self.assertEqual(refused.code, 2)
        self.assertIn("a copy of the dense layer is 48 wide", refused.err)
        other = self.upcycle("copies", "--to", to, "--set", "model.hidden=64", "--set",
                             "model.heads=2")
        self.assertEqual(other.code, 2)
        self.assertIn("model.hidden is 32 in the dense model, and 64 in the job", other.err)
        self.assertFalse(os.path.exists(to))


if __name__ == "__main__":
    main()
