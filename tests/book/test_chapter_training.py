"""Chapter 3's claims can fail: break the idea, and the chapter's last cell says so."""

import copy
import re
from collections.abc import Callable

import nbformat
import pytest

from lmlib.book import settings

# What every experiment of the chapter builds on: its data, its models, its loop.
BASIS = ("parameters", "VOCABULARY, CONTEXT = ", "def make(", "def train(")


def record_with(change: str) -> str:
    """Code after which ``record`` gives records in which each label has the samples of ``change``."""
    return (
        "from dataclasses import replace as changed\n"
        "_read = record\n"
        "def record(*place):\n"
        "    made = _read(*place)\n"
        "    samples = dict(made.samples)\n"
        "    for label in samples:\n"
        f"        samples[label] = {change}\n"
        "    return changed(made, samples=samples)"
    )


# What is broken, put behind the loop; cells that are run after it; and the claim that must notice.
BROKEN = {
    "a head with too large weights": (
        "_Config = ModelConfig\n"
        "ModelConfig = lambda head_init_scale=1, **o: _Config(head_init_scale=2 * head_init_scale, **o)",
        ("firsts = {",),
        "training/first-loss-excess",
    ),
    "Newton's iteration that is not run": (
        "from lmlib.training import muon\nmuon.orthogonalize = lambda matrices, *options: matrices",
        ("import orthogonalize",),
        "training/muon-levels",
    ),
    "a schedule that never decays": (
        "from lmlib.training import schedules as theirs\n"
        "theirs._FUNCTIONS['wsd'] = lambda step, peak, warmup=0, **rest: theirs.constant(\n"
        "    step, peak=peak, warmup=warmup)",
        ("schedules = {kind:", "by_schedule = {}"),
        "training/decay-pays",
    ),
    "bf16 with the fraction of fp32": (
        "torch.Tensor.bfloat16 = torch.Tensor.float\ntorch.nn.Module.bfloat16 = torch.nn.Module.float",
        ("def unmoved(",),
        "training/bf16-updates-lost",
    ),
    "bf16 whose grid the masters of rounded weights are not caught on": (
        "torch.Tensor.bfloat16 = torch.Tensor.float",
        ("def arrived(",),
        "training/master-rounded",
    ),
    "an optimizer whose rate is a thousandth": (
        "_build = OptimizerSettings.build\n"
        "def build(*arguments, **options):\n"
        "    optimizer = _build(*arguments, **options)\n"
        "    step = optimizer.step\n"
        "    def slow():\n"
        "        for group in optimizer.param_groups:\n"
        "            group['lr'] *= 0.001\n"
        "        step()\n"
        "        for group in optimizer.param_groups:\n"
        "            group['lr'] *= 1000\n"
        "    optimizer.step = slow\n"
        "    return optimizer\n"
        "OptimizerSettings.build = build",
        ("memorised = {}",),
        "training/overfits",
    ),
    "a loss that is divided by eight": (
        "_loss_of = loss_of\ndef loss_of(*arguments):\n    return _loss_of(*arguments) / 8",
        ("def sharpness(", "def descend("),
        "training/edge-of-stability",
    ),
    "muP without its rates": (
        "from lmlib.training import mup as theirs\n"
        "_groups = theirs.groups\n"
        "theirs.groups = lambda *given: [{**group, 'lr_scale': 1.0} for group in _groups(*given)]",
        ("BASE, WIDE = ",),
        "training/mup-cost",
    ),
    "a model that was never trained": (
        "STEPS, model = 320, make(64)\nsnapshots = {0: model.state_dict()}",
        ("def noise_scale(", "TARGET = 3.3"),
        "training/noise-scale-grows",
    ),
    "micro-batches that are averaged": (
        "class LossModule(LossModule):\n"
        "    def forward(self, tokens, targets):\n"
        "        total, auxiliary = super().forward(tokens, targets)\n"
        "        return total / (targets != -100).sum(), auxiliary",
        ("def gradient(batch, pieces",),
        "training/accumulation-equal",
    ),
    "warm-up that is at the peak from the start": (
        "from lmlib.training import schedules as theirs\n"
        "theirs._FUNCTIONS['constant'] = lambda step, peak, **rest: peak",
        ("starts_of = {",),
        "training/warm-up",
    ),
    "eight bits without a scale": (
        "from lmlib.training import fp8\nfp8.best_scale = lambda x, dtype=None: torch.ones(())",
        ("def train_8_bits(",),
        "training/fp8-trains",
    ),
    "a scale that is too small": (
        "from lmlib.training import fp8\n"
        "_right = fp8.best_scale\n"
        "fp8.best_scale = lambda x, dtype: _right(x, dtype) / 16",
        ("from lmlib.resources.formats import", "def catch("),
        "training/fp8-error",
    ),
    "a cast that reads the tensor once more": (
        "from lmlib.training import fp8\n"
        "_once = fp8.quantize\n"
        "fp8.quantize = lambda x, *how: _once(x.clone(), *how)",
        ("class Passes(", "def show_eight_bits("),
        "training/fp8-passes",
    ),
    "a record in which scaling and casting cost nothing": (
        record_with("samples[label.removesuffix(', scaling and casting counted')]"),
        ("class Passes(", "def show_eight_bits("),
        "training/fp8-passes-cost",
    ),
    "a trainer with another weight decay": (
        "from functools import partial\n"
        "from lmlib.training import bench\n"
        "bench.OptimizerSettings = partial(OptimizerSettings, weight_decay=0.5)",
        ("tiny = replace(",),
        "training/same-program",
    ),
    "a corpus that is never read twice": (
        "TokenData.from_array = lambda *arguments: train_data",
        ("EPOCH_STEPS = 150",),
        "training/memorises",
    ),
    "a record in which RoPE bought nothing": (
        record_with("samples[label.replace('RoPE', 'SwiGLU')]"),
        ("climb = record(",),
        "training/ladder-largest",
    ),
    "a preset with twice the batch": (
        "from lmlib.training import config as theirs\n"
        "_given = theirs.read\n"
        "theirs.read = lambda source: _given(source, ['trainer.batch_size=8'])",
        ("micro = read(",),
        "training/micro-preset",
    ),
}


def _experiment(
    notebook: nbformat.NotebookNode, change: str, cells: tuple[str, ...], claim: str
) -> nbformat.NotebookNode:
    """The chapter's basis, the change, the cells of one experiment with its claims, and the check."""
    short = copy.deepcopy(notebook)
    code = [cell for cell in short.cells if cell.cell_type == "code"]
    place = {"parameters": next(c for c in code if "parameters" in c.metadata.get("tags", []))}

    def find(text: str) -> nbformat.NotebookNode:
        return place.get(text) or next(cell for cell in code if text in cell.source)

    imports = next(cell for cell in code if "from lmlib.book import" in cell.source)
    basis = [find(BASIS[0]), imports, *map(find, BASIS[1:])]
    chosen = [find(text) for text in cells]
    claims = find(f'"{claim}"')
    if claims not in chosen:
        chosen.append(claims)
    short.cells = [*basis, nbformat.v4.new_code_cell(change), *chosen, code[-1]]
    return short


@pytest.mark.notebook
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_idea_fails_its_claim(case: str, fails_its_claim: Callable) -> None:
    change, cells, claim = BROKEN[case]
    chapter = nbformat.read(settings.root() / "chapters/03_training.ipynb", as_version=4)
    fails_its_claim(_experiment(chapter, change, cells, claim), claim)


@pytest.mark.notebook
def test_without_a_record_of_eight_bits_the_text_says_so(run_notebook: Callable) -> None:
    chapter = nbformat.read(settings.root() / "chapters/03_training.ipynb", as_version=4)
    cells = ("class Passes(", "def show_eight_bits(")
    notebook = _experiment(chapter, "RESULTS = Path('none here')", cells, "training/fp8-passes")
    run_notebook(notebook)
    *_, values, _ = notebook.cells
    glued = {
        output.metadata.scrapbook.name: output.data["application/papermill.record/text/html"]
        for output in values.outputs
        if "scrapbook" in output.metadata
    }
    text = next(
        cell.source
        for cell in chapter.cells
        if "fp8-alone-large" in cell.source and cell.cell_type == "markdown"
    )
    used = set(re.findall(r"`(fp8-[a-z-]+)`", text))
    assert used <= set(glued)
    assert glued["fp8-alone-large"] == "(no record)"
