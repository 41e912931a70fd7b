#!/usr/bin/env python3
"""Writes cases.json: documents, and what PyYAML 6.0.4 reads in them (`pip install pyyaml==6.0.4`).

A tag `!Name` before a map or list is passed through; a value null in "value" with "error" true is a document that
PyYAML refuses. Dates, bytes, sets and infinities, which JSON has not, are written as texts and maps.
"""
import datetime, json, math, pathlib
import yaml

DOCUMENTS = [
"a: plain text that\n  goes on\n  and on\n\n  after a blank\nb: 1",
"a: 'single ''quoted''\n   folded'\nb: \"double \\\n   joined \\t tab \\x41 \\u00e9\n   folded\n\n   para\"",
"a: |\n  lit\n   more\n  end\nb: |-\n  strip\nc: |+\n  keep\n\nd: >\n  fold\n  ed\n\n  para\n    indented\n  back\ne: >-\n  x\n  y\nf: |2\n    two\n",
"a: [1, 2,\n  3, four five ,\n # c\n 6]\nb: {x: 1, y: [a, b], 'z': \"q\", ? k : v, w}\n",
"? a\n: 1\n? [x]\n: 2\n" ,
"a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\nc: {<<: [*x, {r: 5, p: 9}], s: 1}\nd: {q: 7, <<: *x}\n",
"a: &x 3\nb: *x\nc: [*x, *x]\n? *x\n: y\n",
"a: &x 1\nb: &x 2\nc: *x\n",
"%YAML 1.1\n---\na: 1\n...\n",
"--- \na: 1\n",
"---\n# only comment\na: 1 # trailing\nb: a#b\nc: 'a #b' # c\nd: a # b\n",
"a: 2001-01-01\nb: 2001-12-14t21:59:43.10-05:00\nc: 2001-12-14 21:59:43\nd: 2001-1-1\n",
"a: 1\na: 2\nb: {x: 1, x: 2}\n",
"1: a\n1.5: b\ntrue: c\n~: d\nyes: e\n0x10: f\n",
"a: 190:20:30\nb: 1:30\nc: 2:4\nd: '2:4'\ne: 1:2:3:4\nf: 60:00\ng: 1:61\nh: 0:0\ni: 10:00.5\n",
"a: 010\nb: 08\nc: 0b11\nd: 0o7\ne: 0x1_F\nf: 1_000\ng: 1__0\nh: _1\ni: 1_\nj: 0_7\nk: +12\nl: -0\nm: 0777\n",
"a: 1e3\nb: 1.e3\nc: 1.0e3\nd: 1.0e+3\ne: 1e+3\nf: .5e-3\ng: 5.\nh: +.5\ni: -.inf\nj: .NAN\nk: 1.5_0\nl: 8e-5\nm: 1.E-4\nn: 1.0E-4\no: -1.0\np: '-1'\nq: 1.\nr: .\ns: ..\nt: 6.8523015e+5\n",
"a: yes\nb: No\nc: on\nd: OFF\ne: y\nf: N\ng: True\nh: FALSE\ni: tRUE\nj: null\nk: Null\nl: NULL\nm: nULL\nn: ~\no:\np: None\nq: none\n",
"a: !!str 1\nb: !!int '3'\nc: !!float 1\nd: !!bool 'yes'\ne: !!null ''\nf: !!str\ng: !!seq [1]\nh: !!map {a: 1}\n",
"a: !!binary aGVsbG8=\n",
"a: !!set {x, y}\n",
"a: !!omap [x: 1, y: 2]\n",
"a: - b\n",
"a: b: c\n",
"a:\tb\n",
"a:\n\t- b\n",
"a: [1, 2\n",
"a: {x: 1\n",
"a: 'unterminated\n",
"a: \"bad \\q escape\"\n",
"a: @x\n", "a: `x`\n", "a: %x\n", "a: *missing\n", "a: &x *x\n", "a: [a,, b]\n", "a: [,]\n", "a: []\nb: {}\nc: [ ]\n",
"- a\n- b\n", "just text\n", "", "# comment only\n", "a: 1\nb\n", "a: 1\n b: 2\n", " a: 1\n b: 2\n", "a:\n- x\n- y\nb:\n  - x\n  -  - nested\n     - deep\n  -\n    k: v\n",
"a: -1\nb: - 1\n","a: ? x\n","a: 'x' y\n","a: \"x\"y\n","a: x:y\nb: x: \n","a: http://x.y/z?a=b&c=d#e\nb: c:\\d\n","a: re:.*weight$\nb: [re:a.*, 're:b[0-9]+']\nc: re:layer\\d+\n","a: {re:x: 1}\nb: {'re:x': [y]}\n","a: [a:b, c: d]\n","a: {x:1, y: 2}\n","a: {x:, y: 2}\n",
"\ufeffa: 1\n", "a: \u00e9\u4e2d\U0001F600\n\u00fc: 1\n", "a: x\r\nb: y\r\n", "a: x\x85b: y\n" , "a: \x07\n", "a: 'x\u2028y'\n",
"a: !Foo {x: 1}\n" , "a: !Foo\n  x: 1\n", "a: !Foo 3\n", "m:\n- !Foo\n  a: 1\n- !Foo\n    a: 2\n- !Foo {a: 3}\n- !Foo\n",
"a: !<tag:yaml.org,2002:str> 1\n", "%TAG !e! tag:yaml.org,2002:\n---\na: !e!str 1\n", "a: ! 1\n", "a: &a1 !!str 1\nb: *a1\n", "a: !!str &a1 1\nb: *a1\n",
"a: |\n\tx\n", "a: >\n\n\n  x\n\n", "a: |\n  x\n y\n", "a: |1\n x\n", "a: |9\n x\n","a: |+\n\n\n", "a: - 1\n  - 2\n", "key with spaces: 1\n'quoted key': 2\n\"dq\": 3\n", "a: 'x\n\n\n  y'\n", "a: x\n\n\n  y\n", "a: x # c\n  y\n","a:\n  x\n  # c\nb: 1\n", "{a: 1, b: [2]}\n", "[a]: 1\n", "{a: 1}: 2\n", "a: [x: 1, y]\n", "--- {a: 1}\n--- {b: 2}\n", "a: 1\n...\nb: 2\n", "a: 1\n---\n", "a: |\n  x\n---\n", "<<: {a: 1}\nb: 2\n", "<<: 3\n", "a: {<<: 3}\n", "a: {'<<': {x: 1}}\n", "a: =\n", "=: a\n", "a: 1 2\n", "a: 0.1.2\nb: 1,5\nc: 1 000\nd: 1-2\ne: -\nf: --\ng: -a\n", "a: 12345678901234567890\n",
]


def plain(v):
    if isinstance(v, (datetime.datetime, datetime.date)):
        return "timestamp"
    if isinstance(v, bytes):
        return "binary"
    if isinstance(v, set):
        return {str(x): None for x in sorted(v)}
    if isinstance(v, float) and not math.isfinite(v):
        return {math.inf: ".inf", -math.inf: "-.inf"}.get(v, ".nan")
    if isinstance(v, dict):
        return {k if isinstance(k, str) else str(plain(k)): plain(x) for k, x in v.items()}
    if isinstance(v, (list, tuple)):
        return [plain(x) for x in v]
    return v


class Loader(yaml.SafeLoader):
    pass


def tagged(loader, suffix, node):
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    return loader.construct_sequence(node, deep=True)


Loader.add_multi_constructor("!", tagged)
rows = []
for text in DOCUMENTS:
    try:
        rows.append({"text": text, "value": plain(yaml.load(text, Loader))})
    except yaml.YAMLError:
        rows.append({"text": text, "error": True})
out = pathlib.Path(__file__).with_name("cases.json")
out.write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
