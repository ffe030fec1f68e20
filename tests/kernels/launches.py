"""Launching the Triton kernels on a problem, past the registered operations."""

from __future__ import annotations

from torch import Tensor

from tests.kernels import gpu
from tests.kernels.cases import Problem


def launch_codes(problem: Problem, device: str = "cpu") -> list[Tensor]:
    """Run the codes convolution into poisoned outputs and check them."""
    outs = problem.poisoned(device)
    gpu.launch_codes_conv(**problem.arguments, out=outs[0], capability=problem.capability)
    return _checked(problem, outs)


def launch_block(problem: Problem, device: str = "cpu") -> list[Tensor]:
    """Run the block into poisoned outputs and check them."""
    arguments = dict(problem.arguments)
    del arguments["keep"]
    outs = problem.poisoned(device)
    gpu.launch_conv_block(**arguments, outs=outs, capability=problem.capability)
    return _checked(problem, outs)


def launch_pointwise(problem: Problem, device: str = "cpu") -> list[Tensor]:
    """Run the pointwise kernel into poisoned outputs and check them."""
    arguments = dict(problem.arguments)
    del arguments["keep"]
    outs = problem.poisoned(device)
    gpu.launch_bias_act_pool(**arguments, outs=outs)
    return _checked(problem, outs)


def _checked(problem: Problem, outs: list[Tensor]) -> list[Tensor]:
    problem.check(outs)
    problem.check_untouched(outs)
    return outs
