"""promptsource's files: divided as promptsource itself would divide what it renders, and written as task files."""

import textwrap
import time
from pathlib import Path

import jinja2
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ift.errors import IftError
from ift.prompts.promptsource import Imported, convert, divide
from ift.prompts.sandbox import render
from ift.tasks import task as tasks


def template(jinja: str, name: str = "ask", **more: object) -> dict[str, object]:
    return {"name": name, "jinja": jinja, "answer_choices": None, "reference": "", "metadata": {}} | more


def written(*templates: dict[str, object], dataset: str = "kitchen/soups", subset: str | None = "hot") -> str:
    """A file as promptsource writes it."""
    head: dict[str, object] = {"dataset": dataset} | ({"subset": subset} if subset else {})
    text = yaml.safe_dump(head | {"templates": {f"id-{i}": t for i, t in enumerate(templates)}})
    return text.replace("metadata:", "metadata: !TemplateMetadata").replace(
        "!TemplateMetadata {}", "!TemplateMetadata\n      choices_in_prompt: false"
    )


SOUPS = textwrap.dedent(
    """\
    dataset: kitchen/soups
    subset: hot
    templates:
      1b2c-00: !Template
        answer_choices: cold ||| warm ||| hot
        id: 1b2c-00
        jinja: 'A soup is described here.


          {{ description }}


          Is it {{ answer_choices[0] }}, {{ answer_choices[1] }} or {{ answer_choices[2]
          }}? |||

          {{ answer_choices[warmth] }}'
        metadata: !TemplateMetadata
          choices_in_prompt: true
          languages:
          - en
          metrics:
          - Accuracy
          original_task: true
        name: How warm?
        reference: ''
      1b2c-01: !Template
        answer_choices: null
        id: 1b2c-01
        jinja: "{% if warmth == 2 %}\\nDescribe a hot soup:\\n|||\\n{{ description | trim }}\\n{% endif %}"
        metadata: !TemplateMetadata
          choices_in_prompt: false
          languages:
          - en
          metrics:
          - ROUGE
          - BLEU
          original_task: false
        name: How warm?
        reference: ''
    """
)


def imported(text: str) -> tuple[Imported, dict[str, object]]:
    result = convert(text, "soups/templates.yaml")
    value = yaml.safe_load(result.text)
    assert isinstance(value, dict)
    return result, value


def test_a_file_becomes_a_task_that_reads_back(tmp_path: Path) -> None:
    result, value = imported(SOUPS)
    assert (result.name, result.templates, result.left_out) == ("kitchen_soups_hot", 2, ())
    assert value | {"templates": []} == {
        "name": "kitchen_soups_hot",
        "kind": "generation",
        "cluster": "miscellaneous",
        "license": "unstated",
        "language": "en",
        "source": {"hub": {"id": "kitchen/soups", "config": "hot"}},
        "metric": "exact_match",
        "templates": [],
    }
    assert value["templates"] == [
        {
            "id": "how_warm",
            "answers": "cold ||| warm ||| hot",
            "prompt": "A soup is described here.\n\n{{ description }}\n\n"
            "Is it {{ answer_choices[0] }}, {{ answer_choices[1] }} or {{ answer_choices[2] }}?",
            "completion": "{{ answer_choices[warmth] }}",
        },
        {
            "id": "how_warm_2",
            "form": "inverted",
            "prompt": "{% if warmth == 2 %}\nDescribe a hot soup:\n{% endif %}",
            "completion": "{% if warmth == 2 %}\n{{ description | trim }}\n{% endif %}",
        },
    ]
    assert "    prompt: |-\n      A soup is described here.\n\n      {{ description }}\n" in result.text
    assert "  # How warm?\n" in result.text

    path = tmp_path / f"{result.name}.yaml"
    path.write_text(result.text, encoding="utf-8")
    task = tasks.load(file=str(path))
    example = task.example({"description": "Steam rises from it.", "warmth": 2, "cook": None})
    made = task.wordings[0].word(example.fields, key="0", with_choices=True)
    assert made.prompt.endswith("Steam rises from it.\n\nIs it cold, warm or hot?")
    assert (made.completion, set(made.choices)) == ("hot", {"cold", "warm", "hot"})
    inverted = task.wordings[1].word(example.fields, key="0")
    assert (inverted.prompt, inverted.completion) == ("Describe a hot soup:", "Steam rises from it.")


def rendered(jinja: str, fields: dict[str, object]) -> tuple[str, str]:
    """What promptsource makes of a text: rendered whole by plain Jinja, then divided."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    environment.globals["zip"] = zip
    prompt, _, completion = environment.from_string(jinja).render(**fields).partition("|||")
    return prompt.strip(), completion.strip()


WAYS = [
    "{{ a }} ||| {{ b }}",
    "\n{{ a }}\n\nIs it so?\n|||\n{{ b }}\n",
    "{% if n > 1 %}many: {{ a }} ||| {{ b }}{% else %}few: {{ a }} ||| none{% endif %}",
    "{% if n > 1 %}\nmany\n{% elif n == 1 %}\none: {{ a }}\n|||\n{{ b }}\n{% else %}\nno\n|||\nnil\n{% endif %}\nend",
    "start\n{% if n %}\n{% if n == 1 %}\none\n|||\n{{ b }}\n{% else %}\nmore |||\n\n{{ n }}{% endif %}\n{% endif %}\n",
    "{% set c = a ~ '!' %}\n{{ c }}\n|||\n{{ c }} {{ b }}",
    "{% set c = a ~ '!' %}{{ c }} ||| {{ b }}",
    "{% set c %}\n({{ a }})\n{% endset %}\nx{{ c }}x ||| y{{ c }}y",
    "{% set s = namespace(k=0) %}{% for x in xs %}\n{% set s.k = s.k + x %}\n* {{ x }}\n{% endfor %}\n= ||| {{ s.k }}",
    "{% set found = [] %}{% for x in xs %}{% if x > n %}{{ found.append(x) or '' }}{% endif %}{% endfor %}"
    "Over {{ n }}? ||| {{ found | join(', ') }}{{ 'none' if not found }}",
    "{% set d = {'k': 'v'} %}{% set _ = d.update({'k': a}) %}Which? ||| {{ d.k }}",
    "{% for x in xs %}\n{{ loop.index }}. {{ x }}\n{% endfor %}\n\nThe last? ||| {{ xs[-1] }}",
    "{% for x, y in zip(xs, xs) %}{{ x }}{{ y }}{% if not loop.last %}\n{% endif %}{% endfor %} ||| {{ a }}",
    "{% macro m(x) %}\n<{{ x }}>\n{% endmacro %}\n{{ m(a) }} ||| {{ m(b) }}",
    "{%- if n -%}\n  {{ a }}  \n{%- endif -%}\n  end ||| {{ b }} {#- a remark -#}  ",
    "{# |||, but in a remark #}{{ a }}\n{# x #}\nb ||| {{ b }}",
    "{% raw %}{{ a }}{% endraw %}\n{{ '}}' }} {{ '%}' }} {{ \"'\" }} ||| {{ b | replace('b', '{{') }}",
    "{% with c = a %}\n{{ c }}\n|||\n{{ c }}{{ b }}\n{% endwith %}",
    "{% filter upper %}\n{{ a }}\n{% endfilter %}\n| || {{ a }} ||| {{ b }}",
    "{% if n %}{% if n > 1 %}{{ a }} ||| {{ b }}{% endif %}{% endif %} end",
    "{% if n %}{% set c = 'yes' %}{% else %}{% set c = 'no' %}{% endif %}Is there one? {{ a }} ||| {{ c }}",
]  # fmt: skip
FIELDS: list[dict[str, object]] = [
    {"a": "alpha", "b": "beta", "n": 0, "xs": [1, 2, 3]},
    {"a": "a\n\nb", "b": " b ", "n": 1, "xs": [2]},
    {"a": "{{ x }}", "b": "{% if %}", "n": 2, "xs": [5, 1]},
]


@pytest.mark.parametrize("jinja", WAYS)
@pytest.mark.parametrize("fields", FIELDS, ids=["0", "1", "2"])
def test_both_halves_are_what_promptsource_renders(jinja: str, fields: dict[str, object]) -> None:
    prompt, completion = divide(jinja)
    agrees(prompt, completion, rendered(jinja, fields), fields)


def agrees(prompt: str, completion: str, wanted: tuple[str, str], fields: dict[str, object]) -> None:
    assert render(completion, fields) == wanted[1]
    if wanted[1]:  # without a completion the row is not used at all
        assert render(prompt, fields) == wanted[0]


PIECES = [
    "{{ a }}",
    "\n",
    "text",
    " ",
    "{% if n %}",
    "{% else %}",
    "{% endif %}",
    "{% for x in xs %}",
    "{{ x }}",
    "|||",
]
PIECES += ["{% endfor %}", "{% set c = b %}", "{{ c is defined }}", "{# r #}", "{%- if b -%}"]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.sampled_from(FIELDS))
def test_any_division_is_right_or_refused(jinja: str, fields: dict[str, object]) -> None:
    try:
        prompt, completion = divide(jinja)
        wanted = rendered(jinja, fields | {"x": "X"})
    except (ValueError, jinja2.TemplateError):
        return
    if "{% for" in jinja:  # a loop with the separator in it gives its first round alone
        return
    agrees(prompt, completion, wanted, fields | {"x": "X"})


def test_the_first_of_several_right_answers_is_taken() -> None:
    prompt, completion = divide("{{ a }}\nSay it.\n{% for x in xs %}\n  ||| {{ x }}\n{% endfor %}")
    assert render(prompt, FIELDS[0]) == "alpha\nSay it."
    assert render(completion, FIELDS[0]) == "1"


def test_only_what_a_half_reads_is_carried_over() -> None:
    prompt, completion = divide("{% set c = 1 %}{% set d = c %}{% set e = 2 %}{{ a }} ||| {{ d }}")
    assert prompt == "{% set c = 1 %}{% set d = c %}{% set e = 2 %}{{ a }}"
    assert completion == "{% set c = 1 %}{% set d = c %} {{ d }}"


REASONS = [
    ("{{ a }}", "it has no `|||`, so its completion is not known"),
    ("{{ '|||' }}{{ a }}", "it has no `|||`"),
    (" ||| {{ a }}", "there is nothing before `|||`"),
    ("{% set c = 1 %} ||| {{ a }}", "there is nothing before `|||`"),
    ("{{ a }} |||  \n", "there is nothing after `|||`"),
    ("{{ a }} ||| {{ b }} ||| {{ a }}", "it has more than one `|||`"),
    ("{{ a }} ||| {% if a %}||| {{ b }}{% endif %}", "it has more than one `|||`"),
    ("{% for x in a %}{% if x %}b ||| {{ x }}{% endif %}{% endfor %}", "under a condition inside a loop"),
    ("{% macro m() %}||| {% endmacro %}{{ a }}", "its `|||` stands inside {% macro %}"),
    ("{{ a } ||| b", "its line 1: unexpected '}'"),
    ("a\n{% if a %}b ||| c", "its line 2: Unexpected end of template"),
    ("a\n{{ a.__class__ }} ||| b", "its line 2: access to `__class__` is unsafe"),
    ("{{ a|attr('x') }} ||| b", "its line 1: No filter named 'attr'."),
    ("{% include 'x' %}{{ a }} ||| b", "its line 1: `{% include %}` is not for templates"),
    ("{{ a }} ||| {{ answer_choices[0] }}", "it uses `answer_choices`, but has none"),
    ("{{ options_ }} ||| {{ a }}", "it uses a column `options_`"),
]


@pytest.mark.parametrize(("jinja", "reason"), REASONS)
def test_what_cannot_be_used_is_left_out_and_reported(jinja: str, reason: str) -> None:
    result = convert(written(template("{{ a }} ||| {{ b }}"), template(jinja, "odd")), "soups.yaml")
    assert result.templates == 1
    [left] = result.left_out
    assert (left.file, left.template) == ("soups.yaml", "odd")
    assert reason in left.reason
    line = written(template("{{ a }} ||| {{ b }}"), template(jinja, "odd")).splitlines()[left.line - 1]
    assert line.strip() == "id-1:"


def test_reports_read_well() -> None:
    result = convert(written(template("{{ a }} ||| {{ b }}"), template("{{ a }}", "odd  one")), "soups.yaml")
    assert str(result.left_out[0]).endswith(
        ": template `odd one`: it has no `|||`, so its completion is not known"
    )
    with pytest.raises(
        IftError, match=r"no template can be used\n  soups.yaml:.*: template `ask`: it has no"
    ):
        convert(written(template("{{ a }}")), "soups.yaml")


def test_names_become_ids() -> None:
    names = ["Is it good?", "is_it_good", "…", "…", "a-b / c", "x" * 100, "ÄÖ"]
    _, value = imported(written(*(template("{{ a }} ||| b", name) for name in names)))
    ids = [spec["id"] for spec in value["templates"]]  # type: ignore[attr-defined]
    assert ids == ["is_it_good", "is_it_good_2", "template", "template_2", "a_b_c", "x" * 60, "template_3"]


def test_tasks_have_a_name_of_their_own() -> None:
    text = written(template("{{ a }} ||| b"), dataset="soups", subset=None)
    assert convert(text, "x").name == "soups"
    assert convert(text, "x", {"soups"}).name == "soups_promptsource"
    assert convert(text, "x", {"soups", "soups_promptsource"}).name == "soups_promptsource_2"
    assert "config" not in convert(text, "x").text


@pytest.mark.parametrize(
    ("metrics", "metric"),
    [
        ([["Accuracy"], ["ROUGE"], ["ROUGE", "BLEU"]], "rouge_l"),
        ([["BLEU"]], "bleu"),
        ([["Squad"]], "token_f1"),
        ([["Accuracy"]], "exact_match"),
        ([["Other", "Edit Distance"]], "exact_match"),
        ([[]], "exact_match"),
    ],
)
def test_metrics(metrics: list[list[str]], metric: str) -> None:
    templates = [template("{{ a }} ||| b", f"t{i}", metadata={"metrics": m}) for i, m in enumerate(metrics)]
    _, value = imported(written(*templates))
    assert value["metric"] == metric
    assert value.get("max_new_tokens", 64) == (128 if metric in ("bleu", "rouge_l") else 64)


def test_a_task_keeps_something_to_evaluate_with() -> None:
    _, value = imported(written(template("{{ a }} ||| b", metadata={"original_task": False})))
    assert "form" not in value["templates"][0]  # type: ignore[index]


def test_answers_of_a_row_and_answers_in_a_list() -> None:
    _, value = imported(
        written(
            template("{{ a }} ||| {{ answer_choices[0] }}", "row", answer_choices="{{ xs | join(' ||| ') }}"),
            template("{{ a }} ||| {{ answer_choices[0] }}", "list", answer_choices=["no", "yes"]),
            template("{{ a }} ||| b", "empty", answer_choices=""),
        )
    )
    answers = [spec.get("answers") for spec in value["templates"]]  # type: ignore[attr-defined]
    assert answers == ["{{ xs | join(' ||| ') }}", "no ||| yes", None]


BROKEN = [
    ("a: [", "soups.yaml:1: not valid YAML"),
    ("- a\n- b", "soups.yaml: holds no mapping"),
    ("", "soups.yaml: holds no mapping"),
    ("dataset: a", "soups.yaml: has no mapping `templates`"),
    ("dataset: a\ntemplates: {}", "soups.yaml: no template can be used"),
    ("dataset: a\ntemplates: []", "soups.yaml: has no mapping `templates`"),
    ("dataset: ../../etc\ntemplates: {a: b}", "soups.yaml: `dataset` is '../../etc'"),
    ("dataset: a\nsubset: [b]\ntemplates: {a: b}", "soups.yaml: `subset` is a list"),
    ("dataset: a\ntemplates:\n  x: !!python/object/apply:os.system ['true']", "soups.yaml:3: the tag `!!python"),
    ("dataset: !!python/name:os.system\ntemplates: {a: b}", "soups.yaml:1: the tag `!!python/name:os.system`"),
    ("x: &x {a: 1}\ndataset: a\ntemplates: {<<: *x}", "soups.yaml:3: a merge key `<<`"),
    ("dataset: a\ntemplates: {a: 2024-99-99}", "soups.yaml: not valid YAML"),
    ("[" * 5000, "soups.yaml: not valid YAML"),
    ("dataset: a\x00", "soups.yaml: not valid YAML"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_broken_and_hostile_files_are_refused(text: str, message: str) -> None:
    with pytest.raises(IftError, match=message):
        convert(text, "soups.yaml")


def test_aliases_do_not_multiply() -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]
    began = time.process_time()
    with pytest.raises(IftError):
        convert("\n".join([*lines, "dataset: a", "templates: {t: {name: *a59, jinja: *a59}}"]), "soups.yaml")
    assert time.process_time() - began < 20


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1)


@given(TEXTS, TEXTS)
def test_texts_survive_the_file(before: str, after: str) -> None:
    before = before.replace("{", "").replace("|", "")
    after = after.replace("{", "").replace("|", "")
    try:
        wanted = divide(f"{before}|||{after}")
    except ValueError:
        return
    text = written(template(f"{before}|||{after}", name=before))
    result = convert(text, "soups.yaml")
    [spec] = yaml.safe_load(result.text)["templates"]
    assert (spec["prompt"], spec["completion"]) == wanted
