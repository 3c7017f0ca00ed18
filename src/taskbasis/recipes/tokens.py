"""What a recipe says of the tokenizer."""

from __future__ import annotations

from taskbasis.recipes.problems import Findings
from taskbasis.recipes.schema import Tokenizer, TokenRule, TokenSource
from taskbasis.recipes.tree import Tree
from taskbasis.recipes.values import parse_ref, parse_text, read_fields

_KINDS = ("model_token", "zero")
_OLD = "model:"
_OLD_READ = "it is read as mergekit did before it took any model here"


def parse_tokenizer(tree: Tree, findings: Findings) -> Tokenizer:
    """``tokenizer``, or ``tokenizer_source`` as its ``source``."""
    known = ("source", "tokens", "pad_to_multiple_of")
    fields = read_fields(tree, "tokenizer", known, findings)
    tokens: dict[str, TokenRule] = {}
    listed = fields.get("tokens")
    if listed is not None and not isinstance(listed.value, dict):
        findings.wrong(listed.mark, f"tokens is a mapping, TOKEN: ...; got {listed.kind}")
    elif listed is not None and isinstance(listed.value, dict):
        tokens = {token: _rule(token, child, findings) for token, child in listed.value.items()}
    multiple = fields.get("pad_to_multiple_of")
    pad = None
    if multiple is not None:
        if type(multiple.value) is int and multiple.value > 0:
            pad = multiple.value
        else:
            findings.wrong(
                multiple.mark,
                f"pad_to_multiple_of is a whole number of at least 1; got {multiple.kind}",
            )
    source = fields.get("source")
    if source is None:
        return Tokenizer("union", tokens, pad)
    if source.value == "union" or source.value == "base":
        return Tokenizer("union" if source.value == "union" else "base", tokens, pad)
    if isinstance(source.value, str) and source.value.startswith(_OLD):
        findings.note(source.mark, f"{_OLD!r} before a tokenizer's model is old; {_OLD_READ}")
        source = Tree(source.mark, source.value.removeprefix(_OLD))
    ref = parse_ref(source, "the tokenizer's source", findings)
    return Tokenizer(ref or "union", tokens, pad)


def _rule(token: str, tree: Tree, findings: Findings) -> TokenRule:
    fields = read_fields(tree, f"token {token!r}", ("source", "force"), findings)
    force = fields.get("force")
    if force is not None and not isinstance(force.value, bool):
        findings.wrong(force.mark, f"force is true or false; got {force.kind}")
    forced = force is not None and force.value is True
    source = fields.get("source")
    if force is not None and forced and source is None:
        findings.wrong(
            force.mark, "force: true needs a source, which the token's row is taken from"
        )
    return TokenRule(None if source is None else _source(source, findings), forced)


def _source(tree: Tree, findings: Findings) -> TokenSource | None:
    if not isinstance(tree.value, dict) or "kind" not in tree.value:
        ref = parse_ref(tree, "the token's source", findings)
        return None if ref is None else TokenSource(ref)
    kind = parse_text(tree.value["kind"], "kind", findings)
    if kind not in _KINDS:
        findings.wrong(
            tree.value["kind"].mark, f"the kind {kind!r} is neither model_token nor zero"
        )
        return None
    if kind == "zero":
        read_fields(tree, "a token's source of kind zero", ("kind",), findings)
        return TokenSource()
    known = ("kind", "model", "token", "token_id")
    fields = read_fields(tree, "a token's source of kind model_token", known, findings)
    if "model" not in fields:
        findings.wrong(tree.mark, "a token's source of kind model_token needs model")
    if ("token" in fields) == ("token_id" in fields):
        findings.wrong(tree.mark, "a token's source of kind model_token needs token or token_id")
    ref = parse_ref(fields.get("model"), "model", findings)
    token = parse_text(fields.get("token"), "token", findings, empty=True)
    number = fields.get("token_id")
    if number is not None and (type(number.value) is not int or number.value < 0):
        findings.wrong(number.mark, f"token_id is a whole number of at least 0; got {number.kind}")
        return None
    found = None if number is None or type(number.value) is not int else number.value
    return None if ref is None else TokenSource(ref, token, found)
