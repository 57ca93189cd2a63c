from typing import Any

import pytest

from lora_dist.data.e2e import Example
from lora_dist.data.tokens import REFERENCE_TOKEN, TokenizedExamples, encode_prompts, linearize, tokenize
from lora_dist.errors import UserError

EXAMPLES = [
    Example("name[The Eagle], food[French]", "The Eagle is French."),
    Example("name[Blue Spice], customer rating[5 out of 5]", "Blue Spice is rated 5 out of 5, at £20 in Café Rouge."),
    Example("name[The Eagle], food[French]", " The Eagle  serves French food. "),
    Example("name[X]", "X."),
]


@pytest.fixture
def examples(tokenizer: Any) -> TokenizedExamples:
    return tokenize(tokenizer, EXAMPLES, max_length=128)


def row(examples: TokenizedExamples, index: int) -> list[int]:
    found: list[int] = examples.ids[examples.starts[index] : examples.starts[index + 1]].tolist()
    return found


def test_an_example_is_mr_reference_token_reference_and_end_of_text(
    tokenizer: Any, examples: TokenizedExamples
) -> None:
    assert len(examples) == len(EXAMPLES)
    for index, example in enumerate(EXAMPLES):
        text = f"{example.mr} {REFERENCE_TOKEN} {example.reference.strip()}"
        assert row(examples, index) == [*tokenizer(text).input_ids, tokenizer.eos_token_id]
        tokens = tokenizer.convert_ids_to_tokens(row(examples, index))
        before, after = (tokens[tokens.index(REFERENCE_TOKEN) + shift] for shift in (-1, 1))
        assert before.endswith("]")  # the space between them is part of the reference token
        assert after.startswith("Ġ")


def test_the_prompt_of_decoding_is_what_training_puts_before_a_reference(
    tokenizer: Any, examples: TokenizedExamples
) -> None:
    prompts = encode_prompts(tokenizer, [example.mr for example in EXAMPLES])
    assert encode_prompts(tokenizer, []) == []
    for index, prompt in enumerate(prompts):
        assert row(examples, index)[: examples.prompt_lengths[index]] == prompt
        assert prompt[-1] == tokenizer.convert_tokens_to_ids(REFERENCE_TOKEN)


def test_lengths_and_label_counts_are_those_of_the_rows(examples: TokenizedExamples) -> None:
    lengths = [len(row(examples, index)) for index in range(len(EXAMPLES))]
    assert examples.lengths.tolist() == lengths
    assert (examples.label_counts + examples.prompt_lengths).tolist() == lengths
    assert examples.label_counts.min() >= 2  # X. and end-of-text


def test_the_longest_example_fits_exactly_and_one_token_less_is_refused(
    tokenizer: Any, examples: TokenizedExamples
) -> None:
    longest = int(examples.lengths.max())
    assert len(tokenize(tokenizer, EXAMPLES, longest)) == len(EXAMPLES)
    with pytest.raises(UserError, match=rf"has {longest} tokens, the model takes {longest - 1}: .*Blue Spice"):
        tokenize(tokenizer, EXAMPLES, longest - 1)


def test_examples_of_one_mr_have_one_number_and_others_another(examples: TokenizedExamples) -> None:
    assert examples.mrs.tolist() == [0, 1, 0, 2]


# The LoRA authors' form of an MR


@pytest.mark.parametrize(
    ("mr", "text"),
    [
        ("name[The Eagle], eatType[coffee shop]", "name : The Eagle | Type : coffee shop"),
        (
            "eatType[pub], priceRange[more than £30], customer rating[5 out of 5], near[Café Adriatic]",
            "Type : pub | price : more than £ 30 | customer rating : 5 out of 5 | near : Café Adriatic",
        ),
        (
            "food[Fast food], priceRange[£20-25], area[riverside], familyFriendly[no]",
            "food : Fast food | price : £ 20-25 | area : riverside | family friendly : no",
        ),
    ],
)
def test_an_mr_is_written_as_in_the_authors_copy_of_the_corpus(mr: str, text: str, tokenizer: Any) -> None:
    assert linearize(mr) == text
    (prompt,) = encode_prompts(tokenizer, [mr], "authors")
    assert prompt == tokenizer(f"{text} {REFERENCE_TOKEN}").input_ids
    found = tokenize(tokenizer, [Example(mr, "A pub.")], 128, "authors")
    assert found.ids[: found.prompt_lengths[0]].tolist() == prompt
    assert found.label_counts == tokenize(tokenizer, [Example(mr, "A pub.")], 128).label_counts


def test_a_text_that_is_no_mr_cannot_be_rewritten(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="is not a meaning representation"):
        encode_prompts(tokenizer, ["The Eagle"], "authors")
