"""Mixture of experts: a router, experts that see the tokens it sends them, and what keeps them busy."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmlib.architecture.config import ModelConfig
from lmlib.architecture.feed_forward import FeedForward, gating
from lmlib.architecture.norms import wide


class Router(nn.Module):
    """Which experts a token visits, and with what weights; computed in fp32.

    After a forward pass, ``loss`` is the weighted balance and z-loss, and ``load`` counts the tokens of each
    expert.
    """

    correction_bias: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.moe is not None
        self.moe = config.moe
        self.weight = nn.Parameter(torch.empty(self.moe.n_experts, config.d_model))
        bias = torch.zeros(self.moe.n_experts) if self.moe.balance == "bias" else None
        self.register_buffer("correction_bias", bias)
        self.loss: Tensor | None = None
        self.load: Tensor | None = None

    def forward(self, x: Float[Tensor, "N D"]) -> tuple[Float[Tensor, "N k"], Int[Tensor, "N k"]]:
        logits = self._logits(x)
        scores = logits.softmax(-1) if self.moe.score == "softmax" else logits.sigmoid()
        wanted = scores if self.correction_bias is None else scores + self.correction_bias
        chosen = wanted.topk(self.moe.top_k, -1).indices
        weights = scores.gather(-1, chosen)
        if self.moe.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        self.load = F.one_hot(chosen.detach(), self.moe.n_experts).sum((0, 1))
        self.loss = self._loss(logits, scores)
        return weights, chosen

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out the last pass's loss, which holds on to its graph."""
        return self.__dict__ | {"loss": None, "load": None}

    def _logits(self, x: Tensor) -> Tensor:
        if x.is_meta:  # where autocast is unknown, and nothing is computed
            return F.linear(wide(x), wide(self.weight))
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(wide(x), wide(self.weight))

    def _loss(self, logits: Tensor, scores: Tensor) -> Tensor:
        """Switch's balance loss and ST-MoE's z-loss, each with its weight."""
        loss = logits.new_zeros(())
        if self.moe.balance == "loss":
            assert self.load is not None
            share = self.load / self.load.sum()
            probability = (scores / scores.sum(-1, keepdim=True)).mean(0)
            loss = loss + self.moe.balance_weight * self.moe.n_experts * (share * probability).sum()
        if self.moe.z_weight:
            loss = loss + self.moe.z_weight * logits.logsumexp(-1).square().mean()
        return loss

    @torch.no_grad()
    def update_bias(self, rate: float) -> None:
        """Raise the bias of experts with less than the mean load, lower the others (arXiv:2408.15664)."""
        if self.correction_bias is not None and self.load is not None:
            load = self.load.to(self.correction_bias.dtype)
            self.correction_bias += rate * (load.mean() - load).sign()


class Experts(nn.Module):
    """Gated feed-forward blocks side by side, each with the tokens that were sent to it.

    Tokens are sorted by expert. In bf16, one grouped product then does all experts at once; in other types,
    which PyTorch's does not take, they go one by one, or under ``torch.compile``, which wants shapes that do
    not depend on data, every expert sees every token and most results are multiplied with zero.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.moe is not None
        E, D, d_ff = config.moe.n_experts, config.d_model, config.moe.d_ff
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * d_ff, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, d_ff))
        self.gate = gating(config)
        capable = not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 0)
        self.aligned = hasattr(F, "grouped_mm") and capable and D % 8 == d_ff % 8 == 0  # rows of 16 bytes

    def forward(
        self, x: Float[Tensor, "N D"], weights: Float[Tensor, "N k"], chosen: Int[Tensor, "N k"]
    ) -> Float[Tensor, "N D"]:
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        grouped = self.aligned and x.dtype == torch.bfloat16
        if (torch.compiler.is_compiling() or x.is_meta) and not grouped:
            return self._everywhere(x, weights, chosen)
        place = chosen.flatten().argsort(stable=True)  # of (token, choice), expert by expert
        token = place // chosen.shape[1]
        counts = F.one_hot(chosen.flatten(), len(self.gate_up_proj)).sum(0)
        out = (self._grouped if grouped else self._one_by_one)(x[token], counts)
        out = out * weights.flatten()[place, None].to(out.dtype)
        return torch.zeros_like(x).index_add(0, token, out)

    def _grouped(self, x: Tensor, counts: Tensor) -> Tensor:
        ends = counts.cumsum(0, dtype=torch.int32)
        gate_up, down = self.gate_up_proj.to(x.dtype), self.down_proj.to(x.dtype)
        gate, up = F.grouped_mm(x, gate_up.transpose(-2, -1), offs=ends).chunk(2, -1)
        return F.grouped_mm(self.gate(gate, up), down.transpose(-2, -1), offs=ends)

    def _one_by_one(self, x: Tensor, counts: Tensor) -> Tensor:
        parts = x.split(counts.tolist())
        return torch.cat([self._one(expert, part) for expert, part in enumerate(parts) if len(part)])

    def _one(self, expert: int, x: Tensor) -> Tensor:
        gate, up = F.linear(x, self.gate_up_proj[expert]).chunk(2, -1)
        return F.linear(self.gate(gate, up), self.down_proj[expert])

    def _everywhere(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        mix = x.new_zeros(len(x), len(self.gate_up_proj)).scatter(1, chosen, weights.to(x.dtype))
        out = torch.zeros_like(x)
        for expert in range(len(self.gate_up_proj)):
            out = out + self._one(expert, x) * mix[:, expert, None]
        return out


class MixtureOfExperts(nn.Module):
    """The block: routed experts, and shared ones beside them (DeepSeekMoE, arXiv:2401.06066)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.moe is not None
        self.router = Router(config)
        self.experts = Experts(config)
        shared = config.moe.n_shared * config.moe.d_ff
        self.shared = FeedForward(config.replace(bias=False), shared, gated=True) if shared else None

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        flat = x.flatten(0, 1)
        out = self.experts(flat, *self.router(flat)).view(x.shape)
        return out if self.shared is None else out + self.shared(x)
