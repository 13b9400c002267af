"""Adapts schedulers of diffusers to the samplers of --mode=verify, which are run at given times.

python main.py --mode=verify --source=diffusers:DDIMScheduler
python -m examples.verify_diffusers

The first command prints the report on one scheduler. The second command prints the table of docs/bridge.md, which has
one line for each of SCHEDULERS. Both need `pip install -r requirements-diffusers.txt`. Neither uses JAX.
"""

import inspect
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch

from core import tables
from core.errors import UserError
from sampling.verification.flows import exact_end, predicted_x0, start
from sampling.verification.trial import Trial
from sampling.verification.verify import COUNT, LATE, grid, verify


class Scheduler(NamedTuple):
    """A row of SCHEDULERS: options besides COMMON, the claimed order, and whether the scheduler draws noise."""

    options: dict[str, Any] = {}  # noqa: RUF012, a NamedTuple's default is not shared by instances that change it
    order: int = 1
    stochastic: bool = False


# Options for a network that predicts the noise. A scheduler is given only the options that it knows.
COMMON = {
    "prediction_type": "epsilon",
    "clip_sample": False,
    "thresholding": False,
    "set_alpha_to_one": True,
    "final_sigmas_type": "zero",
}
SCHEDULERS = {
    "DDIMScheduler": Scheduler(),
    "DDPMScheduler": Scheduler(stochastic=True),
    "DEISMultistepScheduler": Scheduler({"solver_order": 3}, order=2),
    "DPMSolverMultistepScheduler-1": Scheduler({"solver_order": 1}),
    "DPMSolverMultistepScheduler": Scheduler({"solver_order": 2}, order=2),
    "DPMSolverMultistepScheduler-3": Scheduler({"solver_order": 3}, order=2),
    "DPMSolverSinglestepScheduler": Scheduler({"solver_order": 2, "lower_order_final": True}, order=2),
    "EulerAncestralDiscreteScheduler": Scheduler(stochastic=True),
    "EulerDiscreteScheduler": Scheduler(),
    "HeunDiscreteScheduler": Scheduler(order=2),
    "IPNDMScheduler": Scheduler(order=2),
    "KDPM2DiscreteScheduler": Scheduler(order=2),
    "LMSDiscreteScheduler": Scheduler(order=2),
    "PNDMScheduler": Scheduler({"skip_prk_steps": True}, order=2),
    "UniPCMultistepScheduler": Scheduler({"solver_order": 2}, order=2),
    "UniPCMultistepScheduler-3": Scheduler({"solver_order": 3}, order=2),
}


def sampler_of(name: str) -> Any:
    """Returns a sampler that uses a scheduler: one of SCHEDULERS, or any class of diffusers with the same interface.

    Raises UserError if diffusers has no such scheduler.
    """
    row = SCHEDULERS.get(name, Scheduler())
    scheduler_class = getattr(diffusers, name.partition("-")[0], None)
    if not hasattr(scheduler_class, "set_timesteps"):
        raise UserError(f"--source=diffusers:{name}: diffusers {diffusers.__version__} has no such scheduler")
    known = inspect.signature(scheduler_class.__init__).parameters
    options = {key: value for key, value in (COMMON | row.options).items() if key in known}

    def sampler(eps_fn: Any, alpha_bars: Any, start: torch.Tensor, times: Any) -> torch.Tensor:
        betas = 1 - alpha_bars / torch.cat([torch.ones(1), alpha_bars[:-1]])
        scheduler = scheduler_class(num_train_timesteps=len(betas), trained_betas=betas.numpy(), **options)
        ratios = ((1 - alpha_bars) / alpha_bars).sqrt()
        set_times(scheduler, times, sigmas=ratios[times])
        x = start.float()
        if scales_input(scheduler):
            x = x / alpha_bars[times[0]].sqrt().float()
        for t in scheduler.timesteps:
            eps = eps_fn(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(eps, t, x).prev_sample
        return x

    sampler.order, sampler.stochastic = row.order, row.stochastic
    return sampler


def takes_times(scheduler: Any) -> bool:
    """Whether set_timesteps of the scheduler has an argument `timesteps`."""
    return "timesteps" in inspect.signature(scheduler.set_timesteps).parameters


def scales_input(scheduler: Any) -> bool:
    """Whether the scheduler's state is x / signal = x_0 + sigma noise. If so, it scales the network's input."""
    return "sigma" in inspect.getsource(scheduler.scale_model_input)


def set_times(scheduler: Any, times: torch.Tensor, sigmas: torch.Tensor) -> None:
    """Sets the times with set_timesteps(timesteps=) if possible. Otherwise overwrites `timesteps` and any `sigmas`."""
    if takes_times(scheduler):
        scheduler.set_timesteps(timesteps=times.tolist())
        return
    scheduler.set_timesteps(len(times))
    scheduler.timesteps = times.to(scheduler.timesteps.dtype)
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = torch.cat([sigmas, scheduler.sigmas[-1:]]).float()


def error(sampler: Any, steps: int) -> str:
    """Returns the root mean square error of x_0 with equal steps from the late start of `verify`."""
    if sampler.stochastic:
        return "-"
    x0 = Trial(sampler).run(start(LATE, COUNT), grid(LATE, steps))
    return f"{np.sqrt(np.mean((x0 - predicted_x0(exact_end(LATE, COUNT), 0)) ** 2)):.2g}"


def main() -> None:
    """Prints the table of docs/bridge.md."""
    rows = []
    for name in SCHEDULERS:
        sampler = sampler_of(name)
        report = verify(sampler)
        takes = "timesteps" if takes_times(getattr(diffusers, name.partition("-")[0])) else "neither"
        failed = ", ".join(finding.check for finding in report.findings if finding.passed is False)
        rows.append(
            (name, takes, error(sampler, 4), error(sampler, 64), (report.fault or failed or "passed").split(" (")[0])
        )
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
    print(tables.aligned(("scheduler", "takes", "5 times", "65 times", "verify"), rows))


if __name__ == "__main__":
    main()
