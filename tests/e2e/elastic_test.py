"""C4: in reproducible mode the number of ranks changes nothing, not a bit."""

from harness import EndToEndTest, Job, main

SETS = ["train.reproducible=true", "train.steps=120", "checkpoint.every_steps=0"]


class ElasticTest(EndToEndTest):
    def test_c4_two_ranks_then_three_equal_one(self):
        one = Job(self, "one", [*SETS, "elastic.slots_per_node=1"])
        alone = self.expect(0, one.run())

        many = Job(self, "many", SETS)
        running = many.start()
        running.wait_for_step(8)
        running.interrupt()
        stopped = self.expect(130, running.finish())
        self.assertLess(stopped.json["step"], 120)
        resumed = self.expect(0, many.run(["elastic.slots_per_node=3"]))

        self.assertEqual(many.curve(), one.curve())
        self.assertEqual(resumed.json["validation_loss"], alone.json["validation_loss"])
        self.assertIn("data 2", stopped.err)
        self.assertIn("data 3", resumed.err)
        self.expect_nothing_left()


if __name__ == "__main__":
    main()
