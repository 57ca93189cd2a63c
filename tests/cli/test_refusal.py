"""Arguments that are refused: one sentence that names flag, value and remedy, instead of a frame around a class."""

import pytest

from lora_dist.cli.main import main


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("train original --lora.rnk 4", "--lora.rnk is unknown: did you mean --lora.rank?"),
        ("train original --learning-rate 4", "--learning-rate is unknown: did you mean --train.learning-rate?"),
        ("train original --xx 3 --yy", "--xx, --yy are unknown"),
        ("train original --lora.rank 4 5", "5 is unknown"),
        ("train original --lora.init zero", "--lora.init is zero: choose from original, gaussian, kaiming"),
        ("score a b --mteval ruby", "--mteval is ruby: choose from perl, python"),
        ("train original --lora.rank x", "--lora.rank is x: give a whole number"),
        ("train original --lora.rank=x", "--lora.rank is x: give a whole number"),
        ("train original --lora.alpha x", "--lora.alpha is x: give a number"),
        ("train original --train.max-steps 1.5", "--train.max-steps is 1.5: give None or a whole number"),
        ("sweep improved --seeds 1 a", "--seeds is 1 a: give whole numbers"),
        ("verify --processes x", "--processes is x: give None or whole numbers"),
        ("train original --out", "--out has no value: give one after it"),
        ("merge", "merge needs RUN, OUT"),
        ("score", "score needs REFERENCES, OUTPUTS"),
    ],
)
def test_an_argument_that_cannot_be_parsed_is_one_sentence_with_the_help_to_read(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = " ".join(words.split()[: 2 if words.split()[0] in ("train", "sweep") else 1])
    assert main(words.split()) == 2
    assert capsys.readouterr() == ("", f"lora-dist: {sentence} (see lora-dist {name} --help)\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "train original --lora.dora",
            "--lora.targets is c_attn.q c_attn.v: must be whole layers, such as c_attn, with --lora.dora",
        ),
        (
            "train improved --lora.targets c_attn.q c_proj",
            "--lora.targets is c_attn.q c_proj: must be whole layers, such as c_attn, or only parts such as c_attn.q",
        ),
        ("sweep improved --seeds", "--seeds is empty: name at least one"),
        ("sweep improved --learning-rates 1e-4 -1", "--learning-rates is -1.0: must be >= 0"),
        ("sweep improved --label-smoothings 1", "--label-smoothings is 1.0: must be 0 <= p < 1"),
        ("reproduce --seeds -2", "--seeds is -2: must be >= 0"),
        ("decode run --decode.limit 0", "--decode.limit is 0: must be >= 1"),
        ("plan improved --memory -1", "--memory is -1.0: must be > 0 GiB"),
    ],
)
def test_settings_refuse_a_value_in_their_own_words_and_with_the_flag_that_was_typed(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    assert capsys.readouterr() == ("", f"lora-dist: {sentence}\n")
