"""What travels between the ranks in a step (the gradients of the adapter, once), and the module's mode in it."""

import json
import sys
from pathlib import Path

import pytest
import torch
from launching import ROOT, finish, start
from torch import Tensor, nn

from lora_dist.distributed.world import world
from lora_dist.training.strategy import TrainingStrategy

PROGRAM = """
import json, os, sys
from pathlib import Path
import torch
from torch.profiler import profile
from lora_dist.distributed.world import world
from lora_dist.training.strategy import TrainingStrategy

class Matrices(torch.nn.Module):  # what the strategy uses of model.flat_adapter.FlatAdapter
    def __init__(self):
        super().__init__()
        self.count = 1
        self.values = torch.nn.Parameter(torch.ones(2 * 8 * 64))

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(1000))  # as GPT-2's causal mask
        self.frozen = torch.nn.Parameter(torch.ones(64, 64), requires_grad=False)
        self.adapter = Matrices()

    def forward(self, x, scale):
        a, b = self.adapter.values.view(2, 8, 64)
        loss = (x @ (self.frozen + b.t() @ a)).square().mean()
        return loss * scale, loss.detach()[None]

with world("cpu") as here:
    model, x = Model(), torch.full((4, 64), 1.0 + int(os.environ["RANK"]))
    strategy = TrainingStrategy(here, model, model.adapter, weight_decay=0.0, micro_batch_size=4, max_grad_norm=1.0)
    found = []
    for _ in range(3):
        with profile(record_shapes=True) as profiler:
            for last in (False, True):
                strategy.backward(x, scale=0.5, last=last)
            strategy.step(1e-3)
        sent = [event for event in profiler.events() if event.name.startswith("gloo:")]
        found.append([[event.name, event.input_shapes] for event in sent])
    Path(sys.argv[1], os.environ["RANK"] + ".json").write_text(json.dumps(found))
"""


@pytest.mark.launched
def test_under_ddp_a_step_sends_the_gradients_of_the_adapter_once_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    result = finish(start([*torchrun, str(tmp_path / "program.py"), str(tmp_path)], PYTHONPATH=str(ROOT)))
    assert result.returncode == 0, result.stderr
    for rank in (0, 1):
        sent = json.loads((tmp_path / f"{rank}.json").read_text())
        gradients, layout = ["gloo:all_reduce", [[8 * 64 + 64 * 8]]], [["gloo:broadcast", [[n]]] for n in (2, 1)]
        # DDP agrees on the order of the parameters in the bucket, once, as the second step begins.
        assert sent == [[gradients], [*layout, gradients], [gradients]]


class Module(nn.Module):
    """A module whose loss is 1 in training mode, else 0."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.values = 1, nn.Parameter(torch.zeros(1))
        self.eval()

    def forward(self, *_: object) -> tuple[Tensor, Tensor]:
        loss = self.values.sum() + float(self.training)
        return loss, loss.detach().view(1)


class Engine:
    """As DeepSpeed's engine, whose own flag does not follow its module's."""

    training = True

    def __init__(self, module: Module) -> None:
        self.module, self.train, self.eval = module, module.train, module.eval

    def __call__(self, *arguments: object) -> tuple[Tensor, Tensor]:
        return self.module(*arguments)  # type: ignore[no-any-return]


@pytest.mark.parametrize("wrapped", [False, True])
def test_steps_train_also_after_an_evaluation(wrapped: bool) -> None:
    module = Module()
    with world("cpu") as here:
        common = {"weight_decay": 0.0, "micro_batch_size": 1, "max_grad_norm": None}
        strategy = TrainingStrategy(here, module, module, **common)  # type: ignore[arg-type]
        if wrapped:
            strategy._module = Engine(module)
        batch: object = None
        for _ in range(2):
            assert strategy.backward(batch, scale=1.0, last=True) == 1  # type: ignore[arg-type]
            assert strategy.evaluate(batch) == 0  # type: ignore[arg-type]
