"""The paper's evaluations of scores, and the intervals that go with them."""
