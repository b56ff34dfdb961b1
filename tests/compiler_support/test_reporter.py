"""Tests of stages within stages: no second is counted twice."""

import time

import pytest

from svitc.support.reporter import Reporter


def test_a_stage_s_seconds_are_without_those_of_stages_within_it():
    outer = Reporter()
    with outer.stage("plan"), outer.for_budget().stage("measure"):
        time.sleep(0.05)
    assert outer.seconds["measure"] >= 0.05
    assert outer.seconds["plan"] < 0.04


def test_a_failed_stage_does_not_disturb_the_next():
    reporter = Reporter()
    with pytest.raises(ValueError), reporter.stage("plan"):
        raise ValueError
    assert reporter.nested == []
    with reporter.stage("prune"):
        time.sleep(0.02)
    assert reporter.seconds["prune"] >= 0.02 and "plan" not in reporter.seconds
