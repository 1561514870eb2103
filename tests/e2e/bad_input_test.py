"""Wrong job files, broken data, broken checkpoints: what is said, and the exit code."""

import os
import shutil

from harness import EndToEndTest, Job, main

SHORT = ["train.steps=12", "checkpoint.every_steps=6"]


class BadJobFileTest(EndToEndTest):
    def refuse(self, old, new, place, *words):
        with open(self.path("job.yaml"), encoding="utf-8") as file:
            text = file.read()
        self.assertEqual(text.count(old), 1)
        with open(self.path("bad.yaml"), "w", encoding="utf-8") as file:
            file.write(text.replace(old, new))
        for verb in (["config", "check"], ["run"]):
            refused = self.expect(2, self.moesaic(*verb, "-f", "bad.yaml"))
            self.assertIn(f"bad.yaml:{place}: ", refused.err)
            for word in words:
                self.assertIn(word, refused.err)
        self.assertFalse(os.path.exists(self.path("runs", "tiny")))

    def test_unknown_key(self):
        self.refuse("  hidden: 32", "  hiden: 32", "4:3", 'model: unknown key "hiden"',
                    "did you mean hidden?")

    def test_duplicate_key(self):
        self.refuse("  heads: 2", "  heads: 2\n  heads: 2", "6:3", "heads")

    def test_octal_looking_number(self):
        self.refuse("  steps: 60", "  steps: 010", "13:10", "train.steps", "010")

    def test_wrong_type(self):
        self.refuse("  layers: 2", "  layers: two", "3:11", "model.layers", "two")

    def test_missing_inputs(self):
        self.refuse("train: [{path: train}]", "train: [{path: gone}]", "10:18", "gone.bin")
        self.refuse("tokenizer: bpe.model", "tokenizer: gone.model", "9:14", "gone.model")

    def test_missing_job_file(self):
        self.assertIn("gone.yaml", self.expect(2, self.moesaic("run", "-f", "gone.yaml")).err)

    def test_too_few_slots(self):
        refused = self.expect(9, Job(self, "slots", ["launch.oversubscribe=false",
                                                     "elastic.slots_per_node=1024"]).run())
        self.assertIn("elastic.slots_per_node", refused.err)


class BadDataTest(EndToEndTest):
    def test_truncated_token_file(self):
        job = Job(self, "truncated", SHORT)
        whole = os.path.getsize(self.path("train.bin"))
        shutil.copy(self.path("train.bin"), self.path("kept.bin"))
        self.addCleanup(shutil.move, self.path("kept.bin"), self.path("train.bin"))
        self.expect(0, job.run())
        os.truncate(self.path("train.bin"), 20000)
        for sets, name in ((SHORT, "fresh"), (["train.steps=24"], "truncated")):
            failed = self.expect(1, Job(self, name, sets).run())
            self.assertEqual(failed.json["state"], "FAILED")
            self.assertEqual(failed.json["restarts"], 0)
            for word in ("train.bin", str(whole), "20000"):
                self.assertIn(word, failed.err)
            self.assertNotIn("is corrupt; move it away", failed.err)


class BadCheckpointTest(EndToEndTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.job = Job(cls, "good", SHORT)
        cls.trained = cls.job.run()

    def damaged(self, name, file, offset, step="step-000000012"):
        """A copy of the job in which 16 bytes of a file differ; a negative offset is from the
        end."""
        copy = Job(self, name, SHORT)
        shutil.copytree(self.job.checkpoints, copy.checkpoints)
        path = os.path.join(copy.checkpoints, step, file)
        with open(path, "r+b") as stream:
            stream.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
            before = stream.read(16)
            stream.seek(-len(before), os.SEEK_CUR)
            stream.write(bytes(byte ^ 0x5A for byte in before))
        return copy

    def files(self):
        self.expect(0, self.trained)
        return sorted(os.listdir(os.path.join(self.job.checkpoints, "step-000000012")))

    def test_every_file_is_verified(self):
        for number, file in enumerate(self.files()):
            for offset in (4, -40):
                with self.subTest(file=file, offset=offset):
                    copy = self.damaged(f"verify-{number}-{offset % 1000}", file, offset)
                    found = self.expect(8, self.moesaic("ckpt", "verify", copy.checkpoints))
                    self.assertIn(file, found.out + found.err)

    def test_damaged_tensor_is_not_used(self):
        name = "x-L001-E0002.safetensors"
        with open(os.path.join(self.job.checkpoints, "step-000000012", name), "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        copy = self.damaged("tensor", name, 8 + header + 64)
        for verb in (["generate", "--prompt", "Ab"], ["eval"]):
            refused = self.expect(8, self.moesaic(*verb, "--checkpoint", copy.checkpoints))
            self.assertIn(name, refused.err)
        ended = self.expect(0, copy.run(["train.steps=18"]))  # from the one before, loudly
        self.assertIn("WARNING: the checkpoint of step 12 is broken", ended.err)
        self.assertIn(name, ended.err)
        self.assertEqual([line["step"] for line in copy.lines()], list(range(7, 19)))
        self.expect_nothing_left()

    def test_run_falls_back_from_a_broken_manifest(self):
        copy = self.damaged("manifest", "MANIFEST.pb", 4)
        ended = self.expect(0, copy.run())
        self.assertIn("WARNING: the checkpoint of step 12 is broken", ended.err)
        self.assertEqual([line["step"] for line in copy.lines()], list(range(7, 13)))
        self.assertEqual(ended.json["loss"], self.trained.json["loss"])
        aside = sorted(os.listdir(os.path.join(copy.checkpoints, ".quarantine")))
        self.assertEqual(len(aside), 2)  # the folder, and when and why
        self.assertEqual(aside[1], aside[0] + ".json")

    def test_checkpoint_of_another_model(self):
        refused = self.expect(1, self.job.run(["model.hidden=64"]))
        self.assertIn("model.hidden: 32 -> 64", refused.err)


if __name__ == "__main__":
    main()
