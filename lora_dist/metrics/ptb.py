"""Penn Treebank tokenization as in coco-caption, the input of METEOR, ROUGE_L and CIDEr.

The Stanford tokenizer (CoreNLP 3.4.1, `-preserveLines -lowerCase`), then coco-caption's removal of punctuation tokens;
source: pycocoevalcap/tokenizer/ptbtokenizer.py, which the challenge's script uses.
"""

import re
from collections.abc import Sequence

from lora_dist.errors import UserError
from lora_dist.metrics.java import find_jar, run_java

_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
_MAIN = "edu.stanford.nlp.process.PTBTokenizer"
# The brackets are upper-case as in coco-caption and never match: the tokenizer prints "-lrb-".
_PUNCTUATION = frozenset(("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", *".?!,:-;", "--", "..."))
# Every character that the tokenizer or Python treats as a line break.
LINE_BREAKS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def ptb_tokenize(texts: Sequence[str]) -> list[str]:
    """Tokenize each text: tokens without punctuation, joined by single spaces, in the order of `texts`.

    All texts, repetitions included, go through one process in the given order. How the tokenizer reads an abbreviation
    at the end of a line depends on the next line: "No." keeps its dot before a blank line and loses it before
    "20 Inns".

    Raises:
        UserError: if Java fails, or a text cannot be encoded as UTF-8.
    """
    if not texts:
        return []
    stdin = "\n".join(LINE_BREAKS.sub(" ", text) for text in texts)
    try:
        stdout = run_java(["-cp", find_jar(_JAR), _MAIN, "-preserveLines", "-lowerCase"], stdin)
    except UnicodeEncodeError as error:
        raise UserError(f"a text has a lone surrogate ({error.reason}): write it as UTF-8") from error
    lines = stdout.split("\n")
    if len(lines) != len(texts):
        raise UserError(
            f"the tokenizer returned {len(lines)} lines for {len(texts)} texts: remove control characters from them"
        )
    return [" ".join(token for token in line.rstrip().split(" ") if token not in _PUNCTUATION) for line in lines]
