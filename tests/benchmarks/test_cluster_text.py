"""What is said of the simulated cluster follows from the numbers."""

from __future__ import annotations

from cluster_model import Network, Place, Saturation
from cluster_text import assumptions, doubling_sentence, saturation_table, sentences

NOW = Saturation(Place(10, "learner", 0.92), Place(40, "learner", 0.95), 3000.0, 2900.0)
FASTER = Saturation(Place(None, "driver", 0.6), Place(None, "driver", 0.6), 9000.0, 5800.0)
SAME = Saturation(Place(12, "learner", 0.9), Place(41, "learner", 0.95), 3100.0, 3000.0)
SLOWER = Saturation(Place(8, "network", 0.5), Place(20, "network", 0.5), 1500.0, 1450.0)


def test_changes_are_sorted_by_what_they_bring():
    text = sentences({"as it is": NOW, "a": SAME, "b": SLOWER, "c": FASTER}, 256)
    assert (
        "from 10 on, and 90 % of the limit are reached at 40; at 10 the learner takes 92%" in text
    )
    assert "raise it with 1,000 env runners: c (2.00 times)." in text
    assert "by less than a tenth with 1,000 env runners: a (1.03 times)." in text
    assert "lower it with 1,000 env runners: b (0.50 times)." in text
    assert "With c, 8 times as many env runners bring a tenth or more up to 1,000" in text
    assert "rises again" not in text


def test_another_limit_is_another_sentence():
    driver = Saturation(Place(5, "driver", 0.7), Place(9, "driver", 0.8), 3000.0, 1500.0)
    text = sentences({"as it is": driver, "a": driver}, 256)
    assert "at 5 the driver takes 70%" in text
    assert "With 1,000 it is 50% of the limit." in text
    assert "learner" not in text
    assert "What would raise it" not in text
    assert "What would lower it" not in text


def test_minibatches_that_have_to_grow_are_told():
    late = Saturation(NOW.knee, Place(700, "learner", 0.9), 3000.0, 2900.0)
    assert "behind 256 env runners" in sentences({"as it is": late, "a": SAME}, 256)


def test_the_table_compares_with_what_is():
    rows = saturation_table({"as it is": NOW, "c": FASTER}).splitlines()
    assert rows[2] == ("| as it is | 10 (learner 92%) | 40 (learner 95%) | 3,000 | 2,900 | 1.00 |")
    assert rows[3] == "| c | > 1,000 (driver 60%) | > 1,000 (driver 60%) | 9,000 | 5,800 | 2.00 |"


def test_assumptions_are_those_that_were_given():
    text = assumptions(Network(bytes_per_s=3.125e9, latency=2e-3, streams=4, runners_per_node=16))
    for part in ("25 Gbit/s", "2 ms", "4 transfers", "16 env runners per machine"):
        assert part in text


def test_doubling_is_told_with_its_number():
    assert doubling_sentence(7).startswith("From 7 env runners on")
    assert doubling_sentence(None).startswith("Up to 1,000")
