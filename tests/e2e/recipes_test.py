"""Every recipe of configs/recipes: ranks that die in each of its phases and a resume at another
expert degree leave the curve as it is (C3). The job files as they are, but for sizes."""

import pathlib

from harness import EndToEndTest, Job, main

RECIPES = pathlib.Path(__file__).resolve().parents[2] / "configs" / "recipes"
STEPS = 120
SMALL = ["model.hidden=32", "model.heads=2", "model.kv_heads=2", "model.sequence=32",
         f"train.steps={STEPS}", "train.global_batch=8", "train.micro_batch=2",
         "train.validate_samples=16",
         "train.validate_every_steps=0", "train.reproducible=true", "checkpoint.every_steps=6",
         "launch.threads=1", "launch.oversubscribe=true"]
WIDTHS = {"dense_width": 48, "expert_width": 12, "shared_width": 24}
# Schedules that are not given change at a tenth, a fifth, half or three fifths of the steps.
KILLS = [STEPS // 20, STEPS * 3 // 10, STEPS * 4 // 5]


def small(file):
    """What makes the job of `file` small."""
    text = file.read_text(encoding="utf-8")
    given = [f"model.{'' if name == 'dense_width' else 'moe.'}{name}={width}"
             for name, width in WIDTHS.items() if f"{name}:" in text]
    return SMALL + given


class RecipesTest(EndToEndTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.copy_corpora("corpus")

    def test_each_survives_a_kill_in_each_phase_and_another_expert_degree(self):
        files = sorted(RECIPES.glob("*.yaml"))
        self.assertTrue(files)
        for file in files:
            with self.subTest(recipe=file.stem):
                reference = Job(self, file.stem, small(file), file=str(file))
                undisturbed = self.expect(0, reference.run())
                self.expect_phases(file.stem, undisturbed)
                self.kill_in_each_phase(file, reference, undisturbed)
                self.resume_at_another_degree(file, reference, undisturbed)

    def expect_phases(self, recipe, ended):
        """Of EvoMoE the lines of the first and the last step say which it is, of others none does."""
        lines = [line for line in ended.err.splitlines() if "  loss " in line]
        phases = ("one_expert", "top_1") if recipe == "evomoe" else ("", "")
        for line, phase in zip((lines[0], lines[-1]), phases):
            self.assertEqual(line.partition("  phase ")[2].partition("  ")[0], phase, line)

    def kill_in_each_phase(self, file, reference, undisturbed):
        job = Job(self, f"{file.stem}-killed", small(file), file=str(file))
        running = job.start()
        for number, step in enumerate(KILLS, start=1):
            running.kill_a_worker(step, generation=number)
        ended = self.expect(0, running.finish())
        self.assertEqual(ended.json["restarts"], len(KILLS))
        self.expect_the_same(job, ended, reference, undisturbed)

    def resume_at_another_degree(self, file, reference, undisturbed):
        job = Job(self, f"{file.stem}-degrees", small(file), file=str(file))
        for number, step in enumerate(KILLS, start=1):
            running = job.start([f"parallel.expert={1 + number % 2}"])
            running.interrupt_after(step, generation=number)
            self.expect(130, running.finish())
        ended = self.expect(0, job.run(["parallel.expert=1"]))
        self.expect_the_same(job, ended, reference, undisturbed)

    def expect_the_same(self, job, ended, reference, undisturbed):
        self.assertEqual(job.curve(), reference.curve())
        for key in ("loss", "validation_loss", "tokens", "step"):
            self.assertEqual(ended.json[key], undisturbed.json[key], key)
        self.expect_nothing_left()


if __name__ == "__main__":
    main()
