"""How many threads a world runs on best: measured, in a fraction of a second, where nobody has said.

More threads than cores that are free make frames slower, a second hardware thread of one core gains a fifth or costs
a tenth, and a small model has too little work to share; no rule knows all of it. It is the programs that choose
(`farworld play`, `farworld bench play`): for a user of the library threads stay as they are.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from farworld.rollout import Rollout

MOST_MS = 150.0  # a frame that takes longer on all cores is large enough for all of them, and not worth the wait
ROUNDS = 4  # of one frame for each number of threads, in turns: what disturbs one disturbs the others too
WORTH = 0.05  # more threads must save this part of a frame, or the core is better left to the window
SET_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def settle_threads(rollout: Rollout, threads: int | None) -> int:
    """Let torch use as many threads as were asked for, or else as are best for a primed rollout, which stays as it was.

    Without a wish nothing changes on devices other than a CPU, or if the environment says how many threads there are.

    Returns:
        The number of threads that torch uses now.

    Raises:
        ValueError: threads is below 1.
    """
    import torch

    from farworld.exported import forget_other_threads, is_exported

    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads must be 1 or more, got {threads}")
        torch.set_num_threads(threads)
    elif rollout.world.device.type == "cpu" and not any(os.environ.get(name) for name in SET_BY_USER):
        numbers = numbers_to_try(physical_cores())
        if is_exported(rollout.world):  # it is compiled for each, which takes seconds
            numbers = numbers[-2:]
        torch.set_num_threads(measured_threads(rollout, numbers))
        forget_other_threads(rollout.world)
    return torch.get_num_threads()


def measured_threads(rollout: Rollout, numbers: list[int]) -> int:
    """The number of threads, of some in ascending order, that a frame of this rollout is to be made with."""
    import torch

    if len(numbers) == 1:
        return numbers[0]
    start = rollout.snapshot()

    def frame_ms(number: int) -> float:
        torch.set_num_threads(number)
        began = time.perf_counter()
        rollout.step(0)
        took = (time.perf_counter() - began) * 1000
        rollout.restore(start)
        return took

    for number in reversed(numbers):
        frame_ms(number)  # wakes threads, fills caches, compiles
        if number == numbers[-1] and frame_ms(number) > MOST_MS:
            return number
    rounds = [{number: frame_ms(number) for number in reversed(numbers)} for _ in range(ROUNDS)]
    return fastest({number: [took[number] for took in rounds] for number in numbers})


def fastest(frame_ms: dict[int, list[float]]) -> int:
    """The number of threads with the shortest frame, by its best time; fewer, if more hardly help."""
    best = min(frame_ms)
    for number in sorted(frame_ms):
        if min(frame_ms[number]) < min(frame_ms[best]) * (1 - WORTH):
            best = number
    return best


def numbers_to_try(cores: int) -> list[int]:
    """1, 2, 4, … and all cores."""
    return sorted({1 << power for power in range(cores.bit_length())} | {cores})


def physical_cores() -> int:
    """Cores that this process may use, hardware threads of one core counted once; without Linux's word for it, CPUs."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text().strip() if siblings.is_file() else str(cpu))
    return max(1, len(cores))
