"""Adam over one flat vector that holds every parameter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from rlgym.agents.peers import ALONE, Peers

BETAS = (0.9, 0.999)
_FUSED = ("cpu", "cuda", "mps", "xpu")


@torch.no_grad()
def flatten(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Move parameters into one vector (P,), which is returned; they become views of it."""
    flat = torch.cat([parameter.reshape(-1) for parameter in parameters])
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part in zip(parameters, flat.split(sizes), strict=True):
        parameter.data = part.view(parameter.shape)
    return flat


class FlatAdam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980) with its clip, in a handful of operations.

    The parameters are moved into one vector and become views of it, and their `.grad` views of
    another, so norm, clip and update are one operation each however many layers there are. Build
    it after the module has reached its device.

    A step whose gradient is not finite changes nothing, without the host being asked.

    Args:
        parameters: what to optimise; all float32 on one device.
        learning_rate: initial step size.
        eps: Adam's epsilon.

    Attributes:
        flat: (P,) every parameter.
        grad: (P,) every gradient.
        exp_avg: (P,) first moments.
        exp_avg_sq: (P,) second moments.
        steps: () float32, steps taken (skipped ones do not count).
        learning_rate: () float32, a tensor so that it can change without the host.
        peers: processes whose mean gradient each step takes.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], learning_rate: float, eps: float = 1e-5
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.eps = eps
        self.peers: Peers = ALONE
        self.flat = flatten(self.parameters)
        self.grad = torch.zeros_like(self.flat)
        self.exp_avg = torch.zeros_like(self.flat)
        self.exp_avg_sq = torch.zeros_like(self.flat)
        device = self.flat.device
        self.steps = torch.zeros((), device=device)
        self.learning_rate = torch.full((), float(learning_rate), device=device)
        # numbers that are tensors already spare small operations half of their time
        self._one, self._inf = (torch.full((), x, device=device) for x in (1.0, torch.inf))
        self._ahead, self._held = torch.zeros((), device=device), torch.zeros((), device=device)
        begin = 0
        for parameter in self.parameters:
            end = begin + parameter.numel()
            parameter.grad = self.grad[begin:end].view(parameter.shape)
            begin = end

    def gather(self, grads: Sequence[Tensor]) -> None:
        """Take gradients that autograd gave, in the order of `parameters`."""
        torch.cat([grad.reshape(-1) for grad in grads], out=self.grad)

    def add(self, grads: Sequence[Tensor], weight: float) -> None:
        """Add gradients of another loss, times its weight."""
        self.grad.add_(torch.cat([grad.reshape(-1) for grad in grads]), alpha=weight)

    def forget(self) -> None:
        """Begin anew, with the parameters where they are: no moments, no steps."""
        for state in (self.exp_avg, self.exp_avg_sq, self.steps):
            state.zero_()

    def step(self, max_norm: float | None, hold: Tensor | None = None) -> Tensor:
        """Clip the gradient's global norm to `max_norm` and take one step.

        Args:
            max_norm: bound of the L2 norm; None leaves the gradient as it is.
            hold: () bool; True leaves everything as it is.

        Returns:
            () the norm before clipping.
        """
        if self.peers.size > 1:
            self.peers.mean(self.grad)
        norm = torch.linalg.vector_norm(self.grad)
        ahead = torch.lt(norm, self._inf, out=self._ahead)  # 1, or 0 for NaN too
        if hold is not None:
            ahead.mul_(hold.logical_not())
        self.steps.add_(ahead)
        shrink = None
        if max_norm is not None:
            shrink = norm.clamp(min=max_norm).mul_(1.0 / max_norm)
        if self.flat.device.type in _FUSED:
            self._fused(shrink, torch.sub(self._one, ahead, out=self._held))
        else:
            self._plain(shrink, ahead > 0)
        return norm

    def _fused(self, shrink: Tensor | None, found_inf: Tensor) -> None:
        torch._fused_adam_(  # pyright: ignore[reportPrivateImportUsage]
            [self.flat],
            [self.grad],
            [self.exp_avg],
            [self.exp_avg_sq],
            [],
            [self.steps],
            lr=self.learning_rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=0.0,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
            grad_scale=shrink,
            found_inf=found_inf,
        )

    def _plain(self, shrink: Tensor | None, ahead: Tensor) -> None:
        """Do the same in plain operations, for devices without the fused one."""
        beta1, beta2 = BETAS
        grad = self.grad if shrink is None else self.grad / shrink
        exp_avg = torch.lerp(self.exp_avg, grad, 1.0 - beta1)
        exp_avg_sq = self.exp_avg_sq * beta2 + grad * grad * (1.0 - beta2)
        steps = self.steps.clamp(min=1.0)
        root = (exp_avg_sq / (1.0 - beta2**steps)).sqrt() + self.eps
        step = self.learning_rate / (1.0 - beta1**steps)
        self.exp_avg.copy_(torch.where(ahead, exp_avg, self.exp_avg))
        self.exp_avg_sq.copy_(torch.where(ahead, exp_avg_sq, self.exp_avg_sq))
        self.flat.copy_(torch.where(ahead, self.flat - step * exp_avg / root, self.flat))

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, besides the parameters; copies."""
        return {name: getattr(self, name).clone() for name in _STATE}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        for name in _STATE:
            getattr(self, name).copy_(state[name])


_STATE = ("exp_avg", "exp_avg_sq", "steps", "learning_rate")
