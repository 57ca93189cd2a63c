"""The search over the whole test set, compared with transformers' `generate`."""

import shutil
from pathlib import Path

import pytest
import torch
from launching import lora_dist
from transformers import GPT2LMHeadModel

from lora_dist.config import DataSettings, DecodeSettings, ModelSettings
from lora_dist.data.e2e import group_by_mr, load_split
from lora_dist.data.tokens import encode_prompts
from lora_dist.decoding.beam_search import beam_search
from lora_dist.decoding.kv_cache import lay_out
from lora_dist.decoding.shard import chunks
from lora_dist.model.adapter import load_merged

CLOSE = 1e-5  # two sentences whose scores differ by less are equally good
SETTINGS = DecodeSettings(ngram_scope="all")


def score(model: GPT2LMHeadModel, prompt: list[int], sentence: list[int]) -> float:
    """The length-normalised log-probability of a sentence, from one forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + sentence])).logits[0, len(prompt) - 1 : -1]
    total = logits.double().log_softmax(-1).gather(-1, torch.tensor(sentence)[:, None]).sum()
    return float(total.item() / len(sentence) ** SETTINGS.length_penalty)


@pytest.mark.launched
@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.timeout(3600)
def test_every_sentence_of_the_test_set_is_that_of_generate(shared: Path, tmp_path: Path) -> None:
    base, corpus = shared / "mini-gpt2", tmp_path / "corpus"
    shutil.copytree(shared / "e2e", corpus)
    few = (corpus / "devset.csv").read_text(encoding="utf-8").splitlines(keepends=True)[:100]
    (corpus / "devset.csv").write_text("".join(few), encoding="utf-8")
    lora_dist(
        *("train", "improved", "--model.name", base, "--data.dir", corpus, "--data.limit-train", 2000),
        *("--train.epochs", 1, "--train.learning-rate", 2e-3, "--train.warmup-steps", 100, "--out", tmp_path / "run"),
    )
    (plain, tokenizer), (own, _) = (
        load_merged(ModelSettings(name=str(base)), tmp_path / "run" / "adapter") for _ in range(2)
    )
    model = lay_out(own)
    groups = group_by_mr(load_split(DataSettings(dir=shared / "e2e"), "test"))
    prompts, eos = encode_prompts(tokenizer, [group.mr for group in groups]), tokenizer.eos_token_id
    equal = 0
    for chunk in chunks([len(prompt) for prompt in prompts], 640, 2**14):
        for index, found in zip(chunk, beam_search(model, [prompts[i] for i in chunk], SETTINGS, eos), strict=True):
            theirs, ours = generate(plain, prompts[index], eos), found[0]
            expected = score(plain, prompts[index], theirs)
            assert ours.score == pytest.approx(expected, abs=1e-4)
            if ours.tokens == [token for token in theirs if token != eos]:
                equal += 1
            else:
                print(f"MR {index}: {ours.score:.7f} for {ours.tokens}, generate {expected:.7f} for {theirs}")
                assert ours.score == pytest.approx(expected, abs=CLOSE)
    print(f"{equal} of {len(groups)} sentences are the same tokens")


def generate(model: GPT2LMHeadModel, prompt: list[int], eos: int) -> list[int]:
    """transformers' sentence for one prompt, with its end-of-text."""
    ids = torch.tensor([prompt])
    row = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=SETTINGS.num_beams,
        length_penalty=SETTINGS.length_penalty,
        no_repeat_ngram_size=SETTINGS.no_repeat_ngram_size,
        early_stopping=True,
        max_new_tokens=SETTINGS.max_new_tokens,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=eos,
    )[0, len(prompt) :].tolist()
    sentence: list[int] = row[: row.index(eos) + 1] if eos in row else row
    return sentence
