"""What an implementation does: the choices, beside the model's sizes, that decide how many bytes it keeps.

Two programs for the same model can differ by a factor of three in activations, so nothing here is guessed
from the model; every choice is an argument, and the page says which one is assumed.
"""

from dataclasses import dataclass

from lmlib.resources.model import Attention, LatentAttention
from lmlib.resources.units import ArgumentError, check_bool, check_choice, check_integer

PRECISIONS = ("bf16", "fp16", "fp32", "autocast")
NORM_KERNELS = ("fused", "manual", "composite")
ATTENTION_KERNELS = ("flash", "math", "eager")
LOSSES = ("fp32_ce", "chunked", "fused")
RECOMPUTE = ("none", "core", "core_act", "full")
DEVICES = ("cpu", "cuda")

# cuBLAS keeps a workspace per handle and stream, taken from PyTorch's allocator; on Hopper it is 32 MiB
# (aten/src/ATen/cuda/CUDABlas.cpp, getChosenWorkspaceSize). Forward and backward run in different threads,
# each with its own handle.
HOPPER_WORKSPACES = 2 * 32 * 2**20


@dataclass(frozen=True)
class Profile:
    """How a model is trained.

    Args:
        precision: ``bf16``, ``fp16``, ``fp32``: parameters and activations in that type; ``autocast``:
            parameters and residual stream in fp32, matrix products in bf16 (``torch.autocast``), for
            which every linear layer casts its input and, once a step, its weight.
        norm: ``fused``: one kernel keeps its input and 4 bytes a token; ``manual``: the norm written out
            in fp32, as in Hugging Face models; ``composite``: ``F.rms_norm`` where PyTorch has no kernel
            for it (CPU). A LayerNorm is always PyTorch's own kernel.
        attention: ``flash`` keeps queries, keys, values, output and 4 bytes a token and head (Dao et al.
            2022, arXiv:2205.14135); ``math``: PyTorch's reference, in fp32; ``eager``: written out with
            the probabilities in fp32, as in Hugging Face models.
        loss: ``fp32_ce``: logits cast to fp32, then ``F.cross_entropy``; ``chunked``: head and loss of
            one chunk of tokens at a time, recomputed in the backward pass; ``fused``: one kernel that
            writes the gradient over the logits (Hsu et al. 2024, arXiv:2410.10989, section 3.2).
        loss_chunks: number of chunks for ``chunked``.
        holds_logits: whether Python still refers to the logits during the backward pass.
        dropout: whether embedding, attention and feed-forward outputs pass through dropout, and with
            ``eager`` attention its probabilities.
        recompute: ``none``; ``core``: attention without its projections is computed again in the
            backward pass; ``core_act``: that, and the activation of the feed-forward block; ``full``:
            every layer, of which only the input is kept (Korthikanti et al. 2022, arXiv:2205.05198).
            ``torch.utils.checkpoint`` with ``use_reentrant=False`` is meant. Under ``autocast`` a
            ``manual`` norm of queries and keys hands them on in fp32, and ``core`` and ``core_act`` keep
            them so; elsewhere only the 16-bit copies that the products read are kept.
        device: ``cuda`` has one-byte dropout masks, statistics of LayerNorm in fp32, the scratch space of
            its kernels, and PyTorch's caching allocator: every request is rounded up to 512 bytes. What is
            not modelled is the rest of up to 1 MiB that it leaves on a block instead of splitting it off;
            on an H200 that was at most 0.8 % of the peak (`book/results/h200/memory.json`), for small models.
        workspace_bytes: scratch that libraries keep for good on ``cuda``.

    Raises:
        ArgumentError: for a choice that does not exist; its ``field`` names the argument.
    """

    precision: str = "bf16"
    norm: str = "fused"
    attention: str = "flash"
    loss: str = "fp32_ce"
    loss_chunks: int = 8
    holds_logits: bool = False
    dropout: bool = False
    recompute: str = "none"
    device: str = "cuda"
    workspace_bytes: int = HOPPER_WORKSPACES

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("norm", self.norm, NORM_KERNELS)
        check_choice("attention", self.attention, ATTENTION_KERNELS)
        check_choice("loss", self.loss, LOSSES)
        check_choice("recompute", self.recompute, RECOMPUTE)
        check_choice("device", self.device, DEVICES)
        check_bool("holds_logits", self.holds_logits)
        check_bool("dropout", self.dropout)
        check_integer("loss_chunks", self.loss_chunks, 1, 4096)
        check_integer("workspace_bytes", self.workspace_bytes, 0, 2**40)

    @property
    def autocast(self) -> bool:
        """Whether matrix products run in a narrower type than the parameters have."""
        return self.precision == "autocast"

    @property
    def parameter_bytes(self) -> int:
        """Bytes of one parameter."""
        return 2 if self.precision in ("bf16", "fp16") else 4

    @property
    def stream_bytes(self) -> int:
        """Bytes of one value of the residual stream."""
        return self.parameter_bytes

    @property
    def compute_bytes(self) -> int:
        """Bytes of one value that enters a matrix product."""
        return 4 if self.precision == "fp32" else 2

    def mask_bytes(self, value_bytes: int) -> int:
        """Bytes of a dropout mask's element: CUDA's kernel keeps a byte, CPU a value."""
        return 1 if self.device == "cuda" else value_bytes

    def check(self, attention: Attention | LatentAttention) -> None:
        """Refuse attention that this profile cannot run."""
        if self.dropout and self.attention == "math":
            raise ArgumentError("attention", "math is modelled without dropout; choose eager or flash")
        if attention.kind == "mla" and self.attention != "flash":
            raise ArgumentError(
                "attention", f"latent attention is modelled with flash only, got {self.attention}"
            )
