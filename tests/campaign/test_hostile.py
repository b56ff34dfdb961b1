"""A slice of the campaign of hostile files; ``benchmarks/robustness.py`` runs the whole."""

from __future__ import annotations

import random
import resource

import numpy as np
import pytest
import torch

from campaign import checkpoints, images, pickles, records
from campaign.worker import run
from support.shell import run as command
from svitc.support.limits import max_memory

KINDS = {kind.name: kind for kind in (*checkpoints.KINDS, *pickles.KINDS, *records.KINDS, *images.KINDS)}
SLICE = 20  # inputs of each kind
FIRST = 1_000_000  # other seeds than those of the whole


@pytest.mark.parametrize("name", KINDS)
def test_hostile_files_are_refused_by_name_or_do_no_harm(tmp_path, name):
    kind = KINDS[name]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads do not survive a fork
    try:
        (tmp_path / "first").mkdir()
        kind.make(random.Random(0), tmp_path / "first")  # what all inputs share is made once, before the fork
        outcomes = list(run(kind, range(FIRST, FIRST + SLICE * kind.share), tmp_path))
    finally:
        torch.set_num_threads(threads)
    faults = [outcome for outcome in outcomes if outcome.is_fault]
    assert not faults, faults[:3]
    assert len(outcomes) == SLICE * kind.share and sum(o.result == "refused" for o in outcomes) > 2


@pytest.mark.parametrize("name", ["zip directory", "reports"])
def test_the_command_says_the_same(tmp_path, capsys, name):
    kind = KINDS[name]
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        made = kind.make(random.Random(seed), folder)
        status, _, err = command(capsys, *(str(made.path) if part == "{}" else part for part in kind.command))
        assert status in kind.statuses | {0}, err
        assert status == 0 or "error:" in err


def test_a_bound_of_memory_is_an_option(tmp_path, capsys):
    path = checkpoints.zip_bomb(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_DATA), max_memory()
    held = np.empty(3 << 27)  # 3 GiB, more than the bound: threads begin, for what is there already does not count
    status, _, err = command(capsys, "--max-memory", "100MB", "inspect", path)
    assert status == 3 and "claims 419.4" in err and "--max-memory" in err
    assert (
        held.nbytes and (resource.getrlimit(resource.RLIMIT_DATA), max_memory()) == before
    )  # which hold for one run only
    status, _, err = command(capsys, "--max-memory", "much", "inspect", path)
    assert status == 2 and "not a size" in err
