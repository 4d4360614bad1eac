"""Where each figure of the table of hardware was read.

A figure is either read in its maker's own text, in a transcription of it that names it, or not at all;
``UNREAD`` says the last openly. Figures that were read and disagree with the table have been corrected in it.
"""

from collections.abc import Mapping

FIGURES = ("peak", "bandwidth", "memory", "link", "network", "power")
UNREAD = "not read: written from memory of the data sheet"
NONE = "has none"

_VOLTA = "NVIDIA A100 white paper's table that compares V100 and A100, in a transcription"
_A100 = "NVIDIA A100 data sheet (1758950), in transcriptions at glennklockwood.com and upb-pc2.atlassian.net"
_H100 = "NVIDIA H100 white paper, as transcribed at glennklockwood.com/garden/processors/h100"
_LIGHTNING = "NVIDIA's data sheet as cited in Lightning's table of peaks (fabric/utilities/throughput.py)"
_TITAN = "NVIDIA's product page as cited in torchtitan's table of peaks (tools/utils.py)"
_BOOK = "How to scale your model, parts 2 and 12 (jax-ml/scaling-book)"
_MLPERF = "system description in MLPerf inference results, v4.1 (H200) and v6.1 (GB200)"
_BLACKWELL = "NVIDIA's Blackwell brief, as transcribed at glennklockwood.com/garden/processors/B200"
_ADA = "NVIDIA Ada white paper v2.1, appendix A, in two transcriptions"
_AMPERE = "NVIDIA GA102 white paper, appendix A, table 9, in a transcription"
_RTX = "NVIDIA RTX Blackwell white paper, in transcriptions of its figures"
_MI300X = "AMD's data sheet, in transcriptions of its figures"
_V5P = "docs.cloud.google.com/tpu/docs/v5p"
_V6E = "docs.cloud.google.com/tpu/docs/v6e, which compares v5e and v6e"
_V4 = "Google's TPU v4 page, as transcribed at glennklockwood.com/garden/tpuv4"


def _read(**where: str) -> Mapping[str, str]:
    return {figure: where.get(figure, UNREAD) for figure in FIGURES}


SOURCES: dict[str, Mapping[str, str]] = {
    "v100": _read(peak=_VOLTA, bandwidth=_VOLTA, memory=_VOLTA),
    "v100-16gb": _read(peak=_VOLTA, bandwidth=_VOLTA, memory=_VOLTA),
    "t4": _read(
        peak=_LIGHTNING,
        bandwidth="sysrqmts.com",
        memory="sysrqmts.com",
        power="sysrqmts.com",
        network=NONE,
    ),
    "a100-40gb": _read(peak=_A100, bandwidth=_A100, memory=_A100, link=_A100, power=_A100),
    "a100-80gb": _read(peak=_A100, bandwidth=_A100, memory=_A100, link=_A100, power=_A100),
    "a100-pcie-80gb": _read(
        peak=_LIGHTNING,
        bandwidth="thundercompute.com, A100 specifications",
        memory="thundercompute.com, A100 specifications",
        link=_A100,
        power="thundercompute.com, A100 specifications",
    ),
    "h100": _read(peak=_H100, bandwidth=_H100, memory=_H100, link=_H100, power=_H100, network=_MLPERF),
    "h100-pcie": _read(
        peak=f"{_LIGHTNING}; fp32 and tf32 from memory",
        bandwidth="NVIDIA H100 PCIe product brief PB-11133-001, at manuals.plus",
        memory=_H100,
        link=_H100,
        power="NVIDIA H100 PCIe product brief PB-11133-001, at manuals.plus",
    ),
    "h800": _read(peak=_H100, bandwidth=_H100, memory=_H100, power=_H100),
    "h200": _read(
        peak=f"{_H100}; {_TITAN}",
        bandwidth=_BOOK,
        memory=_MLPERF,
        link=_MLPERF,
        power=_MLPERF,
        network=_MLPERF,
    ),
    "b200": _read(
        peak=f"{_BLACKWELL} (bf16, fp16, fp8, int8); {_TITAN}; fp32 and tf32 from memory",
        bandwidth=f"{_BLACKWELL}; drivers report 7.67 TB/s (pytorch/ao pull request 4002)",
        memory="HBM of 8 GPUs of a DGX B200, 1,440 GB, in a data set of questions about it",
        link=_BLACKWELL,
        power=_BLACKWELL,
    ),
    "gb200": _read(
        peak=f"{_BLACKWELL}; fp32 from memory",
        bandwidth=_BLACKWELL,
        memory=_MLPERF,
        link=_BLACKWELL,
        power=_BLACKWELL,
    ),
    "l4": _read(
        peak="grokipedia.com, L4 and L40S (fp16, fp8, int8); store.sourcecode.com (tf32); fpsbench.com",
        bandwidth="store.sourcecode.com",
        memory="store.sourcecode.com",
        link="fpsbench.com: PCIe 4.0 x16",
        power="fpsbench.com",
        network=NONE,
    ),
    "l40s": _read(
        peak=f"{_TITAN} (bf16); store.sourcecode.com (tf32, int8); grokipedia.com (fp8, fp32)",
        bandwidth="store.sourcecode.com",
        memory="store.sourcecode.com",
        link="store.sourcecode.com: PCIe 4.0 x16",
        power="grokipedia.com, L4 and L40S",
        network=NONE,
    ),
    "a10": _read(peak=f"{_LIGHTNING} (bf16, fp16, fp32); the others from memory", network=NONE),
    "rtx-3090": _read(peak=f"{_AMPERE} (fp16, int8); the others from memory", network=NONE),
    "rtx-4090": _read(
        peak=f"{_ADA} (bf16, fp16, fp8, int8); the others from memory",
        bandwidth="thefpsreview.com",
        memory="thefpsreview.com",
        power="thefpsreview.com",
        network=NONE,
    ),
    "rtx-5090": _read(
        peak=f"{_RTX} (bf16, fp16, fp8); the others from memory",
        bandwidth=_RTX,
        memory=_RTX,
        network=NONE,
    ),
    "mi300x": _read(
        peak=f"{_MI300X} (bf16, fp16, fp8, fp32); the others from memory",
        bandwidth=_MI300X,
        memory=_MI300X,
        link="gpu.blog and emergentmind.com: seven links of 128 GB/s both ways, 896 together",
        power=_MI300X,
    ),
    "tpu-v4": _read(peak=f"{_V4}; {_BOOK}", bandwidth=_V4, memory=_V4, link=_BOOK, network=_BOOK, power=_V4),
    "tpu-v5e": _read(
        peak=f"{_V6E}; {_BOOK}",
        bandwidth=f"{_V6E}: 819 in its earlier version, 800 in a later one",
        memory=_V6E,
        link=_V6E,
        network=_V6E,
        power=NONE,
    ),
    "tpu-v5p": _read(
        peak=f"{_V5P} (bf16); int8 {_BOOK}", bandwidth=_V5P, memory=_V5P, link=_V5P, network=_V5P, power=NONE
    ),
    "tpu-v6e": _read(
        peak=_V6E,
        bandwidth=f"{_V6E}: 1640 in its earlier version, 1600 in a later one",
        memory=_V6E,
        link=_V6E,
        network=_V6E,
        power=NONE,
    ),
    "apple-m1": _read(link=NONE, network=NONE, power=NONE),
    "apple-m2": _read(link=NONE, network=NONE, power=NONE),
    "apple-m1-ultra": _read(link=NONE, network=NONE, power=NONE),
    "apple-m4-max": _read(peak=NONE, link=NONE, network=NONE, power=NONE),
}
