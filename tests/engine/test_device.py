import random

import numpy as np
import pytest
import torch

from diveparse.configs import Precision, TrainConfig
from diveparse.engine.device import autocast, require_trainable, seed_everything

CPU = torch.device("cpu")


def test_training_in_half_precision_is_refused_on_the_cpu():
    with pytest.raises(ValueError, match=r"train.precision=bf16 needs a GPU, and this machine has none; use fp32"):
        require_trainable(TrainConfig(precision=Precision.BF16), CPU)


def test_compiling_is_refused_on_the_cpu():
    with pytest.raises(ValueError, match=r"train\.compile=true needs a GPU"):
        require_trainable(TrainConfig(compile=True), CPU)


def test_training_in_full_precision_is_fine_anywhere():
    require_trainable(TrainConfig(), CPU)
    require_trainable(TrainConfig(), torch.device("cuda"))


@pytest.mark.parametrize("precision", list(Precision))
def test_a_forward_pass_on_the_cpu_is_in_full_precision(precision):
    with autocast(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


def test_one_seed_gives_one_stream_from_every_generator():
    def draw() -> tuple[float, float, float]:
        seed_everything(3, CPU)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw() == draw()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_forward_pass_on_a_gpu_is_in_the_precision_asked_for():
    ones = torch.ones(2, 2, device="cuda")
    with autocast(Precision.BF16, ones.device):
        assert (ones @ ones).dtype is torch.bfloat16
