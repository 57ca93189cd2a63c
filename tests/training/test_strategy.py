"""What travels between the ranks in a step: the gradients of the adapter, once."""

import json
import sys
from pathlib import Path

import pytest
from launching import ROOT, finish, start

pytestmark = pytest.mark.launched

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
