"""A calculator for verl's tool agent loop; `multi_turn.sh` names this file."""

from __future__ import annotations

import ast
import operator

from verl.tools.function_tool import function_tool

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


@function_tool("calculate")
def calculate(expression: str) -> str:
    """Work out an arithmetic expression of numbers, + - * / and parentheses.

    Args:
        expression: the expression, for example "(3 + 4) * 2".
    """
    try:
        return str(_value(ast.parse(expression, mode="eval").body))
    except (SyntaxError, ValueError, ZeroDivisionError) as error:
        return f"error: {error}"


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    raise ValueError("only numbers, + - * / and parentheses")
