"""Launching the Triton kernels on a problem, past the registered operations."""

from __future__ import annotations

from torch import Tensor

from genomepred.kernels import gpu
from tests.kernels.cases import Problem, Row


def _epilogue(arguments: Row) -> gpu.Epilogue:
    names = ("activation", "factor", "pool", "next_activation", "next_factor")
    return gpu.Epilogue(**{name: arguments.pop(name) for name in names})


def launch_codes(problem: Problem, device: str = "cpu") -> list[Tensor]:
    """Run the codes convolution into poisoned outputs and check them."""
    arguments = dict(problem.arguments)
    epilogue, outs = _epilogue(arguments), problem.poisoned(device)
    gpu.launch_codes_conv(
        **arguments, epilogue=epilogue, out=outs[0], capability=problem.capability
    )
    return _checked(problem, outs)


def launch_block(problem: Problem, device: str = "cpu") -> list[Tensor]:
    """Run the block into poisoned outputs and check them."""
    arguments = dict(problem.arguments)
    del arguments["keep"]
    epilogue, outs = _epilogue(arguments), problem.poisoned(device)
    gpu.launch_conv_block(**arguments, epilogue=epilogue, outs=outs, capability=problem.capability)
    return _checked(problem, outs)


def launch_pointwise(problem: Problem, device: str = "cpu") -> list[Tensor]:
    """Run the pointwise kernel into poisoned outputs and check them."""
    arguments = dict(problem.arguments)
    del arguments["keep"]
    epilogue, outs = _epilogue(arguments), problem.poisoned(device)
    gpu.launch_bias_act_pool(**arguments, epilogue=epilogue, outs=outs)
    return _checked(problem, outs)


def _checked(problem: Problem, outs: list[Tensor]) -> list[Tensor]:
    problem.check(outs)
    problem.check_untouched(outs)
    return outs
