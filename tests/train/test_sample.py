"""Text from a saved run."""

from fla_mesa.train.sample import sample


def test_it_is_the_same_for_the_same_seed(undisturbed):
    first, again = (sample(undisturbed, "the ", new_tokens=20, seed=1) for _ in range(2))
    assert first.startswith("the ") and first == again != sample(undisturbed, "the ", new_tokens=20, seed=2)
