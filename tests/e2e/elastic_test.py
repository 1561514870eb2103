"""C4: in reproducible mode the number of ranks changes nothing, not a bit."""

from harness import EndToEndTest, Job, main

SETS = ["train.reproducible=true", "train.steps=120", "checkpoint.every_steps=0"]


class ElasticTest(EndToEndTest):
    def test_c4_two_ranks_then_three_equal_one(self):
        one = Job(self, "one", [*SETS, "elastic.slots_per_node=1"])
        alone = self.expect(0, one.run())

        many = Job(self, "many", SETS)
        running = many.start()
        running.interrupt_after(8)
        stopped = self.expect(130, running.finish())
        self.assertLess(stopped.json["step"], 120)
        resumed = self.expect(0, many.run(["elastic.slots_per_node=3"]))

        self.assertEqual(many.curve(), one.curve())
        self.assertEqual(resumed.json["validation_loss"], alone.json["validation_loss"])
        self.assertIn("data 2", stopped.err)
        self.assertIn("data 3", resumed.err)
        self.expect_nothing_left()

    def test_experts_of_a_running_job_move_and_change_no_bit(self):
        # Without a loss that balances them, and with a gain from the smallest difference.
        sets = ["train.reproducible=true", "checkpoint.every_steps=0", "model.moe.experts=8",
                "recipe.router.balance.coefficient=0"]
        moving = Job(self, "moving", [*sets, "train.steps=1000000",
                                      "checkpoint.memory_every_steps=5",
                                      "elastic.rebalance_ratio=1.05",
                                      "elastic.rebalance_after=500ms"])
        running = moving.start()
        running.interrupt_after(20, generation=2)
        stopped = self.expect(130, running.finish())
        self.assertIn("to move experts: for 500ms the busiest ranks have taken", stopped.err)
        self.assertIn("experts moved: ", stopped.err)
        self.assertEqual(stopped.json["restarts"], 0)

        still = Job(self, "still", [*sets, f"train.steps={stopped.json['step']}",
                                "elastic.slots_per_node=1"])
        self.expect(0, still.run())
        self.assertEqual(moving.curve(), still.curve())
        # No step was lost: each was done once.
        self.assertEqual([line["step"] for line in moving.lines()],
                         list(range(1, stopped.json["step"] + 1)))
        self.expect_nothing_left()


if __name__ == "__main__":
    main()
