"""The adapter's model card, and the upload of both to the Hugging Face Hub."""

import json
import os
from typing import Any

from lora_dist.config import Settings
from lora_dist.config_io import as_options, command_line, from_json, read_config
from lora_dist.data.corpora import CLEANED, E2E
from lora_dist.data.tokens import linearize
from lora_dist.errors import UserError
from lora_dist.files import read_json, write_text
from lora_dist.metrics.suite import METRICS
from lora_dist.run_dir import RunDir

CARD_NAME = "README.md"


def write_card(run: RunDir) -> None:
    """Write the model card of a scored run to the folder of its adapter.

    Raises:
        UserError: if the run has no scores or no adapter.
    """
    scores = read_json(run.scores, f"{run.root} has no scores yet")
    config = read_config(run)
    if not run.adapter.is_dir():
        raise UserError(f"{run.adapter} is missing: train first")
    write_text(run.adapter / CARD_NAME, render_card(config, scores))


def render_card(config: dict[str, Any], scores: dict[str, Any]) -> str:
    """Render base model, data, settings, scores and their signature as Markdown with the Hub's YAML front matter.

    Args:
        config: Object of config.json.
        scores: Object of scores.json.
    """
    settings = from_json(Settings, config["settings"])
    options = as_options(settings, "lora", "train")
    option_rows = "".join(f"| {name[2:]} | {value} |\n" for name, value in options.items())
    score_rows = "".join(f"| {metric} | {scores[metric]:.4f} |\n" for metric in METRICS)
    signature = json.dumps(scores["signature"], indent=2, ensure_ascii=False)
    mr = "name[The Eagle], food[French]"
    prompt = mr if settings.data.linearization == "csv" else linearize(mr)
    trained_here = config["world"] is not None
    training = f"Trained by `lora-dist {command_line(settings)}`" if trained_here else "Trained elsewhere"
    corpus = scores["signature"].get("decode", {}).get("corpus", E2E.name)
    return f"""---
{_front_matter(settings, corpus)}---

# LoRA on {settings.model.name} for {"the E2E NLG Challenge" if corpus == E2E.name else corpus}

The model writes one sentence for a meaning representation. The prompt is `{prompt} <|ref|>`.
`<|ref|>` is a token added to GPT-2's vocabulary. Its frozen embedding is stored next to the adapter in
`reference_token.safetensors`. `lora-dist merge RUN OUT` writes a plain GPT-2 checkpoint that transformers loads.

## Scores on the test set

| metric | score |
|---|---|
{score_rows}
Scores are comparable only if their signatures are equal:

```json
{signature}
```

## Training

{training}. Trainable params: {config["counts"]["trainable"]:,}.

| setting | value |
|---|---|
{option_rows}"""


def _front_matter(settings: Settings, corpus: str) -> str:
    """Return the Hub's metadata of the model as YAML."""
    on_hub = not os.path.exists(settings.model.name)
    datasets = [each.hub for each in (E2E, CLEANED) if each.name == corpus]
    metadata: dict[str, Any] = {
        **({"base_model": settings.model.name} if on_hub else {}),
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "language": ["en"],
        **({"datasets": datasets} if datasets else {}),
        "tags": ["lora", "data-to-text", *(["e2e-nlg"] if datasets else [])],
    }
    # JSON is valid YAML, and its quotes keep a name with a colon a string.
    return "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in metadata.items())


def push(run: RunDir, repository: str) -> str:
    """Upload the run's adapter folder with its model card to a repository on the Hub; return a message for the user.

    Raises:
        UserError: if the Hub is unreachable or rejects the upload.
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
    except (HFValidationError, HTTPError, OSError) as error:  # OSError: HF_HUB_OFFLINE is set
        reason = " ".join(str(error).split())
        raise UserError(
            f"--push {repository} failed ({reason}): check the name, the network, and hf auth login"
        ) from None
    return f"adapter and model card in {url}"
