"""The adapter's model card, and its upload to a fake Hub."""

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from made_runs import made_run

from lora_dist.cli.main import main
from lora_dist.config import ModelSettings
from lora_dist.errors import UserError
from lora_dist.evaluation.model_card import push, write_card
from lora_dist.presets import IMPROVED


class FakeHub(ThreadingHTTPServer):
    """The part of the Hub's API that creating a repository and a commit needs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer({"url": f"{self.server.address}/me/adapter"})
        elif "/preupload/" in self.path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"{self.server.address}/me/adapter/commit/{'0' * 40}"
            self._answer({"commitUrl": address, "commitOid": "0" * 40})
        else:
            self._answer({})

    def _answer(self, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_the_card_has_base_model_data_settings_and_scores_with_their_signature(tmp_path: Path) -> None:
    settings = replace(IMPROVED, train=replace(IMPROVED.train, learning_rate=2e-3))
    run = made_run(tmp_path / "mine", settings)
    write_card(run)
    _, metadata, text = (run.adapter / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "base_model": "gpt2",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "language": ["en"],
        "datasets": ["tuetschek/e2e_nlg"],
        "tags": ["lora", "data-to-text", "e2e-nlg"],
    }
    assert "lora-dist run improved --model.name gpt2 --train.learning-rate 0.002" in text
    assert "| train.learning-rate | 0.002 |" in text
    assert "| BLEU | 0.7123 |" in text
    assert "Trainable params: 2,359,296." in text
    signature = text[text.index("```json\n") + 8 :]
    scores = json.loads(run.scores.read_text())
    assert json.loads(signature[: signature.index("```")]) == scores["signature"]


def test_a_base_model_in_a_local_folder_is_not_in_the_metadata(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    run = made_run(tmp_path / "mine", replace(IMPROVED, model=ModelSettings(name=str(tmp_path / "base"))))
    write_card(run)
    assert "base_model:" not in (run.adapter / "README.md").read_text()


def test_huggingface_hub_loads_the_card(tmp_path: Path) -> None:
    run = made_run(tmp_path / "mine")
    write_card(run)
    card = huggingface_hub.ModelCard.load(run.adapter / "README.md")
    assert card.data.base_model == "gpt2"


def use_hub(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go online with the Hub at `address`; huggingface_hub has read its settings from the environment at import."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_standin")


@pytest.mark.launched
def test_push_uploads_the_adapter_and_its_card(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run(tmp_path / "mine")
    use_hub(hub.address, monkeypatch)
    assert main(["report", str(run.root), "--push", "me/adapter"]) == 0
    assert "adapter and model card in" in capsys.readouterr().out
    assert [request["name"] for request in hub.created] == ["adapter"]
    assert hub.files == {path.name: path.read_bytes() for path in run.adapter.iterdir()}
    assert set(hub.files) == {"README.md", "adapter_model.safetensors"}


def test_an_unreachable_hub_is_reported_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run(tmp_path / "mine")
    use_hub("http://127.0.0.1:9", monkeypatch)
    assert main(["report", str(run.root), "--push", "me/adapter"]) == 2
    errors = capsys.readouterr().err
    assert "lora-dist: --push me/adapter failed" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("repository", ["no such//name", "me/adapter"])
def test_a_failing_push_is_reported_in_one_sentence(repository: str, tmp_path: Path) -> None:
    run = made_run(tmp_path / "mine")
    with pytest.raises(UserError, match=rf"--push {repository} failed .*: check the name"):
        push(run, repository)  # tests run offline
