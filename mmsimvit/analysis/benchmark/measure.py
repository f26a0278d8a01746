"""Time and memory of functions, side by side in one process."""
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from ...ops.backends import use_backend
from ..memory import memory_events, saved_activations

STEPS = ('forward', 'training')  # without gradients; forward and backward


def time_once(call: Callable[[], object], device: torch.device, queue_cycles: int) -> tuple[float, int]:
    """Seconds of one call, and on a GPU the cycles for which it must be kept busy.

    On a GPU the time is that of the kernels alone: they are queued while it is kept busy, because Python can take longer to
    launch them than they take.

    Args:
        call: what is timed.
        device: where it runs.
        queue_cycles: for how many cycles of its clock a GPU is kept busy at first; doubled until all kernels are queued.
    """
    if device.type != 'cuda':
        began = time.perf_counter()
        call()
        return time.perf_counter() - began, queue_cycles
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    while True:
        torch.empty(1 << 28, dtype=torch.int8, device=device).zero_()  # what the last run left in the caches
        torch.cuda._sleep(queue_cycles)
        start.record()
        call()
        end.record()
        waited_for_python = start.query()
        torch.cuda.synchronize(device)
        if not waited_for_python or queue_cycles > 10**9:  # half a second: something in the run waits itself
            return start.elapsed_time(end) / 1000, queue_cycles
        queue_cycles *= 2


@dataclass
class Candidate:
    """What is measured on one input.

    Attributes:
        call: gives the tensors to differentiate, or one of them.
        inputs: the tensors and parameters whose gradients a training step computes.
        can_train: whether it has gradients.
        backend: of central attention, for as long as it runs.
    """
    name: str
    call: Callable
    inputs: list[torch.Tensor]
    device: torch.device
    can_train: bool = True
    backend: str | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    saved_bytes: int | None = None
    upstream: list[torch.Tensor] | None = None
    queue_cycles: int = 20_000_000

    def run(self, step: str) -> None:
        """One step; the gradients that a training step computes are thrown away."""
        with use_backend(self.backend):
            if step == 'forward':
                with torch.no_grad():
                    self.call()
                return
            outs = self.call()
            outs = [outs] if isinstance(outs, torch.Tensor) else outs
            if self.upstream is None:
                self.upstream = [torch.ones_like(out) for out in outs]
            torch.autograd.backward(outs, self.upstream)
            for x in self.inputs:
                x.grad = None

    def time(self, step: str) -> float:
        """Seconds of one run; on a GPU, of its kernels alone."""
        seconds, self.queue_cycles = time_once(partial(self.run, step), self.device, self.queue_cycles)
        return seconds

    def measure_memory(self, step: str) -> None:
        """The most bytes allocated at a time beyond those before the step, and those kept for the backward pass."""
        if step == 'training':
            with use_backend(self.backend):
                self.saved_bytes = saved_activations(
                    self.call, self.device, [x for x in self.inputs if not isinstance(x, torch.nn.Parameter)])
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.run(step)
            self.peak_bytes[step] = torch.cuda.max_memory_allocated(self.device) - before
            return
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.run(step)
        allocated = peak = 0
        for event in sorted(memory_events(profiler), key=lambda event: event.start_ns()):
            allocated += event.nbytes()
            peak = max(peak, allocated)
        self.peak_bytes[step] = peak


def measure(candidates: list[Candidate], steps: tuple[str, ...], rounds: int, progress: Callable[[str], None]) -> None:
    """Time every candidate in every round, after a warm-up, and then its memory."""
    for step in steps:
        taking_part = [c for c in candidates if step == 'forward' or c.can_train]
        for candidate in taking_part:
            progress(f'{candidate.name}: {step}, warm-up')
            candidate.run(step)
            candidate.seconds[step] = []
        for number in range(rounds):
            for candidate in taking_part:
                progress(f'{candidate.name}: {step}, round {number + 1} of {rounds}')
                candidate.seconds[step].append(candidate.time(step))
        for candidate in taking_part:
            progress(f'{candidate.name}: {step}, memory')
            candidate.measure_memory(step)


def ratio(baseline: list[float], other: list[float]) -> tuple[float, float, float]:
    """How many times faster than the baseline: the median of the rounds' ratios, and their quartiles."""
    ratios = [a / b for a, b in zip(baseline, other, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method='inclusive') if len(ratios) > 1 else ratios * 3
    return middle, low, high
