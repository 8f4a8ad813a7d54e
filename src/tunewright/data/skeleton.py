"""Chat templates that write what is said as it stands: fixed pieces around the contents of the messages.

Most templates decide by the roles alone and write each content unchanged, or without the white space around it. Of
such a template one dialog of each shape (roles, and which contents are empty) is rendered with stand-ins for the
contents; every other dialog of that shape has the same pieces around its own. Whether a template is of that kind is
read from its syntax tree: where a list of messages, a message or a content is used in any way that is not listed here,
it is not, and each dialog is rendered.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jinja2 import nodes

from tunewright.data.examples import Message

Kind = Literal["messages", "message", "content", "text", "strip"]  # a text is a content with more around it
Shape = tuple[str, ...]

_STAND_IN = "\ufdd3{}\ufdd3"  # noncharacters, so that no template has them
_PLACE = re.compile("\ufdd3(\\d+)\ufdd3")
_CHANGING = {"strftime_now", "lipsum", "self", "caller", "varargs", "kwargs"}  # not told by the messages alone
_LOOP = {"index", "index0", "revindex", "revindex0", "first", "last", "length", "depth", "depth0", "cycle"}
_OPAQUE = (  # what could name or write messages in ways that are not followed here
    *(nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock, nodes.With, nodes.Block, nodes.Extends),
    *(nodes.Include, nodes.Import, nodes.FromImport, nodes.ExtensionAttribute, nodes.ImportedName),
)
_TYPE_TESTS = {"defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number", "boolean"}
_DICT_NAMES = frozenset(dir(dict))


@dataclass(frozen=True, slots=True)
class Skeleton:
    """What the dialogs of one shape have in common.

    `pieces` are fixed at even places; what stands at odd ones is the content of the message that `order` names.
    """

    pieces: list[str]
    order: list[int]

    def fill(self, messages: Sequence[Message]) -> str:
        """The text of a dialog of this shape."""
        pieces = self.pieces.copy()
        pieces[1::2] = [messages[number].content for number in self.order]
        return "".join(pieces)


def stand_ins(messages: Sequence[Message]) -> list[Message]:
    """Messages of the same shape, from whose rendering `take_apart` makes a skeleton."""
    return [
        Message(message.role, _STAND_IN.format(number) if message.content else "")
        for number, message in enumerate(messages)
    ]


def take_apart(text: str) -> Skeleton:
    """The skeleton in the rendering of stand-ins."""
    pieces = _PLACE.split(text)
    return Skeleton(pieces, [int(number) for number in pieces[1::2]])


def shape_of(messages: Sequence[Message], bare: bool) -> Shape | None:
    """The shape of a dialog, None where something but roles and contents is in it.

    `bare` says that the template takes white space from around contents: a dialog has a shape only without any then.
    """
    shape = []
    for message in messages:
        content = message.content
        if message.role == "tool" or message.tool_calls or message.name is not None or message.reasoning is not None:
            return None
        if bare and content.strip() != content:
            return None
        shape.append(message.role if content else f"silent {message.role}")
    return tuple(shape)


@dataclass(frozen=True, slots=True)
class Contents:
    """How a template treats contents: it writes them as they stand, `bare` where it takes white space from them."""

    bare: bool


def read_contents(template: nodes.Template) -> Contents | None:
    """How a template treats contents, None where it is not known to write them as they stand."""
    reader = _Reader()
    reader.name_all(template)
    reader.read(template)
    return Contents(reader.bare) if reader.certain else None


class _Reader:
    """Follows messages and their contents through a syntax tree. Names count for the whole template, whatever their
    scope: one that means two things makes it uncertain."""

    def __init__(self) -> None:
        self.certain = True
        self.bare = False
        self._names: dict[str, Kind] = {"messages": "messages"}  # a namespace's attribute as `name.attribute`
        self._namespaces: set[str] = set()

    def name_all(self, template: nodes.Template) -> None:
        """Find the names that stand for messages and contents."""
        known: dict[str, Kind] = {}
        while known != self._names:  # a name may be made from one that is only found later
            known = dict(self._names)
            for loop in template.find_all(nodes.For):
                self._name(loop.target, "message" if self._kind(loop.iter) == "messages" else None)
            for assignment in template.find_all(nodes.Assign):
                self._name(assignment.target, self._kind(assignment.node))

    def _name(self, target: nodes.Node, kind: Kind | None) -> None:
        match target:
            case nodes.Name(name=name):
                self._merge(name, kind)
            case nodes.NSRef(name=name, attr=attribute):
                self._namespaces.add(name)
                self._merge(f"{name}.{attribute}", kind)
            case _:
                self.certain = self.certain and kind is None

    def _merge(self, name: str, kind: Kind | None) -> None:
        """A name that has a content at times and something fixed at others is followed like a content."""
        before = self._names.get(name)
        both = {before, kind} - {None}
        if both == {"content", "text"}:
            self._names[name] = "text"
        elif before is None and kind is not None:
            self._names[name] = kind
        elif len(both) > 1 or (kind is None and before not in (None, "content", "text")):
            self.certain = False

    def read(self, node: nodes.Node) -> None:
        """Look at every use of messages and contents below a node."""
        for child in node.iter_child_nodes():
            kind = self._kind(child)
            if isinstance(child, _OPAQUE) or (kind is not None and not self._is_allowed(node, child, kind)):
                self.certain = False
            match child:
                case nodes.Name(name="loop"):  # which has messages too, before and behind this one
                    self.certain = self.certain and isinstance(node, nodes.Getattr) and node.attr in _LOOP
                case nodes.Name(name=name) if name in self._namespaces:
                    self.certain = self.certain and (child.ctx == "store" or isinstance(node, nodes.Getattr))
                case nodes.Name(name=name):
                    self.certain = self.certain and name not in _CHANGING
                case nodes.Filter(name="random"):
                    self.certain = False
            self.read(child)

    def _kind(self, node: nodes.Node) -> Kind | None:
        """What an expression stands for, None where neither messages nor contents reach it."""
        match node:
            case nodes.Name(name=name, ctx="load"):
                return self._names.get(name)
            case nodes.Getitem(node=inner, arg=argument):
                return self._part(self._kind(inner), argument)
            case nodes.Getattr(node=nodes.Name(name=name), attr=attribute) if name in self._namespaces:
                return self._names.get(f"{name}.{attribute}")
            case nodes.Getattr(node=inner, attr="content"):
                return "content" if self._kind(inner) == "message" else None
            case nodes.Getattr(node=inner, attr="strip"):
                return "strip" if self._kind(inner) == "content" else None
            case nodes.Call(node=called, args=[], kwargs=[], dyn_args=None, dyn_kwargs=None):
                return "content" if self._kind(called) == "strip" else None
            case nodes.Filter(name="trim", node=nodes.Expr() as inner, args=[], kwargs=[], dyn_args=None):
                return "content" if self._kind(inner) == "content" else None
            case nodes.Add(left=first, right=second) | nodes.And(left=first, right=second):
                return self._joined(first, second)
            case nodes.Or(left=first, right=second) | nodes.CondExpr(expr1=first, expr2=nodes.Expr() as second):
                return self._joined(first, second)
            case nodes.CondExpr(expr1=first):
                return self._joined(first)
            case nodes.Concat(nodes=parts):
                return self._joined(*parts)
        return None

    def _joined(self, *parts: nodes.Node) -> Kind | None:
        """Of what is put together or taken instead of one another."""
        return "text" if {self._kind(part) for part in parts} & {"content", "text"} else None

    @staticmethod
    def _part(whole: Kind | None, argument: nodes.Node) -> Kind | None:
        if whole == "messages":
            return "messages" if isinstance(argument, nodes.Slice) else "message"
        is_content = isinstance(argument, nodes.Const) and argument.value == "content"
        return "content" if whole == "message" and is_content else None

    def _is_allowed(self, parent: nodes.Node, child: nodes.Node, kind: Kind) -> bool:
        """Whether a use leaves what is written to roles, to which contents are empty, and to contents as they stand.

        A text is empty where all that it is put together from is, so whether it is tells no more than the shape.
        """
        said = kind in ("content", "text")
        match parent:
            case nodes.Assign():
                return kind != "strip"
            case nodes.Output() | nodes.Add() | nodes.Concat():
                return said
            case nodes.If(test=test) | nodes.CondExpr(test=test) if child is test:
                return said or kind == "messages"
            case nodes.Not():
                return said or kind == "messages"
            case nodes.And(left=first):  # with messages on its left it stands for its right, or for no messages
                return said or (kind == "messages" and child is first)
            case nodes.Or():
                return said
            case nodes.CondExpr():
                return said
            case nodes.Test(node=inner, name=name):
                return child is inner and kind != "strip" and name in _TYPE_TESTS
            case nodes.For(iter=items):
                return child is items and kind == "messages"
            case nodes.Filter(name="length"):
                return kind == "messages"
            case nodes.Filter(name="trim") | nodes.Call() if self._kind(parent) == "content":
                self.bare = True
                return True
            case nodes.Getattr(attr=name):
                return (kind == "message" and name not in _DICT_NAMES) or (kind == "content" and name == "strip")
            case nodes.Getitem(node=inner, arg=argument):
                fixed = isinstance(argument, nodes.Const) and isinstance(argument.value, str)
                return child is inner and (kind == "messages" or (kind == "message" and fixed))
            case nodes.Operand(op="in" | "notin"):
                return kind == "message"  # which keys it has
        return False
