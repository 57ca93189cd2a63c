import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lora_dist.errors import UserError
from lora_dist.metrics import java, ptb

# What the tokenizer of coco-caption makes of each text (its own wrapper gives the same).
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


def test_examples() -> None:
    assert ptb.tokenize(list(EXAMPLES)) == list(EXAMPLES.values())


def test_nothing() -> None:
    assert ptb.tokenize([]) == []


def test_rows_never_shift() -> None:
    breaks = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\n\n"]
    texts = [text for number, mark in enumerate(breaks) for text in (f"left{mark}right", f"row {number}", "", mark)]
    expected = [text for number in range(len(breaks)) for text in ("left right", f"row {number}", "", "")]
    assert ptb.tokenize(texts) == expected


def test_the_following_text_decides_on_the_dot_of_an_abbreviation() -> None:
    # The reason why texts are not tokenised one by one, or each distinct text once.
    assert ptb.tokenize(["<br> No.", "20 Inns"])[0] == "<br> no."
    assert ptb.tokenize(["<br> No.", "A pub"])[0] == "<br> no"


def test_whatever_the_locale_and_several_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("LANG", "tr_TR.ISO-8859-9")
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ptb.tokenize, [["CAFÉ WITH ICE 中"]] * 2)) == [["café with ice 中"]] * 2


def test_installed_in_a_path_with_spaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jar = tmp_path / "read only" / "stanford.jar"
    jar.parent.mkdir()
    shutil.copy(java.find_jar("tokenizer/stanford-corenlp-3.4.1.jar"), jar)
    jar.parent.chmod(0o500)
    monkeypatch.setattr(ptb, "find_jar", lambda name: jar)
    assert ptb.tokenize(["A pub."]) == ["a pub"]
    assert [file.name for file in jar.parent.iterdir()] == ["stanford.jar"]
    jar.parent.chmod(0o700)


def test_lone_surrogate() -> None:
    with pytest.raises(UserError, match="surrogate"):
        ptb.tokenize(["a \ud800 b"])


def test_lost_lines_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptb, "run_java", lambda arguments, stdin: "one\ntwo\nthree")
    with pytest.raises(UserError, match="3 lines of 2 texts"):
        ptb.tokenize(["one", "two three"])
