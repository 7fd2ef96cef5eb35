"""Strategies: which prefix of the ranked layers they ask for, and when they stop."""

import math

import pytest

from amct_pytorch.search.strategy import BinarySearchStrategy, GreedyStrategy

SEVEN = {f"L{i}": 0.9 + i / 100 for i in range(7)}


def drive(strategy, scores, shortest_good):
    """The prefix lengths asked for, and the one that is the answer."""
    strategy.initialize(scores)
    judged, asked = (shortest_good == 0, 0.0), []
    while True:
        answer = strategy.update_quant_config(judged)
        config = answer["roll_back_config"]
        length = sum(not kept for kept in config.values())
        lowest = sorted(scores, key=scores.get)[:length]
        assert {name for name, kept in config.items() if not kept} == set(lowest)
        if answer["stop_flag"]:
            return asked, length
        asked.append(length)
        judged = (length >= shortest_good, 0.0)


@pytest.mark.parametrize(
    ("shortest_good", "asked"),
    [
        (1, [4, 2, 1]),
        (2, [4, 2, 1]),
        (3, [4, 2, 3]),
        (4, [4, 2, 3]),
        (5, [4, 6, 5]),
        (6, [4, 6, 5]),
        (7, [4, 6]),
    ],
)
def test_binary_search_asks_as_the_reference_does_but_never_twice(shortest_good, asked):
    assert drive(BinarySearchStrategy(), SEVEN, shortest_good) == (asked, shortest_good)


@pytest.mark.parametrize("layers", [1, 2, 3, 10, 53, 100, 1000])
def test_binary_search_keeps_its_bound(layers):
    scores = {f"L{i}": float(i) for i in range(layers)}
    strategy = BinarySearchStrategy()
    bound = strategy.evaluations_at_most(layers)
    assert bound == math.ceil(math.log2(layers))
    for shortest_good in {1, min(2, layers), layers // 2 or 1, layers - 1 or 1, layers}:
        asked, answer = drive(strategy, scores, shortest_good)
        assert answer == shortest_good
        assert len(asked) <= bound


@pytest.mark.parametrize("shortest_good", range(1, 8))
def test_greedy_puts_back_the_worst_layer_then_the_next(shortest_good):
    asked, answer = drive(GreedyStrategy(), SEVEN, shortest_good)
    assert answer == shortest_good
    assert asked == list(range(1, min(shortest_good, 6) + 1))
    assert len(asked) <= GreedyStrategy().evaluations_at_most(7)


@pytest.mark.parametrize("strategy", [BinarySearchStrategy(), GreedyStrategy()])
def test_equal_scores_stay_in_the_order_of_the_configuration(strategy):
    strategy.initialize({"b": 0.5, "a": 0.5, "c": 0.5})
    strategy.update_quant_config((False, 0.0))
    assert list(strategy.result["roll_back_config"]) == ["b", "a", "c"]


@pytest.mark.parametrize("strategy", [BinarySearchStrategy(), GreedyStrategy()])
def test_a_layer_whose_score_is_nan_comes_first(strategy):
    strategy.initialize({"a": 0.1, "broken": math.nan, "c": 0.5})
    answer = strategy.update_quant_config((False, 0.0))
    assert next(iter(answer["roll_back_config"])) == "broken"


@pytest.mark.parametrize("strategy", [BinarySearchStrategy(), GreedyStrategy()])
def test_one_layer_that_harms_leaves_nothing_to_evaluate(strategy):
    strategy.initialize({"only": 0.5})
    answer = strategy.update_quant_config((False, 1.0))
    assert answer == {"stop_flag": True, "roll_back_config": {"only": False}}


def test_a_strategy_can_be_used_again():
    strategy = BinarySearchStrategy()
    assert drive(strategy, SEVEN, 3) == drive(strategy, SEVEN, 3)
