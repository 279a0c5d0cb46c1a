# SPDX-License-Identifier: Apache-2.0
"""Makes tests/data/templates/cases.json: what jinja2 makes of chat templates and conversations.

The environment is that of transformers' apply_chat_template (ImmutableSandboxedEnvironment with
trim_blocks, lstrip_blocks and loop controls; its tojson, raise_exception and strftime_now, the
latter at a fixed time). The templates are the *.jinja beside the cases, in the form that the
published models have, and the snippets below, one for each feature. test_templates.c replays all of
it. Run it again after a change here (pip install jinja2==3.1.6).
"""

import datetime
import json
import pathlib

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "data" / "templates"
NOW = 1722000000  # 2024-07-26 13:20:00 UTC

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

CHATS = [
    [],
    [{"role": "user", "content": "Hello"}],
    [{"role": "user", "content": ""}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi  "}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": " b\n"}, {"role": "user", "content": "c"}],
    [{"role": "system", "content": "S"}, {"role": "user", "content": "1"}, {"role": "assistant", "content": "2"},
     {"role": "user", "content": "3"}, {"role": "assistant", "content": "4"}],
    [{"role": "user", "content": "a"}, {"role": "user", "content": "twice"}],
    [{"role": "assistant", "content": "I begin."}],
    [{"role": "user", "content": "Привет, 世界 😀 ß\u00a0\u2003\n\t<|im_end|> \"quoted\" \\ 'single' {{ x }} {% y %}"}],
    [{"role": "tool", "content": "42", "tool_call_id": "abcdefghi"}],
    [{"role": "user"}],
    [{"role": "user", "content": None}],
    [{"role": "user", "content": [{"type": "text", "text": "part one"}, {"type": "image"}, {"type": "text", "text": "two"}]}],
    [{"role": "user", "content": "weather?"},
     {"role": "assistant", "content": None, "tool_calls": [{"id": "abcdefghi", "type": "function", "function":
         {"name": "get", "arguments": {"city": "Zürich", "days": 3, "deep": {"a": [1, 2.5, True, None]}}}}]},
     {"role": "tool", "content": "{\"t\": 21.5}", "tool_call_id": "abcdefghi"},
     {"role": "assistant", "content": "21.5 degrees"}, {"role": "user", "content": "thanks"}],
    [{"role": "user" if i % 2 == 0 else "assistant", "content": f"turn {i}"} for i in range(11)],
]

TOOLS = [{"type": "function", "function": {"name": "get", "description": "the weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer", "default": 1}}, "required": ["city"]}}}]

# One feature each; the context of a snippet is VALUES.
SNIPPETS = [
    # white space
    "a\n{% if true %}\nb\n{% endif %}\nc", "  {% if true %}  x  {% endif %}  \n", "a {%- if true -%} \n b \n {%- endif %} c",
    "  {%+ if true %}x{% endif +%}\n y", "x\n   {# note #}\n  y", "x {#- note -#} y", "{# a #}\n{# b +#}\nc", "{{ 'a' -}}  \n  b",
    "  {{- 'a' }}\n\n b", "line\r\nnext\rlast\n", "\n\n{{ s }}\n", "a\n  {% set x = 1 %}  \nb{{ x }}", "{% raw %}{{ x }} {% if %}\n{% endraw %}\nz",
    "  {%- raw -%}  {{ y }}  {%- endraw -%}  z", "{% if true %}{% endif %}\n\n", "", "\n", "plain text", "{", "{}", "a{b%}", "{{ '}}' }}", "{{ {'a': {'b': 1}}}}",
    "{% if true -%}\n  x\n{%- endif %}", "\u00a0{% if true %}x{% endif %}",
    # literals
    "{{ 'a' \"b\" 'c' }}", "{{ 'tab\\t nl\\n q\\' b\\\\ x\\x41 u\\u00e9 U\\U0001f600 o\\101 k\\q' }}", "{{ 1_000 }} {{ 1.5 }} {{ 1e3 }} {{ 2.5e-7 }} {{ 1e16 }} {{ 123456789.125 }}",
    "{{ true }} {{ False }} {{ none }} {{ None }}", "{{ [1, 'a', 2.0, none, true, [], {}, ()] }}", "{{ {'a': 1, 'b': [2, {'c': 'd'}]} }}", "{{ (1,) }} {{ (1, 2) }} {{ () }} {{ 1, 2 }}",
    "{{ ['it\\'s', 'say \"x\"', 'both \\' \"', 'nl\\n\\t\\r\\\\', '\\x00\\x7f\\u200b\\u00e9\\U0001f600'] }}", "{{ -0.0 }} {{ 0.1 + 0.2 }} {{ 100.0 }} {{ 1/3 }}",
    # operators
    "{{ 1 + 2 * 3 - 4 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }}", "{{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 2 ** 3 ** 2 }} {{ -2 ** 2 }}",
    "{{ 'a' + 'b' ~ 1 ~ none ~ 2.0 }}", "{{ 'ab' * 3 }} {{ [1] * 2 }} {{ 2 * 'x' }} {{ 'x' * -1 }}", "{{ [1] + [2] }} {{ (1,) + (2,) }}", "{{ 1 ~ 2 + 3 }}", "{{ true + 1 }} {{ true == 1 }} {{ 1 == 1.0 }} {{ '1' == 1 }}",
    "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 'a' < 'b' <= 'b' }} {{ 3 >= 3 != 4 }}", "{{ 'b' in 'abc' }} {{ 'z' not in 'abc' }} {{ 1 in [1.0] }} {{ 'k' in d }} {{ 'x' in nope }}",
    "{{ not 1 == 2 }} {{ not true and false }} {{ 1 or 2 }} {{ 0 or '' or 'x' }} {{ 0 and 1 }} {{ '' and x }}", "{{ 'y' if n > 1 else 'n' }} {{ 'y' if false }}|{{ 1 if false else 2 if false else 3 }}",
    "{{ [1, 2] == [1, 2.0] }} {{ {'a': 1, 'b': 2} == {'b': 2, 'a': 1} }} {{ (1,) == [1] }} {{ none == false }}", "{{ [1, 2] < [1, 3] }} {{ 'Z' < 'a' }} {{ 'é' > 'z' }}", "{{ -n }} {{ +n }} {{ - 3 | abs }} {{ (-3) | abs }}",
    "{{ 'a' ~ 'b' | upper }} {{ ('a' ~ 'b') | upper }}", "{{ 5 is odd }} {{ not 5 is odd }} {{ 4 is even and 4 is divisibleby 2 }}",
    # names, attributes, subscripts
    "{{ nope }}|{{ d.nope }}|{{ d['nope'] }}|{{ l[99] }}|{{ s.nope }}|{{ none.x }}|{{ n.x }}", "{{ d.k }} {{ d['k'] }} {{ d.sub.deep }} {{ l[0] }} {{ l[-1] }} {{ l.0 }} {{ s[0] }} {{ s[-1] }} {{ u[1] }}",
    "{{ s[1:] }} {{ s[:-1] }} {{ s[::2] }} {{ s[::-1] }} {{ s[5:2] }} {{ s[-3:] }} {{ s[1:99] }} {{ u[1:3] }} {{ u[::-1] }}", "{{ l[1:] }} {{ l[:-1] }} {{ l[::-1] }} {{ l[-2:] }} {{ l[3:1:-1] }} {{ (1, 2, 3)[1:] }} {{ l[none:2] }}",
    "{{ nope == nope2 }} {{ nope != 1 }} {{ nope in [1] }} {{ not nope }} {{ nope ~ 'x' }}", "{{ nope.x }}", "{{ nope['x'] }}", "{{ nope + 1 }}", "{{ nope() }}", "{{ nope < 1 }}", "{{ -nope }}", "{{ 1 + 'a' }}", "{{ 'a' < 1 }}", "{{ 1 / 0 }}", "{{ 1 in 'a' }}", "{{ 1 in 2 }}", "{{ s() }}",
    "{{ d[l] }}", "{{ {[1]: 2} }}", "{{ d.k.x.y }}", "{{ l['a'] }}|{{ s['a'] }}|{{ d[1] }}|",
    # loops
    "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ x }} {% endfor %}", "{% for x in [] %}x{% else %}none{% endfor %}", "{% for x in nope %}x{% else %}none{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in d %}{{ k }};{% endfor %}{% for k in d.keys() %}{{ k }}{% endfor %}{% for v in d.values() %}{{ v }}{% endfor %}", "{% for c in u %}[{{ c }}]{% endfor %}", "{% for x in l if x is number and x > 1 %}{{ loop.index }}/{{ loop.length }}:{{ x }} {% endfor %}",
    "{% for x in l if false %}x{% else %}none{% endfor %}", "{% for a, (b, c) in [(1, (2, 3)), [4, [5, 6]]] %}{{ a }}{{ b }}{{ c }} {% endfor %}", "{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}", "{% for x in l %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ x }}{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",
    "{% for x in range(3) %}{{ x }}{% endfor %} {{ range(2, 10, 3) | list }} {{ range(5, 0, -2) | list }} {{ range(3) | length }}", "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }};{% endfor %}", "{% for x in l %}{{ loop.cycle('odd', 'even') }} {% endfor %}", "{% for x in 5 %}{% endfor %}", "{% for x in none %}{% endfor %}",
    "{% for i in range(2) %}{% for j in range(2) %}{{ loop.index }}{{ i }}{{ j }}{{ loop.depth }} {% endfor %}{{ loop.index }};{% endfor %}", "{% for x in [1, 2] %}{{ loop.last }}{% endfor %}{{ x }}",
    # scopes
    "{% set x = 1 %}{% for i in range(3) %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}", "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}", "{% set ns = namespace(n=0, s='') %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% set ns.s = ns.s ~ i %}{% endfor %}{{ ns.n }} {{ ns.s }} {{ ns.nope }}",
    "{% set ns = namespace() %}{% set ns.x = [1] %}{{ ns.x }}{{ ns['x'] }}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set x %}  body {{ n }} {% endset %}[{{ x }}]", "{% set x | upper | trim %}  body {% endset %}[{{ x }}]", "{% with a = 1, b = n %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% set a = 1 %}{% with a = 2, b = a %}{{ a }}{{ b }}{% endwith %}",
    "{% filter upper %}abc {{ s }}{% endfilter %}", "{% filter replace('a', 'b') | trim %} aaa {% endfilter %}", "{% set d.x = 1 %}", "{% if not tools is defined %}{% set tools = none %}{% endif %}{{ tools }}", "{% generation %}{% set q = 1 %}gen{% endgeneration %}{{ q }}", "{% set s = 'mine' %}{{ s }}",
    "{% for i in [1, 2] %}{% if i == 1 %}{% set y = 'set' %}{% endif %}{{ y }};{% endfor %}",
    # macros
    "{% macro m(a, b='B', c=none) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(a=1, c=3) }}{{ m() }}", "{% macro m(x) %}{{ x }}{% if x > 0 %}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(3) }}", "{% macro m() %}{{ later }}{% endmacro %}{% set later = 'seen' %}{{ m() }}", "{% macro m(a) %}{% set z = a %}{{ z }}{% endmacro %}{{ m(1) }}{{ z }}",
    "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{% endmacro %}{{ m(b=2) }}", "{% macro m(a, b=a) %}{{ b }}{% endmacro %}{{ m(7) }}", "{% for i in [1, 2] %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}", "{% macro m(x) %}  {{ x }}  {% endmacro %}[{{ m('a') | trim }}]{{ m('a') ~ 'b' }}", "{% macro m() %}{% endmacro %}{{ m is defined }}{{ m is callable }}{{ m() is string }}",
    # filters
    "[{{ '  a b  ' | trim }}] [{{ 'xxaxx' | trim('x') }}] [{{ '\u00a0a\u2003' | trim }}]", "{{ s | length }} {{ u | length }} {{ l | length }} {{ d | count }} {{ nope | length }}", "{{ 'Hello wörld-x (yes)' | title }} {{ 'aBC' | capitalize }} {{ 'straße É' | upper }} {{ 'ÀÉ' | lower }}", "{{ nope | default('x') }} {{ '' | default('x') }} {{ '' | default('x', true) }} {{ none | d('x', boolean=true) }} {{ nope | default }}|",
    "{{ 'aaa' | replace('a', 'b') }} {{ 'aaa' | replace('a', 'b', 2) }} {{ 'abc' | replace('', '-') }} {{ 12 | replace(1, 3) }}", "{{ l | join(', ') }} {{ l | join }} {{ rows | join(' ', attribute='name') }} {{ 'abc' | join('-') }} {{ nope | join }}", "{{ l | first }} {{ l | last }} {{ s | first }} {{ s | last }} {{ [] | first }} {{ '' | last }} {{ d | first }}", "{{ 'abc' | list }} {{ d | list }} {{ (1, 2) | list }} {{ nope | list }} {{ d.items() | list }}",
    "{{ d | items | list }} {{ nope | items | list }}", "{{ '42' | int }} {{ ' -7 ' | int }} {{ '4.9' | int }} {{ 'x' | int }} {{ 'x' | int(-1) }} {{ 3.99 | int }} {{ true | int }} {{ none | int }} {{ '1_000' | int }} {{ '' | int }}", "{{ '1.5' | float }} {{ 2 | float }} {{ 'x' | float }} {{ 'x' | float(0.5) }} {{ '1e3' | float }}", "{{ 5 | string }} {{ none | string }} {{ [1, 'a'] | string }} {{ nope | string }}|",
    "{{ rows | map(attribute='name') | list }} {{ ['a', 'b'] | map('upper') | join }} {{ rows | map(attribute='nope', default='-') | list }} {{ [' a '] | map('trim') | list }} {{ rows | map(attribute='sub.x') | list }} {{ ['a-b'] | map('replace', '-', '+') | list }}", "{{ rows | selectattr('role', 'equalto', 'user') | map(attribute='name') | list }} {{ rows | rejectattr('role', '==', 'user') | map(attribute='name') | list }} {{ rows | selectattr('flag') | list | length }} {{ rows | selectattr('nope', 'defined') | list }} {{ rows | rejectattr('nope', 'undefined') | list }}",
    "{{ [1, 2, 3, 4] | select('odd') | list }} {{ [0, 1, '', 'a'] | select | list }} {{ [0, 1] | reject | list }} {{ ['a', 1] | select('string') | list }} {{ [1, 2, 3] | select('in', [1, 3]) | list }} {{ [1, 5] | select('gt', 2) | first }} {{ [1, 5] | reject('>', 2) | list }}", "{{ [3, 1] | reverse | list }} {{ 'abc' | reverse }} {{ u | reverse }}", "{{ -3 | abs }} {{ (-2.5) | abs }}",
    "{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb' | indent(2, blank=true) }}|{{ 'a\nb' | indent('> ') }}|{{ 'a\n' | indent }}|", "{{ (l | tojson) | safe }} {{ '<b>' | safe }}", "{{ [1, 2] | map('string') | list | length }}", "{{ [1] | select('odd') | length }}", "{{ rows | selectattr('role', 'equalto', 'user') | first }}", "{{ rows | selectattr('') | list }} {{ [{'': 2}] | map(attribute='') | list }} {{ {'a': 1}[''] }}{{ 'x'[''] }}{{ [1][''] }}{{ {'a': 1}['get items'] }}{{ {'a': 1}['clear '] }}", "{{ rows | rejectattr('.nope', 'undefined') | list }}", "{{ ([1, 2] | select('odd'))[0] }}|{{ 'yes' if [] | select('odd') else 'no' }}",
    # tojson
    "{{ d | tojson }}", "{{ d | tojson(indent=2) }}", "{{ l | tojson(indent=4) }} {{ [] | tojson(indent=2) }} {{ {} | tojson(indent=2) }} {{ [[], {}] | tojson(indent=1) }}", "{{ u | tojson }} {{ u | tojson(ensure_ascii=true) }} {{ '\x00\x1f\x7f\"\\\\/<>&\\'\u2028' | tojson }} {{ '\x7f\u00ff' | tojson(true) }}", "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }} {{ d | tojson(separators=(',', ':')) }}", "{{ {1: 'a', true: 'b', none: 'c', 1.5: 'd'} | tojson }}", "{{ [1.0, 1e100, 0.1, -5, true, none, (1, 2)] | tojson }}", "{{ nope | tojson }}", "{{ d | tojson(indent='\t') }}", "{{ 'x' | tojson(indent=none) }}",
    # tests
    "{{ nope is defined }} {{ s is defined }} {{ d.k is defined }} {{ d.nope is undefined }} {{ none is none }} {{ nope is none }} {{ s is not none }}", "{{ s is string }} {{ l is string }} {{ d is mapping }} {{ l is mapping }} {{ l is iterable }} {{ s is iterable }} {{ n is iterable }} {{ nope is iterable }} {{ l is sequence }} {{ d is sequence }} {{ s is sequence }} {{ nope is sequence }} {{ n is sequence }}", "{{ n is number }} {{ true is number }} {{ 1.5 is number }} {{ 's' is number }} {{ n is integer }} {{ true is integer }} {{ 1.5 is float }} {{ true is boolean }} {{ true is true }} {{ false is false }} {{ 1 is true }}",
    "{{ 1 is eq 1 }} {{ 1 is equalto 2 }} {{ 1 is ne 2 }} {{ 1 is lt 2 }} {{ 2 is ge(2) }} {{ 3 is greaterthan 2 }} {{ 1 is in [1, 2] }} {{ 'a' is in 'abc' }} {{ 1 is not in [2] }}", "{{ 'abc' is lower }} {{ 'ABC' is upper }} {{ 'Abc' is upper }} {{ '12' is lower }} {{ none is sameas none }} {{ true is sameas true }}", "{{ range is callable }} {{ strftime_now is defined }} {{ raise_exception is defined }} {{ namespace is callable }}", "{{ 4 is divisibleby(2) }} {{ 4 is divisibleby 3 }}", "{{ 's' is odd }}",
    # methods
    "[{{ '  a '.strip() }}] [{{ '  a '.lstrip() }}] [{{ '  a '.rstrip() }}] [{{ 'xyaxy'.strip('yx') }}] [{{ 'äbä'.strip('ä') }}]", "{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a b c'.split(' ', 1) }} {{ 'a b c'.split(maxsplit=1) }} {{ ''.split(',') }} {{ ''.split() }} {{ 'a,b,c'.rsplit(',', 1) }} {{ 'a</think>b'.split('</think>')[-1] }}", "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'bc')) }} {{ 'abc'.startswith('') }}", "{{ 'they\\'re bill\\'s x1y'.title() }} {{ 'hELLO'.capitalize() }} {{ 'aé'.upper() }} {{ 'AÉ'.lower() }}", "{{ 'a\nb\r\nc\n'.splitlines() }} {{ 'a\nb'.splitlines(true) }}",
    "{{ 'aXbX'.replace('X', '-') }} {{ 'aXbX'.replace('X', '-', 1) }} {{ '-'.join(['a', 'b']) }} {{ u.find('я') }} {{ 'abcb'.rfind('b') }} {{ 'abc'.find('z') }} {{ 'abcb'.count('b') }} {{ 'abc'.index('c') }}", "{{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.txt'.removesuffix('.txt') }} {{ 'abc'.removeprefix('z') }}", "{{ d.get('k') }} {{ d.get('nope') }} {{ d.get('nope', 'x') }} {{ d.items() | length }}", "{{ [1, 2, 1].count(1) }} {{ [1, 2].index(2) }} {{ 'ABC'.isupper() }} {{ 'abc'.islower() }}", "{{ '-'.join([1]) }}", "{{ 'a'.split('') }}", "{{ n.strip() }}", "{{ 'abc'.index('z') }}",
    # globals
    "{{ raise_exception('no: ' ~ n) }}", "{{ strftime_now('%Y-%m-%d %H:%M %d %b %A') }}", "{{ dict(a=1, b='x') }}", "{{ range(100001) }}", "{{ namespace(_x=1) }}", "{{ range(1, 2, 0) }}", "before{{ raise_exception('stop') }}after",
]

VALUES = {"s": "string", "u": "aяé😀", "n": 7, "l": [1, "two", 3.5, None, True], "d": {"k": "v", "sub": {"deep": 1}, "list": [1]},
          "rows": [{"role": "user", "name": "A", "flag": True, "sub": {"x": 1}}, {"role": "bot", "name": "B", "flag": False, "sub": {"x": 2}}, {"role": "user", "name": "C", "sub": {"x": 3}}]}

# Refused by us when they are compiled, whatever jinja2 makes of them.
REFUSED = [
    ("{{ 'a' | wordwrap }}", 1), ("\n\n{{ x is filter }}", 3), ("{% include 'x' %}", 1), ("a\n{% import 'x' as y %}", 2), ("{% extends 'x' %}", 1), ("{% block b %}{% endblock %}", 1), ("{{ ''.__class__ }}", 1), ("{{ s.format(1) }}", 1), ("{{ l.append(1) }}", 1),
    ("{% for x in l recursive %}{% endfor %}", 1), ("{% call m() %}{% endcall %}", 1), ("{{ cycler(1) }}", 1), ("{{ lipsum() }}", 1), ("{{ m(*l) }}", 1), ("{{ m(**d) }}", 1), ("{% do x %}", 1), ("{% autoescape true %}{% endautoescape %}", 1), ("{{ ('a' | safe) + 'b' }}", 1), ("{% set x = 'a' | safe %}", 1), ("{{ d['f']() }}", 1), ("{{ x | map(f) }}", 1), ("{{ self.x }}", 1),
    ("{{ caller() }}", 1), ("{{ 'a' | trim(1, 2, 3) }}", 1), ("{{ 99999999999999999999 }}", 1), ("{% print 1 %}", 1), ("{{ a[] }}", 1),
]

BROKEN = [
    ("{{", 1), ("a\nb {{ x", 2), ("{% if x %}", 1), ("{% if x %}\n\n{% endfor %}", 3), ("{{ x + }}", 1), ("{{ (1 }}", 1), ("{{ 1) }}", 1), ("{# x", 1), ("{% raw %} x", 1), ("{{ 'abc }}", 1), ("{% for x of l %}{% endfor %}", 1), ("{% for x in %}{% endfor %}", 1), ("{% set 1 = 2 %}", 1), ("{% endif %}", 1),
    ("{% else %}", 1), ("{{ a b }}", 1), ("{{ }}", 1), ("{% %}", 1), ("{{ a. }}", 1), ("{{ {1} }}", 1), ("{{ x ! y }}", 1), ("{% break %}", 1), ("{% macro m(a=1, b) %}{% endmacro %}", 1), ("{{ x | }}", 1), ("{{ x is }}", 1), ("{% set true = 1 %}", 1), ("{{ f(a=1, 2) }}", 1), ("{{ '\\x4' }}", 1),
]


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(format):
        return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).strftime(format)

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            lineno = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(lineno)

        def _text(self, caller):
            return caller()

    class Namespace(jinja2.utils.Namespace):
        def __init__(self, **kwargs):
            if any(name.startswith("_") for name in kwargs):
                raise jinja2.exceptions.SecurityError("underscore")
            jinja2.utils.Namespace.__init__(self, kwargs)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals.update(raise_exception=raise_exception, strftime_now=strftime_now, namespace=Namespace)
    return env


def answer(env, source, context):
    """{"text": ...}, {"raised": its message} or {"fails": true}."""
    raised = []
    env.globals["raise_exception"] = lambda message: raised.append(message) or env.globals["_raise"](message)
    try:
        return {"text": env.from_string(source).render(**context)}
    except Exception as error:  # whatever Python raises, the template has failed
        return {"raised": raised[0]} if raised else {"fails": type(error).__name__}


def write_corpus():
    """Seeds of tests/fuzz/fuzz_template.c: a template, a NUL, a context."""
    corpus = FOLDER.parent.parent / "fuzz" / "corpus" / "template"
    corpus.mkdir(parents=True, exist_ok=True)
    chat = json.dumps({"messages": CHATS[13], "tools": TOOLS, "add_generation_prompt": True, **TOKENS})
    for path in sorted(FOLDER.glob("*.jinja")):
        (corpus / path.stem).write_bytes(path.read_bytes() + b"\0" + chat.encode())
    values = json.dumps(VALUES).encode()
    for i in range(0, len(SNIPPETS), 12):
        (corpus / f"snippets-{i}").write_bytes("\n".join(SNIPPETS[i:i + 12]).encode() + b"\0" + values)


def main():
    env = environment()
    env.globals["_raise"] = env.globals["raise_exception"]
    cases = []
    for path in sorted(FOLDER.glob("*.jinja")):
        source = path.read_text()
        for chat in CHATS:
            for more in ({}, {"add_generation_prompt": True}, {"add_generation_prompt": True, "tools": TOOLS, "tools_in_user_message": False}):
                context = {"messages": chat, "tools": None, "documents": None, "add_generation_prompt": False, **TOKENS, **more}
                cases.append({"file": path.name, "context": context, **answer(env, source, context)})
    for source in SNIPPETS:
        cases.append({"source": source, "context": VALUES, **answer(env, source, VALUES)})
    for source, line in REFUSED:
        cases.append({"source": source, "refused": line})
    for source, line in BROKEN:
        try:
            env.from_string(source)
            raise SystemExit(f"jinja2 accepts {source!r}")
        except (jinja2.exceptions.TemplateSyntaxError, SyntaxError):
            cases.append({"source": source, "broken": line})
    text = ",\n".join(json.dumps(case, ensure_ascii=True) for case in cases)
    (FOLDER / "cases.json").write_text(f'{{"now": {NOW}, "cases": [\n{text}\n]}}\n')
    write_corpus()
    print(len(cases), "cases,", sum("text" in c for c in cases), "with text")


if __name__ == "__main__":
    main()
