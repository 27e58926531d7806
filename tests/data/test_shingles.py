import string
import unicodedata
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ift.data import shingles
from ift.data.shingles import Words, content, ngrams, spelled, words

# Characters of every kind: cased, folded, composed, combining, without spaces between words, symbols, taken out.
ODD = "aBc1 éÉßΣςΩİıДжǅ½ﬁ②\uff21\uff22中国の々ไท่ကख़ि한\u0301\u0307\ud800+<=€£🙂👎"
ODD += " \n\t\x85\u2028\u00a0.,'-—“”、。_`^\u200b\u00ad\x00"
texts = st.lists(
    st.one_of(st.text(ODD, max_size=30), st.text(st.characters(exclude_categories=["Cn"]), max_size=30)),
    max_size=8,
)


def unspaced(char: str) -> bool:
    """Whether `char` belongs to a script without spaces between words, by its name."""
    name = unicodedata.name(char, "").replace("VERTICAL ", "").replace("COMBINING ", "")
    scripts = "THAI LAO TIBETAN MYANMAR KHMER HIRAGANA KATAKANA KANA HENTAIGANA BOPOMOFO IDEOGRAPHIC CJK HANGZHOU MASU"
    tones = ("HANGUL SINGLE DOT TONE MARK", "HANGUL DOUBLE DOT TONE MARK")
    if " TALLY " in name:  # a mark for counting, whatever its name
        return False
    return name.replace("-", " ").startswith((*(f"{script} " for script in scripts.split()), *tones))


def naive(text: str) -> list[str]:
    """The normalised words of `text`, one character after the other."""
    found, inside = [], False
    for char in unicodedata.normalize("NFKC", text):
        category = unicodedata.category(char)
        by_itself = category in ("Sm", "Sc", "So") or unspaced(char)
        if char.isspace():
            inside = False
        elif category[0] == "P" or category in ("Sk", "Cc", "Cf"):
            continue
        elif by_itself:
            found.append(char)
            inside = False
        else:
            fold = char.casefold() if len(char.casefold()) == 1 and category[0] == "L" else char
            if inside:
                found[-1] += fold
            else:
                found.append(fold)
            inside = True
    return found


def by_text(found: Words) -> list[list[int]]:
    return [found.hashes[a:b].tolist() for a, b in zip(found.offsets, found.offsets[1:], strict=False)]


def same_pattern(left: list, right: list) -> bool:
    """Whether two lists are equal after renaming: equal entries of one stand where equal entries of the other do."""
    return len(set(left)) == len(set(right)) == len(set(zip(left, right, strict=True)))


def test_the_example_in_the_docstring():
    found = words(["The film's GOOD.", "the films good", "bad"])
    assert found.offsets.tolist() == [0, 3, 6, 7]
    first, second, third = content(found).tolist()
    assert first == second != third
    grams, offsets = ngrams(found, 2)
    assert len(grams) == 4
    assert offsets.tolist() == [0, 2, 4, 4]
    assert spelled("The film's GOOD.") == ["the", "films", "good"]


@given(texts)
def test_the_words_are_those_found_one_character_after_the_other(texts):
    assert [spelled(text) for text in texts] == [naive(text) for text in texts]


def test_every_character_is_what_its_properties_say():
    assigned = [char for char in map(chr, range(0x20000)) if unicodedata.category(char) not in ("Cn", "Co")]
    text = " ".join(f"a{char}b" for char in assigned)
    assert spelled(text) == naive(text)


@given(texts)
def test_two_words_have_one_hash_only_if_they_are_one_word(texts):
    hashes = by_text(words(texts))
    spelt = [naive(text) for text in texts]
    assert [len(row) for row in hashes] == [len(row) for row in spelt]
    assert same_pattern(list(chain.from_iterable(hashes)), list(chain.from_iterable(spelt)))


@given(texts, st.integers(1, 40))
def test_a_text_has_the_same_words_alone_and_in_any_batch(texts, chunk):
    alone = [by_text(words([text]))[0] for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shingles, "_CHUNK", chunk)
        assert by_text(words(texts)) == alone


@given(texts, st.integers(1, 6))
def test_ngrams_are_the_words_in_a_row_within_a_text(texts, n):
    grams, offsets = ngrams(words(texts), n)
    wanted = [
        [tuple(row[i : i + n]) for i in range(len(row) - n + 1)] for row in (naive(text) for text in texts)
    ]
    assert offsets.tolist() == np.cumsum([0, *map(len, wanted)]).tolist()
    assert same_pattern(grams.tolist(), list(chain.from_iterable(wanted)))


@given(texts)
def test_contents_are_equal_only_for_the_same_words_in_order(texts):
    spelt = [tuple(naive(text)) for text in texts]
    found = content(words(texts)).tolist()
    assert same_pattern(found, spelt)
    assert [value == 0 for value in found] == [not row for row in spelt]


def test_order_counts():
    found = words(["a b c", "c b a", "a c b", "ab c", "abc"])
    assert len(set(content(found).tolist())) == 5
    assert len(set(ngrams(words(["a b", "b a"]), 2)[0].tolist())) == 2


plain_words = st.lists(st.text(string.ascii_letters + "éÖя", min_size=1, max_size=6), min_size=1, max_size=12)


@given(plain_words, st.data())
def test_case_punctuation_and_white_space_change_nothing(plain, data):
    marks = st.text(".,;:!?'\"()[]-*/#@%&“”…—\u200b", max_size=3)
    gaps = st.text(" \t\n\r\u00a0\u3000", min_size=1, max_size=3)
    changed = ""
    for word in plain:
        turned = "".join(data.draw(st.sampled_from([c.upper(), c.lower()])) for c in word)
        cut = data.draw(st.integers(0, len(word)))
        changed += turned[:cut] + data.draw(marks) + turned[cut:] + data.draw(marks) + data.draw(gaps)
    decomposed = unicodedata.normalize("NFD", changed)
    one, two, three = content(words([" ".join(plain), changed, decomposed])).tolist()
    assert one == two == three != 0


def test_what_punctuation_alone_does_not_say_keeps_texts_apart():
    apart = ["5 + 3", "5 < 3", "5 = 3", "👍", "👎", "我是", "是我", "€ 5", "£ 5"]
    assert len(set(content(words(apart)).tolist())) == len(apart)
    assert len(set(content(words(["5 - 3", "5 / 3", "5, 3"])).tolist())) == 1


def test_scripts_without_spaces_are_read_by_character():
    assert spelled("我喜欢。この映画 ok?") == ["我", "喜", "欢", "こ", "の", "映", "画", "ok"]
    assert len(spelled("ฉันชอบ")) == 6
    assert spelled("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert spelled("안녕 세상") == ["안녕", "세상"]


def test_the_hashes_are_the_same_everywhere():
    # they stand in caches: a change of these numbers is a change of format
    found = words(["The film, 我"])
    assert found.hashes.tolist() == [17264907649876758083, 16414378754256817684, 11466535626392510299]
    assert ngrams(found, 2)[0].tolist() == [15979405107239199976, 18075677299969654830]
    assert content(found).tolist() == [13744321590418988822]


def test_short_words_do_not_collide():
    letters = string.ascii_lowercase + string.digits
    every = [a + b + c for a in ["", *letters] for b in ["", *letters] for c in letters]
    assert len(np.unique(words([" ".join(every)]).hashes)) == len(set(every))


@given(st.lists(texts, max_size=5))
def test_rows_of_fields_are_joined_without_reading_them_again(rows):
    fields = words([field for row in rows for field in row])
    joined = fields.joined([len(row) for row in rows])
    assert by_text(joined) == by_text(words(["\n".join(row) for row in rows]))
