"""The adapter's model card, and the way of both to the Hugging Face hub."""

import json
import os
from typing import Any

from lora_dist.config import Settings
from lora_dist.config_io import as_options, command_line, from_json
from lora_dist.errors import UserError
from lora_dist.files import read_json, write_text
from lora_dist.metrics.suite import METRICS
from lora_dist.run_dir import RunDir

CARD = "README.md"


def write_card(run: RunDir) -> None:
    """Write the card of a scored run into its adapter's folder.

    Raises:
        UserError: if the run has no scores or no adapter.
    """
    scores = read_json(run.scores, f"{run.root} has no scores yet")
    config = read_json(run.config, f"{run.root} is not the folder of a run")
    if not run.adapter.is_dir():
        raise UserError(f"{run.adapter} is missing: train first")
    write_text(run.adapter / CARD, card(config, scores))


def card(config: dict[str, Any], scores: dict[str, Any]) -> str:
    """Base, data, recipe, scores and their signature, as Markdown with the hub's head of YAML.

    Args:
        config: of config.json.
        scores: of scores.json.
    """
    settings = from_json(Settings, config["settings"])
    on_hub = not os.path.exists(settings.model.name)
    head: dict[str, Any] = {
        **({"base_model": settings.model.name} if on_hub else {}),
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "language": ["en"],
        "datasets": ["tuetschek/e2e_nlg"],
        "tags": ["lora", "data-to-text", "e2e-nlg"],
    }
    # Each value in JSON, which is YAML as well, and keeps a name with a colon in it from being something else.
    yaml = "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in head.items())
    recipe = "".join(f"| {name[2:]} | {value} |\n" for name, value in as_options(settings, "lora", "train").items())
    measured = "".join(f"| {metric} | {scores[metric]:.4f} |\n" for metric in METRICS)
    signature = json.dumps(scores["signature"], indent=2, ensure_ascii=False)
    trained = f"Trained by `lora-dist {command_line(settings)}`" if config["world"] is not None else "Trained elsewhere"
    return f"""---
{yaml}---

# LoRA on {settings.model.name} for the E2E NLG Challenge

It writes a sentence for a meaning representation: the prompt is `name[The Eagle], food[French] <|ref|>`.
`<|ref|>` is a token added to GPT-2's vocabulary, whose frozen embedding lies beside the adapter in
`reference_token.safetensors`. `lora-dist merge RUN OUT` writes a plain GPT-2 that transformers loads.

## Scores on the test set

| metric | score |
|---|---|
{measured}
Scores compare only under the same signature:

```json
{signature}
```

## Recipe

{trained}: {config["counts"]["trainable"]:,} trained numbers.

| setting | value |
|---|---|
{recipe}"""


def push(run: RunDir, repository: str) -> str:
    """Upload the run's adapter folder, its card among it, to a repository of the hub; return what to tell the user.

    Raises:
        UserError: if the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    write_card(run)
    api = HfApi()
    try:
        url = api.create_repo(repository, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id, folder_path=run.adapter, commit_message="Adapter and model card from lora_dist"
        )
    except (HFValidationError, HTTPError, OSError) as error:  # OSError: it is told to be offline
        reason = " ".join(str(error).split())
        raise UserError(
            f"--push {repository} failed ({reason}): check the name, the network, and hf auth login"
        ) from None
    return f"adapter and model card in {url}"
