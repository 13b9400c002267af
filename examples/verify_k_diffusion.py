"""Adapts samplers of k-diffusion to --mode=verify.

python main.py --mode=verify --source=k_diffusion:sample_heun

Needs `pip install k-diffusion` in addition to requirements-diffusers.txt. Tested with k-diffusion 0.1.1.post1.
"""

from typing import Any

import torch
from k_diffusion import sampling

from core.errors import UserError

# The claimed orders of convergence. Samplers without an entry claim order 1.
ORDERS = {"sample_heun": 2, "sample_dpm_2": 2, "sample_lms": 2, "sample_dpmpp_2m": 2}


def sampler_of(name: str) -> Any:
    """Adapts the sampler k_diffusion.sampling.NAME. Raises UserError if there is no such sampler."""
    function = getattr(sampling, name, None)
    if not name.startswith("sample_") or function is None:
        known = ", ".join(entry for entry in dir(sampling) if entry.startswith("sample_"))
        raise UserError(f"--source=k_diffusion:{name}: no such sampler; choose from {known}")

    def sampler(eps_fn: Any, sigmas: Any, start: torch.Tensor, times: Any) -> torch.Tensor:
        def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return x - sigma.reshape(-1, 1, 1, 1) * eps_fn(x, sigma)

        levels = torch.cat([sigmas[times], torch.zeros(1)])
        return function(denoise, start, levels, disable=True)

    sampler.order = ORDERS.get(name, 1)
    sampler.stochastic = "ancestral" in name or "sde" in name
    return sampler
