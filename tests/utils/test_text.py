from kaconv.utils.text import MOST_CHARACTERS, printable, short_repr, shortened


def test_what_a_terminal_would_obey_is_escaped():
    assert printable("\x1b[31mred\x1b[0m\a\n\x9b2J") == r"\x1b[31mred\x1b[0m\x07\n\x9b2J"
    assert printable("abc\u202egpj.exe") == r"abc\u202egpj.exe"
    assert printable("\udcff.png") == r"\udcff.png"  # a file name that is not UTF-8


def test_what_is_only_seen_stays():
    text = "Füchse, 狐, لون, 👩\u200d🔬, 10\u202fAM, a\\b"
    assert printable(text) == text


def test_long_texts_keep_their_ends():
    text = "unknown model '" + "A" * 2_000_000 + "'; choose from resnet50"
    short = shortened(text)
    assert len(short) < MOST_CHARACTERS + 60
    assert short.startswith("unknown model 'AAA")
    assert short.endswith("AAA'; choose from resnet50")
    assert "(1,999,038 characters left out)" in short
    assert shortened("short") == "short"


def test_a_value_of_any_kind_is_a_line():
    endless: list = []
    endless.append(endless)
    for value in (endless, "x" * 10**6, 10**400, {"a": [[[[[[[[[1]]]]]]]]]}, list(range(10**5))):
        assert len(short_repr(value)) < 300
