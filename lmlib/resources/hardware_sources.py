"""Where each figure of the tables of hardware was read.

- A source names what was read and, in brackets, its key in ``book/references.bib``; a web address stands for
  itself. Where a maker's text was read only as others quote it, it says "as quoted".
- ``COMPUTED`` begins a figure that follows from others by the formula behind it.
- ``ASSUMED`` begins a figure that was read nowhere, with the reason why it is what it is. It is an input like
  any other: put in your own.
- Where two sources disagree, the source says so.
"""

from collections.abc import Mapping

NONE = "has none, or none is published"
ASSUMED = "assumed: "
COMPUTED = "computed: "
UNREAD = f"{ASSUMED}no source was read"
PLACES = ("bandwidth", "memory", "link", "node_size", "network", "power")  # beside the peak of each dtype

# What NVIDIA and AMD themselves state of the systems that they enter into MLPerf.
_MLPERF_V100 = "NVIDIA's DGX-1 in MLPerf training v0.7 [mlperf2020]"
_MLPERF_A100_40 = "NVIDIA's DGX A100 in MLPerf training v0.7 [mlperf2020]"
_MLPERF_A100_80 = "NVIDIA's DGX A100 in MLPerf training v1.0 [mlperf2021]"
_MLPERF_H200 = "NVIDIA's H200 system in MLPerf inference v4.1 [mlperf2024]"
_MLPERF_MI300X = "AMD's MI300X system in MLPerf inference v4.1 [mlperf2024]"
_MLPERF_B200 = "Nebius' B200 system in MLPerf inference v6.0 [mlperf2026]"
_MLPERF_GB200 = "Crusoe's GB200 system in MLPerf inference v6.1 [mlperf2026]"

_VOLTA = (
    "NVIDIA's white paper on A100, which compares V100, as quoted [ampere]; 0.89 TB/s measured [gpubenches]"
)

# Tables in programs that name NVIDIA's data sheets and divide by two where those count sparse products.
_COMPOSER = "NVIDIA's data sheet, as quoted in Composer's speed monitor [composer]"
_TORCHAO = "NVIDIA's data sheet or white paper, as quoted in torchao's table of devices [torchao]"
_INDUCTOR = "NVIDIA's data sheet, as quoted in PyTorch's table of devices [inductor]"
_LLMC = "NVIDIA's white paper on Ada, as quoted in llm.c's table [llmc]"
_LOCKWOOD = "NVIDIA's data sheet, as quoted in Lockwood's notes [lockwood]"

_BASEPOD = "8 cards of 400 Gb/s for 8 GPUs: NVIDIA DGX BasePOD, core components [basepod]"
_DGX1 = "4 cards of 100 Gb/s for 8 GPUs: NVIDIA's white paper on DGX-1, as quoted [dgx1]"
_THUNDER = "thundercompute.com/blog/nvidia-a100-specs-full-guide"
_BRIEF = "NVIDIA H100 PCIe product brief, PB-11133-001 [h100brief]"
_H800 = "NVIDIA's data sheet on H800, dense, as quoted [h800]"
_RESELLER = "a reseller's page on the H800, as quoted: qiangchuan.com/item/7228.html"
_HGX = "NVIDIA's page on HGX B200, an eighth of the board, dense, as quoted at fibermall.com [hgx]"
_TECHNICAL = "NVIDIA Blackwell Architecture Technical Brief v2.1, table 3, as quoted [blackwellbrief]"
_NVL72 = "NVIDIA's page on GB200 NVL72, a 72nd of the rack, dense, as quoted [gb200]"
_L40S = "NVIDIA's data sheet, as quoted at mullet.se, product 355414 [l40s]"
_GA102 = "NVIDIA's white paper on GA102, appendix A, as quoted [ga102]"
_BLACKWELL = "NVIDIA's white paper on RTX Blackwell, appendix A, as quoted [rtxblackwell]"
_CDNA3 = "AMD's page on MI300 [rocm]; 7 links of 128 GB/s both ways: its white paper, as quoted [cdna3]"
_ROCM = "AMD's page on the MI300's microarchitecture [rocm]"
_TPU = "Google's page on the chip [cloudtpu]"
_BOOK = "How to scale your model, part 2 [scalingbook]"
_PCIE = "half of what a slot carries both ways: 64 GB/s with PCIe 4.0 x16 [l40s]"
_PCIE_3 = f"{COMPUTED}half of PCIe 4.0, for the card's PCIe 3.0 x16: sysrqmts.com"
_PCIE_5 = f"{COMPUTED}twice PCIe 4.0, for the card's PCIe 5.0 x16"
_SERVER = f"{ASSUMED}a server of eight cards"
_CARDS = f"{ASSUMED}one network card a GPU, as in NVIDIA's systems of that year"
_MACRUMORS = "Apple's announcement, as reported at macrumors.com [apple]"


def _same(source: str, *figures: str) -> dict[str, str]:
    return dict.fromkeys(figures, source)


_PEAK_V100 = _same(_COMPOSER, "fp16", "fp32")
_PEAK_A100 = {**_same(_COMPOSER, "bf16", "fp16", "tf32", "fp32"), "int8": _INDUCTOR}
_PEAK_H100 = {**_same(_TORCHAO, "bf16", "fp16", "tf32", "fp32", "int8"), "fp8": _LOCKWOOD}
_NO_NETWORK = {"network": NONE}
_CARD = {"link": _PCIE, "node_size": _SERVER, **_NO_NETWORK}
_ALONE = _same(NONE, "link", "node_size", "network", "power")

SOURCES: dict[str, Mapping[str, str]] = {
    "v100": {
        **_PEAK_V100,
        "bandwidth": _VOLTA,
        "memory": "the name by which the GPU itself goes, V100-SXM2-32GB",
        "link": f"{_MLPERF_V100}, both directions added",
        "node_size": _MLPERF_V100,
        "network": _DGX1,
        "power": _MLPERF_V100,
    },
    "v100-16gb": {
        **_PEAK_V100,
        "bandwidth": _VOLTA,
        "memory": _MLPERF_V100,
        "link": f"{_MLPERF_V100}, both directions added",
        "node_size": _MLPERF_V100,
        "network": _DGX1,
        "power": _MLPERF_V100,
    },
    "t4": {
        **_same(_COMPOSER, "fp16", "fp32", "int8"),
        **_same("sysrqmts.com, Tesla T4", "bandwidth", "memory", "power"),
        "link": _PCIE_3,
        "node_size": NONE,
        "network": NONE,
    },
    "a100-40gb": {
        **_PEAK_A100,
        "bandwidth": _LOCKWOOD,
        **_same(_MLPERF_A100_40, "memory", "node_size", "network", "power"),
        "link": f"{_MLPERF_A100_40}, both directions added",
    },
    "a100-80gb": {
        **_PEAK_A100,
        "bandwidth": _INDUCTOR,
        **_same(_MLPERF_A100_80, "memory", "node_size", "network", "power"),
        "link": f"{_MLPERF_A100_80}, both directions added",
    },
    "a100-pcie-80gb": {
        **_PEAK_A100,
        **_same(_THUNDER, "bandwidth", "memory", "power"),
        "link": _LOCKWOOD,
        "node_size": _SERVER,
        "network": _CARDS,
    },
    "h100": {
        **_PEAK_H100,
        "bandwidth": _INDUCTOR,
        "memory": f"{_INDUCTOR}; CUDA reports 85.2 GB [mt4g]",
        "link": f"{_LOCKWOOD}, both directions added",
        "node_size": _BASEPOD,
        "network": _BASEPOD,
        "power": _LOCKWOOD,
    },
    "h100-pcie": {
        **_same(_TORCHAO, "bf16", "fp16", "tf32", "fp32", "int8"),
        "fp8": _COMPOSER,
        **_same(_BRIEF, "bandwidth", "power"),
        "memory": f"{ASSUMED}as the H100 SXM",
        "link": f"{_LOCKWOOD}, both directions added",
        "node_size": _SERVER,
        "network": _CARDS,
    },
    "h800": {
        **_same(_H800, "bf16", "fp16", "fp32", "fp8", "int8"),
        **_same(_RESELLER, "tf32", "bandwidth", "memory", "power"),
        "link": f"{_H800}: 400 GB/s, both directions added",
        "node_size": f"{ASSUMED}as NVIDIA's DGX H100",
        "network": f"{ASSUMED}as NVIDIA's DGX H100",
    },
    "h200": {
        **_same(_COMPOSER, "bf16", "fp16", "tf32", "fp32", "fp8", "int8"),
        "bandwidth": "How to scale your model, part 12 [scalingbook]",
        **_same(_MLPERF_H200, "memory", "node_size", "power"),
        "link": f"{_MLPERF_H200}, both directions added",
        "network": _BASEPOD,
    },
    "b200": {
        **_same(_HGX, "bf16", "fp16", "tf32", "fp32", "fp8", "int8"),
        "bandwidth": f"{_TECHNICAL}; drivers give 7.67 [torchao4002], its page on DGX B200 8",
        "memory": _MLPERF_B200,
        "link": f"{_MLPERF_B200}: 14.4 TB/s for 8 GPUs, both directions added",
        "node_size": _MLPERF_B200,
        "network": _BASEPOD,
        "power": _MLPERF_B200,
    },
    "gb200": {
        **_same(_NVL72, "bf16", "fp16", "tf32", "fp32", "fp8", "int8", "bandwidth", "node_size"),
        "memory": _MLPERF_GB200,
        "link": f"{_NVL72}, both directions added",
        "network": f"4 cards of ConnectX-7 for 4 GPUs: {_MLPERF_GB200}",
        "power": _LOCKWOOD,
    },
    "l4": {
        **_same(_TORCHAO, "bf16", "fp16", "tf32", "fp32"),
        **_same(f"{_INDUCTOR}: half of 485, which is with sparsity", "fp8", "int8"),
        **_same("store.sourcecode.com, L4", "bandwidth", "memory"),
        "power": "Grokipedia, L4 and L40S: grokipedia.com/page/NVIDIA_L4_vs_L40S",
        **_CARD,
    },
    "l40s": {
        **_same(_L40S, "bf16", "fp16", "tf32", "fp32", "fp8", "bandwidth", "memory", "power"),
        "int8": "store.sourcecode.com, L40S",
        **_CARD,
    },
    "a10": {
        **_same(_TORCHAO, "bf16", "fp16", "tf32", "fp32", "int8"),
        **_same("sysrqmts.com, A10 PCIe", "bandwidth", "memory"),
        "power": "gist.github.com/kimbochen, accelerators",
        **_CARD,
    },
    "rtx-3090": {
        **_same(_GA102, "bf16", "fp16"),
        **_same(_TORCHAO, "tf32", "fp32", "int8"),
        **_same(
            "Tom's Hardware's table, as quoted at holynerdvana.blogspot.com", "bandwidth", "memory", "power"
        ),
        **_CARD,
    },
    "rtx-4090": {
        **_same(_LLMC, "bf16", "fp16", "tf32", "fp8"),
        **_same(_TORCHAO, "fp32", "int8"),
        **_same(
            "Tom's Hardware's table, as quoted at holynerdvana.blogspot.com", "bandwidth", "memory", "power"
        ),
        **_CARD,
    },
    "rtx-5090": {
        **_same(_BLACKWELL, "bf16", "fp16", "fp8"),
        "tf32": f"{COMPUTED}half of bf16, as on the other GeForce cards",
        "fp32": f"{COMPUTED}21,760 cores, 2 FLOPs a cycle, 2.407 GHz: elprocus.com, RTX 5090",
        "int8": f"{COMPUTED}a quarter of the 3,352 TOPS that NVIDIA prints, in FP4 with sparsity",
        **_same("Linux Format, May 2025, at pocketmags.com", "bandwidth", "memory", "power"),
        "link": _PCIE_5,
        "node_size": _SERVER,
        **_NO_NETWORK,
    },
    "mi300x": {
        **_same(_ROCM, "bf16", "fp16", "tf32", "fp32", "fp8", "int8", "bandwidth", "node_size"),
        **_same(_MLPERF_MI300X, "memory", "power"),
        "link": _CDNA3,
        "network": "400 Gb/s a GPU: Microsoft Azure's machines ND MI300X v5 [azurend]",
    },
    "tpu-v4": {
        **_same(_TPU, "bf16", "int8", "bandwidth", "memory", "node_size"),
        "power": f"{_TPU}: the largest that was measured",
        **_same(_BOOK, "link", "network"),
    },
    "tpu-v5e": {
        **_same(_TPU, "bf16", "int8", "memory", "node_size", "network"),
        "bandwidth": f"{_TPU}: 819 in an earlier version, 800 in a later one",
        "link": f"{_TPU}, both directions added",
        "power": NONE,
    },
    "tpu-v5p": {
        **_same(_TPU, "bf16", "bandwidth", "memory", "node_size", "network"),
        "int8": _BOOK,
        "link": f"{_TPU}, both directions added",
        "power": NONE,
    },
    "tpu-v6e": {
        **_same(_TPU, "bf16", "int8", "memory", "node_size", "network"),
        "bandwidth": f"{_TPU}: 1640 in an earlier version, 1600 in a later one",
        "link": f"{_TPU}, both directions added",
        "power": NONE,
    },
    "apple-m1": {
        "fp32": _MACRUMORS,
        "bandwidth": f"{COMPUTED}128 bits of LPDDR4X at 4.266 GT/s",
        "memory": UNREAD,
        **_ALONE,
    },
    "apple-m2": {
        "fp32": f"{COMPUTED}10 cores of 128 lanes, 2 FLOPs a cycle, 1.398 GHz: waredb.com, as quoted",
        **_same(_MACRUMORS, "bandwidth", "memory"),
        **_ALONE,
    },
    "apple-m1-ultra": {
        "fp32": f"{COMPUTED}64 cores of 128 lanes, 2 FLOPs a cycle, 1.296 GHz: waredb.com, as quoted",
        **_same(_MACRUMORS, "bandwidth", "memory"),
        **_ALONE,
    },
    "apple-m4-max": {**_same(_MACRUMORS, "bandwidth", "memory"), **_ALONE},
}
