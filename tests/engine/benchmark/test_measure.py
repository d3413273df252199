import os
import sys

import pytest
import torch

from diveparse.engine.benchmark.measure import (
    in_a_fresh_process,
    is_installed,
    one_core,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def test_one_core_is_given_back():
    cores, num_threads = os.sched_getaffinity(0), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_core():
            assert len(os.sched_getaffinity(0)) == torch.get_num_threads() == 1
        assert (os.sched_getaffinity(0), torch.get_num_threads()) == (cores, 2)
    finally:
        torch.set_num_threads(num_threads)


def test_a_fresh_process_is_another_process():
    assert in_a_fresh_process(os.getpid) != os.getpid()


def test_a_package_is_installed_or_not():
    assert is_installed("torch")
    assert not is_installed("no-such-package")
