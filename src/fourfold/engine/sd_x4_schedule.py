"""The sampler's arithmetic, folded into a few numbers a step on the host: the device sees multiplications only.

With ``x`` the latents, ``m`` the network's answer and ``prior`` the step's earlier estimate of the clean latents::

    clean  = clean_x * x + clean_m * m
    x_next = next_x * x + next_m * m + next_prior * prior

Source: diffusers ``DDIMScheduler.step`` with eta 0, and ``DPMSolverMultistepScheduler`` (dpmsolver++, order 2,
midpoint, last sigma 0), both with "leading" or any other spacing that the model's configuration names.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from fourfold.engine.base import Mode
from fourfold.errors import ModelUnavailableError

FAST_STEPS: Final = 25
"""Steps of the fast mode where none are asked for."""

_KNOWN_PREDICTIONS: Final = ("epsilon", "sample", "v_prediction")


@dataclass(frozen=True, slots=True)
class Step:
    """One denoising step."""

    timestep: int  #: what the network is told
    next_x: float
    next_m: float
    next_prior: float = 0.0
    clean_x: float = 0.0
    clean_m: float = 0.0


class Sampler:
    """Gives the steps of a job for one model's configuration. Its own diffusers schedulers are never stepped."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Read *config*, a scheduler_config.json. Raises: ModelUnavailableError if it is not a plain DDIM."""
        self._config = dict(config)
        name = self._config.get("_class_name")
        if name != "DDIMScheduler":
            raise ModelUnavailableError(f"the model's scheduler is {name}, only DDIMScheduler is known here")
        prediction = self._config.get("prediction_type", "epsilon")
        clips = self._config.get("clip_sample", True) or self._config.get("thresholding", False)
        if prediction not in _KNOWN_PREDICTIONS or clips:
            raise ModelUnavailableError(
                f"the model's scheduler has prediction_type {prediction!r} and clipping {'on' if clips else 'off'}; "
                f"known are {', '.join(_KNOWN_PREDICTIONS)} without clipping"
            )
        self._prediction = prediction
        self._kept = lru_cache(maxsize=64)(self._made)  # some ms each, while a GPU waits

    @cached_property
    def most_steps(self) -> int:
        """The largest step count: with more, or with "leading" spacing beyond its offset, timesteps would not exist."""
        config = DDIMScheduler.from_config(self._config).config
        offset: int = config.steps_offset if config.timestep_spacing == "leading" else 0
        return int(config.num_train_timesteps) - offset

    def steps(self, count: int, mode: Mode) -> tuple[Step, ...]:
        """Return the *count* steps, 1 to `most_steps`, first to last; the last one's x_next is the result."""
        return self._kept(count, mode)

    def _made(self, count: int, mode: Mode) -> tuple[Step, ...]:
        return self._ddim(count) if mode is Mode.EXACT else self._dpm(count)

    def _ddim(self, count: int) -> tuple[Step, ...]:
        scheduler = DDIMScheduler.from_config(self._config)
        scheduler.set_timesteps(count)
        alphas: list[float] = scheduler.alphas_cumprod.double().tolist()
        last = float(scheduler.final_alpha_cumprod)
        stride = scheduler.config.num_train_timesteps // count
        steps = []
        for timestep in scheduler.timesteps.tolist():
            earlier = timestep - stride
            after = alphas[earlier] if earlier >= 0 else last
            clean_x, clean_m, noise_x, noise_m = self._estimates(alphas[timestep])
            root, rest = math.sqrt(after), math.sqrt(1 - after)
            steps.append(Step(int(timestep), root * clean_x + rest * noise_x, root * clean_m + rest * noise_m))
        return tuple(steps)

    def _dpm(self, count: int) -> tuple[Step, ...]:
        scheduler = DPMSolverMultistepScheduler.from_config(self._config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # diffusers' way of asking torch for an array
            scheduler.set_timesteps(count)
        timesteps: Sequence[int] = scheduler.timesteps.tolist()
        sigmas: list[float] = scheduler.sigmas.double().tolist()
        steps = []
        for i, timestep in enumerate(timesteps):
            alpha, sigma = _split(sigmas[i])
            alpha_after, sigma_after = _split(sigmas[i + 1])
            clean_x, clean_m, _, _ = self._estimates(alpha**2)
            if sigmas[i + 1] == 0:  # the last step: first order, and all noise goes
                steps.append(Step(timestep, clean_x, clean_m))
                continue
            h = _log_snr(sigmas[i + 1]) - _log_snr(sigmas[i])
            gain = -alpha_after * math.expm1(-h)
            keep = sigma_after / sigma
            # Second order looks back once; diffusers lowers the order for the last of fewer than 15 steps only.
            back = 0.0 if i == 0 else gain / 2 * h / (_log_snr(sigmas[i]) - _log_snr(sigmas[i - 1]))
            now = gain + back
            steps.append(Step(timestep, keep + now * clean_x, now * clean_m, -back, clean_x, clean_m))
        return tuple(steps)

    def _estimates(self, alpha: float) -> tuple[float, float, float, float]:
        """Return the weights of x and m in the clean latents, then those in the noise. *alpha* is cumulative."""
        root, rest = math.sqrt(alpha), math.sqrt(1 - alpha)
        if self._prediction == "v_prediction":
            return root, -rest, rest, root
        if self._prediction == "epsilon":
            return 1 / root, -rest / root, 0.0, 1.0
        return 0.0, 1.0, 1 / rest, -root / rest


def _split(sigma: float) -> tuple[float, float]:
    """Return ``(alpha, sigma)`` of the variance-preserving process."""
    alpha = 1 / math.sqrt(sigma**2 + 1)
    return alpha, sigma * alpha


def _log_snr(sigma: float) -> float:
    """Return ``log(alpha) - log(sigma)``, which the ratio alone decides."""
    return -math.log(sigma)
