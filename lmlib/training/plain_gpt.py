"""The model that ours is timed against: GPT-2 as most people write it, one class a part, nothing clever.

fp32 parameters under bf16 autocast, PyTorch's attention, ``F.cross_entropy``, fused AdamW, ``torch.compile``
(the recipe of Karpathy's nanoGPT, https://github.com/karpathy/nanoGPT; written anew).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class PlainBlock(nn.Module):
    """Attention and feed-forward, each after a norm."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv, self.out = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.up, self.down = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(D, dim=2)
        q, k, v = (each.view(B, T, self.n_heads, D // self.n_heads).transpose(1, 2) for each in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).contiguous().view(B, T, D))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))  # GPT-2's own GELU


class PlainGPT(nn.Module):
    """GPT-2 with tied embeddings."""

    def __init__(
        self, vocab_size: int, context_length: int, d_model: int, n_layers: int, n_heads: int
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(context_length, d_model)
        self.blocks = nn.ModuleList(PlainBlock(d_model, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * n_layers) ** 0.5 if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


_NAMES = {
    "tokens.weight": "embedding.weight",
    "positions.weight": "positions.weight",
    "norm1": "attention_norm",
    "norm2": "mlp_norm",
    "qkv": "attention.qkv_proj",
    "out": "attention.o_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def renamed(plain: PlainGPT) -> dict[str, Tensor]:
    """The parameters under the names of ``TransformerLM``, so that both models can start alike."""
    found = {}
    for name, tensor in plain.state_dict().items():
        parts = [_NAMES.get(part, part) for part in name.split(".")]
        found[_NAMES.get(name, ".".join(parts))] = tensor.detach().clone()
    return found


class PlainTrainer:
    """One step at a time, as a training script does it.

    Args:
        autocast: whether products are bf16; otherwise all is fp32, to compare curves without rounding.
    """

    def __init__(
        self,
        model: PlainGPT,
        *,
        device: str,
        compiled: bool,
        lr: float,
        weight_decay: float = 0.1,
        autocast: bool = True,
    ) -> None:
        self.device, self.autocast = device, autocast
        self.model = model.to(device)
        matrices = [each for each in model.parameters() if each.ndim >= 2]
        vectors = [each for each in model.parameters() if each.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=device == "cuda")
        self.call = torch.compile(model) if compiled else model
        torch.set_float32_matmul_precision("high" if autocast else "highest")

    def step(self, tokens: Tensor, targets: Tensor, lr: float) -> Tensor:
        """Forward, backward, clip, update; gives the loss, for which nobody has waited."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.autocast):
            loss = self.call(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def run(self, batches: Iterable[tuple[Tensor, Tensor]], lr: float) -> Iterator[Tensor]:
        """The losses of steps over batches in pinned memory."""
        for tokens, targets in batches:
            on_device = (
                tokens.to(self.device, non_blocking=True),
                targets.to(self.device, non_blocking=True),
            )
            yield self.step(*on_device, lr)
