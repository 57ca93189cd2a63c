"""Penn Treebank tokenisation as coco-caption does it, before METEOR, ROUGE_L and CIDEr.

The Stanford tokenizer (CoreNLP 3.4.1, `-preserveLines -lowerCase`) and then coco-caption's list of punctuation
tokens to drop; source: pycocoevalcap/tokenizer/ptbtokenizer.py, which the challenge's script uses.
"""

import re
from collections.abc import Sequence

from lora_dist.errors import UserError
from lora_dist.metrics.java import find_jar, run_java

_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
_MAIN = "edu.stanford.nlp.process.PTBTokenizer"
# The brackets are in capitals as in coco-caption, so they match nothing: the tokenizer writes "-lrb-".
_PUNCTUATION = frozenset(("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", *".?!,:-;", "--", "..."))
# What the tokenizer or Python takes for the end of a line.
LINE_BREAKS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def tokenize(texts: Sequence[str]) -> list[str]:
    """Each text as its tokens without punctuation, joined by single spaces; one result a text, in order.

    All texts go through in one run and in the given order, repetitions too: how an abbreviation at the end of a line
    is read depends on the line after it ("No." keeps its dot before a blank line and loses it before "20 Inns").

    Raises:
        UserError: if Java fails, or a text cannot be written as UTF-8.
    """
    if not texts:
        return []
    lines = "\n".join(LINE_BREAKS.sub(" ", text) for text in texts)
    try:
        printed = run_java(["-cp", find_jar(_JAR), _MAIN, "-preserveLines", "-lowerCase"], lines)
    except UnicodeEncodeError as error:
        raise UserError(f"a text holds half of a surrogate pair ({error.reason}): write it as UTF-8") from error
    tokens = printed.split("\n")
    if len(tokens) != len(texts):
        raise UserError(f"the tokenizer made {len(tokens)} lines of {len(texts)} texts: look for control characters")
    return [" ".join(word for word in line.rstrip().split(" ") if word not in _PUNCTUATION) for line in tokens]
