"""Every job file of configs/ trains for a few steps, on less data a step; those of published models
are planned."""

import pathlib

from harness import EndToEndTest, main

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
PUBLISHED = CONFIGS / "published"
# Billions of parameters, all and those that a token uses, as the papers give them. DeepSeek-V2 and
# V3 have another attention than the models here, so theirs are less close.
SIZES = {"deepseek-moe-2b": (2.0, 0.3), "deepseek-moe-16b": (16.4, 2.8),
         "deepseek-moe-145b": (144.6, 22.2),
         "deepseek-v2-lite": (15.7, 2.4), "deepseek-v2": (236, 21), "deepseek-v3": (671, 37),
         "qwen3-30b-a3b": (30.5, 3.3), "dots-llm1": (142, 14)}
SMALLER = ["train.steps=2", "train.global_batch=4", "train.micro_batch=2", "model.sequence=64",
           "train.validate_samples=4", "train.schedule={warmup_steps: 0, constant: {}}",
           "elastic.slots_per_node=2",
           "launch.oversubscribe=true"]


class ConfigsTest(EndToEndTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.copy_corpora("corpus", "corpus/bench")

    def test_each_trains(self):
        files = sorted(file for file in CONFIGS.rglob("*.yaml") if file.parent != PUBLISHED)
        self.assertTrue(files)
        for file in files:
            with self.subTest(file=str(file.relative_to(CONFIGS))):
                self.expect(0, self.moesaic("config", "check", "-f", str(file)))
                sets = [word for value in SMALLER for word in ("--set", value)]
                trained = self.expect(0, self.moesaic("run", "-f", str(file), "-o", "json", *sets))
                self.assertEqual((trained.json["state"], trained.json["step"]), ("SUCCEEDED", 2))
                self.assertGreater(trained.json["validation_loss"], 0)
        self.expect_nothing_left()

    def test_published_are_planned(self):
        for file in sorted(PUBLISHED.glob("*.yaml")):
            with self.subTest(file=file.name):
                parameters, active = SIZES[file.stem]
                self.expect(0, self.moesaic("config", "check", "-f", str(file)))
                planned = self.expect(0, self.moesaic("plan", "-f", str(file), "--nodes", "1",
                                                      "-o", "json"))
                near = 0.05 if file.stem.startswith("deepseek-moe") else 0.1
                self.assertAlmostEqual(planned.json["parameters"] / 1e9 / parameters, 1, delta=near)
                self.assertAlmostEqual(planned.json["active_parameters"] / 1e9 / active, 1,
                                       delta=2 * near)


if __name__ == "__main__":
    main()
