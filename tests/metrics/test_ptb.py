import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lora_dist.errors import UserError
from lora_dist.metrics import java, ptb

# The tokens of coco-caption's own wrapper.
EXAMPLES = {
    "The Eagle is a pub.": "the eagle is a pub",
    "It's open; isn't it?": "it 's open is n't it",
    '"Quoted" `this` (aside)': "quoted this -lrb- aside -rrb-",
    "£20-25, kid-friendly café": "# 20-25 kid-friendly café",
    "a ||| b": "a | | | b",
    "-- ... ; : ! ?": "",
    "": "",
    "   ": "",
    "1 1/2 miles": "1\u00a01/2 miles",
    "Tom & Jerry <b>": "tom & jerry <b>",
}


def test_tokens_equal_those_of_coco_caption() -> None:
    assert ptb.ptb_tokenize(list(EXAMPLES)) == list(EXAMPLES.values())


def test_no_texts_give_no_results() -> None:
    assert ptb.ptb_tokenize([]) == []


def test_line_breaks_in_texts_shift_no_row() -> None:
    breaks = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\n\n"]
    texts = [text for number, mark in enumerate(breaks) for text in (f"left{mark}right", f"row {number}", "", mark)]
    expected = [text for number in range(len(breaks)) for text in ("left right", f"row {number}", "", "")]
    assert ptb.ptb_tokenize(texts) == expected


def test_the_next_text_decides_whether_an_abbreviation_keeps_its_dot() -> None:
    # Therefore texts are tokenized neither one by one nor once per distinct text.
    assert ptb.ptb_tokenize(["<br> No.", "20 Inns"])[0] == "<br> no."
    assert ptb.ptb_tokenize(["<br> No.", "A pub"])[0] == "<br> no"


def test_tokens_depend_on_neither_locale_nor_concurrency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("LANG", "tr_TR.ISO-8859-9")
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ptb.ptb_tokenize, [["CAFÉ WITH ICE 中"]] * 2)) == [["café with ice 中"]] * 2


def test_the_jar_may_be_in_a_read_only_path_with_spaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jar = tmp_path / "read only" / "stanford.jar"
    jar.parent.mkdir()
    shutil.copy(java.find_jar("tokenizer/stanford-corenlp-3.4.1.jar"), jar)
    jar.parent.chmod(0o500)
    monkeypatch.setattr(ptb, "find_jar", lambda name: jar)
    assert ptb.ptb_tokenize(["A pub."]) == ["a pub"]
    assert [file.name for file in jar.parent.iterdir()] == ["stanford.jar"]
    jar.parent.chmod(0o700)


def test_a_lone_surrogate_is_an_error() -> None:
    with pytest.raises(UserError, match="surrogate"):
        ptb.ptb_tokenize(["a \ud800 b"])


def test_a_wrong_number_of_lines_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptb, "run_java", lambda arguments, stdin: "one\ntwo\nthree")
    with pytest.raises(UserError, match="3 lines for 2 texts"):
        ptb.ptb_tokenize(["one", "two three"])
