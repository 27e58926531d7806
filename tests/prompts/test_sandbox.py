"""The sandbox: what strangers write works where it is ordinary, and is refused at once where it is not."""

import resource
import time

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ift.errors import IftError
from ift.prompts import budget
from ift.prompts.sandbox import names_in, render, syntax_error

BIG = "x" * 1_000_000
FIELDS = {
    "text": "Fun. And short.",
    "label": 1,
    "answer_choices": ["no", "yes"],
    "answers": {"text": ["in 1912"], "answer_start": [4]},
    "rows": [{"name": "b", "size": 2}, {"name": "a", "size": 1}],
    "tree": [[1, [2, 3]], 4],
    "empty": "",
    "nothing": None,
    "big": BIG,
}


def refusal(template: str, fields: dict[str, object] | None = None) -> str:
    with pytest.raises(IftError) as caught:
        render(template, FIELDS if fields is None else fields)
    return str(caught.value)


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ text.__class__ }}",
    "{{ text['__class__'] }}",
    "{{ text['__cl' ~ 'ass__'] }}",
    "{{ text|attr('__class__') }}",
    "{{ [text]|map('attr', '__class__')|list }}",
    "{{ [text]|map(attribute='__class__')|list }}",
    "{{ [text]|groupby('__class__') }}",
    "{{ [text]|sort(attribute='__class__.__name__') }}",
    "{{ [text]|sum(attribute='__class__') }}",
    "{{ '{0.__class__}'.format(text) }}",
    "{{ '{0.__class__}'['format'](text) }}",
    "{{ '{a.__class__}'.format_map({'a': text}) }}",
    "{{ '%(a)s'.__mod__({'a': 1}) }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ joiner }}",
    "{{ lipsum.__globals__ }}",
    "{{ lipsum(5) }}",
    "{{ dict(a=1) }}",
    "{{ namespace.__init__ }}",
    "{% set n = namespace(a=1) %}{{ n._Namespace__attrs }}",
    "{% set n = namespace(a=1) %}{{ n['__class__'] }}",
    "{{ range.__self__ }}",
    "{{ range.function }}",
    "{{ text.upper.function }}",
    "{{ text.upper }}",
    "{% macro m() %}{% endmacro %}{{ m.__call__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func }}",
    "{% for x in rows %}{{ loop._iterator }}{% endfor %}",
    "{% for x in rows %}{{ loop.__class__ }}{% endfor %}",
    "{{ rows.append(1) }}",
    "{{ rows[0].update({'name': 'c'}) }}",
    "{{ rows[0].pop('name') }}",
    "{{ open('/etc/passwd') }}",
    "{{ __import__('os') }}",
    "{{ text() }}",
    "{{ text.encode() }}",
    "{% include 'x' %}",
    "{% import 'x' as x %}",
    "{% from 'x' import y %}",
    "{% extends 'x' %}",
    "{% block x %}{% endblock %}",
    "{{ (text for text in rows) }}",
    "{{ text|pprint }}",
    "{{ text|xmlattr }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_there_is_no_way_out(template: str) -> None:
    began = time.process_time()
    assert refusal(template).startswith("line 1: ")
    assert time.process_time() - began < 10


def rounds(body: str, before: str = "", rounds: int = 99_999) -> str:
    return f"{before}{{% for i in range({rounds}) %}}{body}{{% endfor %}}"


def grown(start: str, step: str, end: str = "{{ n.s|length }}") -> str:
    """A value that is made of itself, again and again."""
    return rounds(f"{{% set n.s = {step} %}}", f"{{% set n = namespace(s={start}) %}}", 60) + end


BOMBS = {
    # one operation
    "repeated text": "{{ 'x' * 10**9 }}",
    "repeated from the right": "{{ 10**9 * 'x' }}",
    "repeated list": "{{ [0] * 10**9 }}",
    "repeated long list": "{{ [[0] * 1000] * 10**6 }}",
    "power": "{{ 2**(10**9) }}",
    "tower": "{{ 10**(10**10) }}",
    "powers of powers": rounds("{% set n.s = n.s * n.s %}", "{% set n = namespace(s=3) %}"),
    "range": "{{ range(10**9)|list }}",
    "list of a range": rounds("{{ range(99999)|list|length }}"),
    # made of itself
    "doubled text ~": grown("'x'", "n.s ~ n.s"),
    "doubled text +": grown("'x'", "n.s + n.s"),
    "doubled text join": grown("'x'", "[n.s, n.s]|join"),
    "doubled text set": grown("'x'", "n.s", "{% set a %}{{ n.s }}{{ n.s }}{% endset %}{{ a * 10**8 }}"),
    "doubled list": grown("[1]", "n.s + n.s"),
    "laughs in lists": grown("[1]", "[n.s, n.s]", "{{ n.s }}"),
    "laughs in tuples": grown("(1, 2)", "(n.s, n.s)", "{{ {n.s: 1} }}"),
    "laughs in mappings": grown("{}", "{'a': n.s, 'b': n.s}", "{{ n.s == n.s }}"),
    "laughs by zip": grown("[1]", "zip([n.s], [n.s])"),
    "laughs by map": grown("[1]", "[none, none]|map('default', n.s, true)|list"),
    "laughs by batch": grown("[1]", "[1]|batch(3, n.s)"),
    "laughs by arguments": "{% macro f(k) %}{{ f(k - 1, varargs, varargs) if k else varargs }}{% endmacro %}"
    "{{ f(50, 1) }}",
    "a list in itself": "{% set n = namespace() %}{% set n.s = [n] %}{{ n.s }}",
    "a deep list": rounds("{% set n.s = [n.s] %}", "{% set n = namespace(s=[1]) %}") + "{{ n.s }}",
    # loops and recursion
    "nested loops": rounds(rounds(rounds(""))),
    "loops that leave all out": rounds("{% for a in range(99999) if a < 0 %}{% endfor %}"),
    "long bodies": rounds("{% if 1 + 1 + 1 %}{% endif %}" * 200),
    "long bodies of calls": rounds("{% if 'a'.lower() %}{% endif %}" * 100),
    "long bodies of filters": rounds("{% if i|abs|abs|abs %}{% endif %}" * 100),
    "long bodies of comparisons": rounds("{% if 'a' < 'b' and i in [1, 2] %}{% endif %}" * 100),
    "long bodies of lists": rounds("{% set a = {'b': [1, 2]} %}" * 100),
    "recursive macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "mutual macros": "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
    "exponential macro": "{% macro f(k) %}{% if k %}{{ f(k-1) }}{{ f(k-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "exponential text": "{% macro f(k) %}{% if k %}{{ f(k-1) }}{{ f(k-1) }}{% else %}aaa{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "exponential mutual macros": "{% macro f(k) %}{{ g(k) }}{{ g(k) }}{% endmacro %}"
    "{% macro g(k) %}{% if k %}{{ f(k-1) }}{% endif %}{% endmacro %}{{ f(30) }}",
    "recursive caller": "{% macro f() %}{{ caller() }}{% endmacro %}{% macro g() %}{% call f() %}{{ g() }}{{ g() }}"
    "{% endcall %}{% endmacro %}{{ g() }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "exponential loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    # output
    "endless text": rounds("y" * 1000),
    "endless field": rounds("{{ big }}"),
    "endless text in a macro": f"{{% macro f() %}}{rounds('y' * 1000)}{{% endmacro %}}{{{{ f() }}}}",
    "endless text in a set": f"{{% set a %}}{rounds('{{ big }}')}{{% endset %}}{{{{ a|length }}}}",
    "endless text in a filter": f"{{% filter upper %}}{rounds('{{ big }}')}{{% endfilter %}}",
    "a list of long texts": "{% set a = [big] * 100 %}{{ a }}",
    # filters
    "center": "{{ 'x'|center(10**9) }}",
    "indent": "{{ 'x\ny'|indent(10**9) }}",
    "indent by text": "{{ ('\n' * 5000)|indent(big, blank=true) }}",
    "join": "{{ range(90000)|join(big) }}",
    "replace": "{{ big|replace('x', big) }}",
    "wordwrap": "{{ big|wordwrap(1) }}",
    "wordwrap of lines": "{{ ('\n' * 900000)|wordwrap(1) }}",
    "batch": "{{ range(9)|batch(10**9, 'x') }}",
    "slice": "{{ []|slice(10**9)|list }}",
    "tojson": "{% set a = [big] * 100 %}{{ a|tojson }}",
    "tojson indented": rounds("{% set n.s = [n.s] %}", "{% set n = namespace(s=range(9000)|list) %}", 300)
    + "{{ n.s|tojson(8) }}",
    "format": "{{ '%1000000000d'|format(1) }}",
    "format by argument": "{{ '%*d'|format(10**9, 1) }}",
    "format, precision": "{{ '%.1000000000f' % 1 }}",
    "format of zeros": "{{ ('%' ~ '0' * 900000) % 1 }}",
    "format, repeated": "{{ ('%(a)s' * 1000) % {'a': big} }}",
    "odd": "{{ '%1000000000d' is odd }}",
    "divisibleby": "{{ '%1000000000d' is divisibleby 1 }}",
    "round": "{{ 1.5|round(10**9) }}",
    "round up": "{{ 1|round(10**9, 'ceil') }}",
    "int": "{{ ('f' * 1000000)|int(0, 16) }}",
    "sum of lists": "{{ ([[1]] * 9999)|sum(start=[]) }}",
    "sort": rounds("{{ range(99999)|sort(reverse=true)|length }}"),
    "unique": rounds("{{ range(99999)|unique|length }}"),
    "max": rounds("{{ range(99999)|max }}"),
    "groupby": rounds("{{ big|groupby('0')|length }}"),
    "map": rounds("{{ range(99999)|map('string')|length }}"),
    "map with a long path": "{{ (['x'] * 9999)|map(attribute='0.' * 99999 ~ '0')|list }}",
    "selectattr": rounds("{{ range(99999)|selectattr('a', 'undefined')|list|length }}"),
    "wordcount": rounds("{{ ('a ' * 100000)|wordcount }}"),
    "title": rounds("{{ ('a ' * 9999)|title|length }}"),
    "map with a long path, of nothing": rounds(
        "{{ []|map(attribute=a)|list }}", "{% set a = '0.' * 99999 ~ '0' %}"
    ),
    "many arguments": "{% macro f() %}{{ varargs|length }}{% endmacro %}" + rounds("{{ f(*range(99999)) }}"),
    "many named arguments": "{% macro f() %}{{ kwargs|length }}{% endmacro %}{% set a = {} %}"
    + rounds("{{ a.update({'k' ~ i: i}) or '' }}", rounds=9_999)
    + rounds("{{ f(**a) }}"),
    "looked up in vain": "{% set a = {} %}"
    + rounds("{{ a.update({'k' ~ i: i}) or '' }}", rounds=9_999)
    + rounds("{{ a[big] is defined }}" * 90),
    "most_frequent": rounds("{{ range(99999)|most_frequent|length }}"),
    "choice": rounds("{{ range(99999)|choice }}"),
    "pprint": "{{ [1]|pprint }}",
    "urlize": "{{ big|urlize }}",
    # methods, functions and operators
    "ljust": "{{ 'x'.ljust(10**9) }}",
    "zfill": "{{ 'x'.zfill(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "method replace": "{{ big.replace('', 'x' * 1000) }}",
    "method join": "{{ big.join(big) }}",
    "method translate": "{{ 'xxxx'.translate({120: big}) }}",
    "method format": "{{ '{:>1000000000}'.format(1) }}",
    "split": rounds("{{ ('a ' * 100000).split()|length }}"),
    "splitlines": "{{ ('\n' * 900000).splitlines()|length }}",
    "search": rounds("{% if 'zzzzz' in big %}{% endif %}"),
    "slow search": rounds(
        "{% if h.find(n) %}{% endif %}", "{% set h = 'x' * 29999 %}{% set n = 'x' * 50 ~ 'b' ~ 'x' * 49 %}"
    ),
    "search from the right": "{{ big.rfind('b' ~ 'x' * 400000) }}",
    "strip": "{{ big.strip('b' * 400000) }}",
    "search in a list": rounds("{% if -1 in a %}{% endif %}", "{% set a = range(90000)|list %}"),
    "index": rounds("{{ a.index(89999) }}", "{% set a = range(90000)|list %}"),
    "compared texts": rounds("{% if a == big %}{% endif %}", "{% set a = big ~ '' %}"),
    "slices": rounds("{% set n.s = n.s + [big[1:]] %}", "{% set n = namespace(s=[]) %}"),
    "zip": rounds("{{ zip(range(99999), range(99999))|length }}"),
    "wide zip": "{{ zip(" + "range(99999), " * 200 + "[])|length }}",
    "appended to itself": rounds("{{ a.append(a) }}", "{% set a = [] %}") + "{{ a }}",
    "appended in its own loop": "{% set a = [1] %}{% for x in a %}{{ a.append(x) }}{% endfor %}",
    "updated with itself": rounds("{{ a.update({i: a}) }}", "{% set a = {} %}") + "{{ a }}",
    "changed": rounds("{{ loop.changed(a) }}", "{% set a = [range(50000)|list] %}"),
    # texts that are hard to compile
    "long template": "{{ a }}" * 20_000,
    "many parts": "{{ a.b }}" * 6_000,
    "deep blocks": "{% if text %}" * 1_000 + "{% endif %}" * 1_000,
    "deep brackets": "{{ " + "[" * 5_000 + "]" * 5_000 + " }}",
    "deep loops": "{% for a in text %}" * 25 + "{% endfor %}" * 25,
    "many signs": "{{ " + "-" * 50_000 + "1 }}",
    "many digits": "{{ " + "9" * 50_000 + " }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_time_and_memory_do_not_run_away(name: str) -> None:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    assert refusal(BOMBS[name]).startswith("line ")
    assert time.process_time() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200 * 1024


ORDINARY = [
    ("{{ answer_choices[label] }}", "yes"),
    ("{{ text.split('.')[0] }} {{ text.lower() }}", "Fun fun. and short."),
    ("{{ text[:3] }}{{ text[-1] }}{{ text[::-1][1:4] }}", "Fun.tro"),
    ("{{ text | replace('Fun', 'Joy') | upper | trim('.') }}", "JOY. AND SHORT"),
    ("{{ 'a b'|capitalize }} {{ 'a b'|title }} {{ text.strip('.').title() }}", "A b A B Fun. And Short"),
    ("{{ answer_choices | join(' or ') }}", "no or yes"),
    ("{{ answer_choices.index('yes') }} {{ text.index('A') }} {{ 'yes' in answer_choices }}", "1 5 True"),
    ("{{ answers.text[0] }} {{ answers['answer_start'][0] + 1 }}", "in 1912 5"),
    ("{% for k, v in answers.items() %}{{ k }}={{ v[0] }};{% endfor %}", "text=in 1912;answer_start=4;"),
    ("{{ answers.get('x', 'none') }} {{ answers.keys()|list }}", "none ['text', 'answer_start']"),
    ("{% if label == 1 and not empty %}good{% elif label %}?{% else %}bad{% endif %}", "good"),
    ("{{ 'good' if label else 'bad' }} {{ nothing is none }} {{ 3 is odd }}", "good True True"),
    ("{% for row in rows if row.size > 1 %}{{ loop.index }} of {{ loop.length }}{% endfor %}", "1 of 1"),
    ("{% for row in rows %}{{ row.name }}{{ ', ' if not loop.last }}{% endfor %}", "b, a"),
    ("{% for x in [] %}x{% else %}none{% endfor %}", "none"),
    ("{% for a, b in zip([1, 2], answer_choices) %}{{ a }}{{ b }} {% endfor %}", "1no 2yes"),
    ("{% for i, a in enumerate(answer_choices, 1) %}{{ i }}{{ a }} {% endfor %}", "1no 2yes"),
    ("{% for x in tree recursive %}{{ x if x is number else '(' ~ loop(x) ~ ')' }}{% endfor %}", "(1(23))4"),
    ("{% set n = namespace(s=0) %}{% for r in rows %}{% set n.s = n.s + r.size %}{% endfor %}{{ n.s }}", "3"),
    ("{% set a = range(3)|list %}{{ a + [9] }} {{ a * 2 }}", "[0, 1, 2, 9] [0, 1, 2, 0, 1, 2]"),
    ("{% set a %}<{{ text }}>{% endset %}{{ a|length }}", "17"),
    ("{% with a = 2 %}{{ a ** 3 }} {{ 7 // 2 }} {{ 7 % 4 }} {{ -a }}{% endwith %}", "8 3 3 -2"),
    ("{% macro f(x, y='!') %}{{ x }}{{ y }}{% endmacro %}{{ f('a') }}{{ f('b', y='?') }}", "a!b?"),
    ("{% macro f() %}<{{ caller(1) }}>{% endmacro %}{% call(x) f() %}{{ x }}{% endcall %}", "<1>"),
    ("{% filter upper %}a {{ text }}{% endfilter %}", "A FUN. AND SHORT."),
    ("{{ rows | map(attribute='name') | map('upper') | join }}", "BA"),
    ("{{ rows | selectattr('size', 'gt', 1) | map(attribute='name') | first }}", "b"),
    ("{{ rows | rejectattr('name', 'equalto', 'a') | list | length }}", "1"),
    ("{{ [1, 2, 3, 4] | select('even') | list }} {{ ['', 'a'] | reject('eq', '') | list }}", "[2, 4] ['a']"),
    ("{{ rows | sort(attribute='size') | map(attribute='name') | join }} {{ [3, 1] | sort }}", "ab [1, 3]"),
    ("{{ [1, 2]|sum }} {{ rows|sum(attribute='size') }} {{ [1, 3]|max }} {{ [1, 3]|min }}", "3 3 3 1"),
    ("{{ [1, 1, 2]|unique|list }} {{ [1, 2, 3]|batch(2)|list }} {{ [1, 2]|last }}", "[1, 2] [[1, 2], [3]] 2"),
    ("{% for g in rows|groupby('name') %}{{ g.grouper }}{{ g.list|length }}{% endfor %}", "a1b1"),
    ("{{ [1, 2, 2]|most_frequent }} {{ []|most_frequent }}", "[2] []"),
    ("{{ rows[0]|tojson }} {{ 'é<'|tojson }}", '{"name": "b", "size": 2} "é<"'),
    ("{{ missing|default('-') }} {{ empty|default('-', true) }} {{ missing is defined }}", "- - False"),
    (
        "{{ '%s has %d' % (text, label) }} {{ '%.2f'|format(3.14159) }} {{ '%d%%' % 5 }}",
        "Fun. And short. has 1 3.14 5%",
    ),
    ("{{ 'one two three four'|truncate(9) }} {{ 'a b'|wordcount }} {{ 2.567|round(1) }}", "one... 2 2.6"),
    ("{{ 'a b c'|wordwrap(3) }}|{{ 'a\nb'|indent(2) }}", "a b\nc|a\n  b"),
    ("{{ '7'|int + 1 }} {{ 'x'|int(3) }} {{ '1.5'|float }} {{ label|string ~ 'a' }}", "8 3 1.5 1a"),
    ("{{ text|reverse|first }} {{ [1, 2]|reverse|list }} {{ -3|abs }}", ". [2, 1] 3"),
    ("{{ answers|dictsort|first|first }} {{ answers|length }}", "answer_start 2"),
    ("{{ rows[0]['name'] }}{{ rows[-1].name }}{{ rows[1:][0].size }}", "ba1"),
    (
        "{{ 1 < 2 < 3 }} {{ 'a' not in text }} {{ nothing }} {{ 1 == 1.0 }} {{ [1] == [1] }}",
        "True True None True True",
    ),
    (
        "{% set a = [] %}{% for r in rows %}{{ a.append(r.name) or '' }}{% endfor %}{{ a.pop() }}{{ a }}",
        "a['b']",
    ),
    (
        "{% set a = {'b': [1]} %}{% set _ = a.update({'c': 2}) %}{{ a.b.append(3) or a }}",
        "{'b': [1, 3], 'c': 2}",
    ),
    ("{# a remark #}{% raw %}{{ text }}{% endraw %}", "{{ text }}"),
    ("{{ 'x'.center(3, '-') }}{{ 'x'.ljust(2, '.') }}{{ '7'.zfill(2) }}", "-x-x.07"),
    (
        "{{ 'a,b,c'.split(',', 1) }} {{ 'a b'.split() }} {{ 'a.b.c'.rsplit('.', 1)[0] }}",
        "['a', 'b,c'] ['a', 'b'] a.b",
    ),
    (
        "{{ ', '.join(answer_choices) }} {{ text.replace('.', '!') }} {{ text.count('n') }}",
        "no, yes Fun! And short! 2",
    ),
    ("{{ text.startswith('Fun') }} {{ 'abc'.find('z') }} {{ 'a=b'.partition('=')[2] }}", "True -1 b"),
]


@pytest.mark.parametrize(("template", "wanted"), ORDINARY)
def test_ordinary_templates_work(template: str, wanted: str) -> None:
    assert render(template, FIELDS) == wanted


def test_white_space() -> None:
    assert render("\n {{ text }} \n", FIELDS) == FIELDS["text"]
    assert (
        render("a\n{% if label %}\nb\n{% endif %}\nc", FIELDS) == "a\nb\nc"
    )  # a block's line end goes with it
    assert render("a{% if label +%}\nb{% endif %}", FIELDS) == "a\nb"


def test_long_texts_are_no_bomb() -> None:
    assert len(render("{% set a %}{{ big }}{% endset %}{{ a|upper }}", FIELDS)) == 1_000_000
    tokens = [f"token{i}" for i in range(5_000)]
    template = "{% for t in tokens %}{{ t }}{% if not loop.last %} {% endif %}{% endfor %}"
    assert render(template, {"tokens": tokens}) == " ".join(tokens)
    assert render("{{ text.split('. ')|length }}", {"text": "A sentence. " * 20_000}) == "20001"


@settings(max_examples=200)
@given(st.text(), st.sampled_from(["{{ 7*7 }}", "{% if %}", "{{ a }}", "{#", "{{", "|||", "%}"]))
def test_what_fields_hold_is_never_a_template(text: str, trap: str) -> None:
    assert render("<{{ a }}|{{ b[0] }}>", {"a": text + trap, "b": [trap]}) == f"<{text}{trap}|{trap}>"


@given(st.text(alphabet="{}%# -+|'\"[]().~abfor in range\n1*", max_size=60))
def test_any_text_renders_or_is_refused(template: str) -> None:
    try:
        assert isinstance(render(template, {"a": "x", "b": [1, 2]}), str)
    except IftError as error:
        assert "line " in str(error)  # noqa: PT017


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(VALUES)
def test_values_are_printed_as_jinja_prints_them(value: object) -> None:
    template = "<{{ a }}>{% for x in [a, a] %}{{ x ~ '' }}{{ x == a }}{% endfor %}"
    assert render(template, {"a": value}) == jinja2.Template(template).render(a=value)


@given(
    st.lists(st.integers(-9, 9), max_size=6),
    st.sampled_from(["sort", "unique", "reverse", "list", "batch(2)", "slice(2)"]),
)
def test_filters_agree_with_jinja(values: list[int], name: str) -> None:
    template = f"{{{{ a|{name}|list }}}}"
    assert render(template, {"a": values}) == jinja2.Template(template).render(a=values)


def test_nothing_is_changed() -> None:
    fields = {"a": [1, {"b": 2}], "c": "d"}
    render("{% set c = 1 %}{% set a = a + [3] %}{{ a }}{{ c }}{{ a|reverse|list }}", fields)
    for change in (
        "a.append(1)",
        "a.pop()",
        "a[1].update({'b': 3})",
        "a[1].pop('b')",
        "([a] + [])[0].append(1)",
    ):
        assert "that the template did not write itself cannot be changed" in refusal(
            f"{{{{ {change} }}}}", fields
        )
    assert fields == {"a": [1, {"b": 2}], "c": "d"}


MISTAKES = [
    (
        "{{ txet }}",
        "line 1: 'txet' is undefined\n  wanted: one of the fields text, label\n  next:   did you mean `text`?",
    ),
    ("a\n\nb {{ zzz }}", "line 3: 'zzz' is undefined\n  wanted: one of the fields text, label"),
    ("{{ text }}\n{% for x in zzz %}{% endfor %}", "line 2: 'zzz' is undefined"),
    ("{% macro f() %}\n{{ zzz }}\n{% endmacro %}\n\n{{ f() }}", "line 2: 'zzz' is undefined"),
    ("{{ text.zzz }}", "line 1: a text has no `zzz`"),
    ("a\n{{ {'b': 1, 'c': 2}.d }}", "line 2: no `d` in this mapping; it has b, c"),
    ("{{ [1, 2][2] }}", "line 1: no item 2: the list has 2"),
    ("a\n{{ text + 1 }}", "line 2: TypeError: `+` is not for a text and a whole number"),
    ("{{ 1 / 0 }}", "line 1: ZeroDivisionError: division by zero"),
    ("{{ text.upper }}", "line 1: a method without its brackets cannot be printed"),
    (
        "{{ text|choice(1, 2) }}",
        "line 1: a filter, function or method is given arguments that it does not take",
    ),
    ("{{ 'a {}'.format(text) }}", "line 1: `format` is not for templates; join texts with ~"),
    ("a\n{{ text }", "line 2: unexpected '}'\n  wanted: a valid Jinja text"),
    ("{% if text %}\n\n{{ text|zzz }}{% endif %}", "line 3: No filter named 'zzz'."),
    ("{{ text is zzz }}", "line 1: No test named 'zzz'."),
    ("{{ zzz(1) }}", "line 1: no function `zzz`; there are range, zip, enumerate, namespace"),
    ("\n{% include 'x' %}", "line 2: `{% include %}` is not for templates: each is a text of its own"),
    ("\n{{ text.__class__ }}", "line 2: access to `__class__` is unsafe"),
    (
        "a\n{{ 'x' * 10**9 }}",
        "line 2: too much work or memory is asked for\n  wanted: loops, repetitions and texts of an ordinary size",
    ),
    (
        "{% for i in range(9999) %}" + "a" * 200 + "{% endfor %}",
        "1,999,800 characters\n  wanted: at most 1,000,000",
    ),
]


@pytest.mark.parametrize(("template", "message"), MISTAKES)
def test_mistakes_are_named_with_their_line(template: str, message: str) -> None:
    assert refusal(template, {"text": "Fun.", "label": "good"}).startswith(message)


def test_another_s_words_are_kept_short() -> None:
    assert len(refusal("{{ {}[big] }}")) < 400


def test_what_no_field_could_mend_is_known_without_fields() -> None:
    assert syntax_error("{{ anything.at.all }}") is None
    assert syntax_error("a\n{{ text }") == "line 2: unexpected '}'"
    assert syntax_error("{{ text|attr('x') }}") == "line 1: No filter named 'attr'."
    assert syntax_error("{{ text['__class__'] }}") == "line 1: access to `__class__` is unsafe"
    assert syntax_error("{{ 'x' * 10**9 }}") is None  # nothing is computed before a template is rendered


def test_the_names_of_fields_are_known() -> None:
    template = (
        "{% set a = b %}{{ a }}{% for c in range(d) %}{{ c.e }}{{ loop.index }}{% endfor %}{{ f|join(g) }}"
    )
    assert names_in(template) == {"b", "d", "f", "g"}
    with pytest.raises(IftError, match="line 1: "):
        names_in("{{ a")


@given(st.lists(st.text(min_size=1), min_size=1, max_size=8), st.text())
def test_choice_is_pure(options: list[str], draw: str) -> None:
    first = render("<{{ a|choice }}>", {"a": options}, draw=draw)
    assert first[1:-1] in options
    assert first == render("x{% set b = a|random %}<{{ b }}>", {"a": list(options), "c": 1}, draw=draw)[1:]


def test_choice_differs_between_examples() -> None:
    drawn = [render("{{ [1, 2, 3, 4]|choice }}", {}, draw=str(i)) for i in range(2_000)]
    assert all(abs(drawn.count(option) / 2_000 - 1 / 4) < 0.05 for option in "1234")


def test_a_budget_is_of_one_render() -> None:
    template = "{% for i in range(2000) %}{{ i }}{% endfor %}"
    costs = budget.ROUND * 2_000
    for _ in range(budget.BUDGET // costs + 2):
        render(template, {})


def test_a_place_that_is_a_text_is_told_how_to_be_a_number() -> None:
    with pytest.raises(
        IftError, match=r"a list is indexed by a number and '1' is a text: write \[… \| int\]"
    ):
        render("{{ xs[n] }}", {"xs": ["a", "b"], "n": "1"})
    assert render("{{ xs[n | int] }}", {"xs": ["a", "b"], "n": "1"}) == "b"
