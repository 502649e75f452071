"""A calculator for verl's own tool agent loop, in the language of the demo's model: `multi_turn.function_tool_path`.

The model was taught to write `47+93: 7+3+0=10,4+9+1=14 gives 140. ` With the tool it stops at the colon, the calculator
writes the rest, and the model goes on with the next number: a turn for each addition and one for the answer.
"""

from __future__ import annotations

import json
import re
from typing import Any

from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser
from verl.tools.function_tool import function_tool

FORMAT = "rolltree-sums"
"""`multi_turn.format` of the runs with this tool."""
_CALL = re.compile(r"(\d+)\+(\d+):$")


@function_tool("add")  # type: ignore[untyped-decorator, unused-ignore]
def add(left: int, right: int) -> str:
    """Add two numbers.

    Args:
        left: the first number.
        right: the second number.
    """
    terms, carry = [], 0
    for place in range(max(len(str(left)), len(str(right)))):
        a, b = left // 10**place % 10, right // 10**place % 10
        terms.append(f"{a}+{b}+{carry}={a + b + carry}")
        carry = (a + b + carry) // 10
    return f" {','.join(terms)} gives {left + right}. "


@ToolParser.register(FORMAT)  # type: ignore[untyped-decorator, unused-ignore]
class SumParser(ToolParser):  # type: ignore[misc, unused-ignore]
    """Finds a call of `add` at the end of what the model wrote."""

    @property
    def stop_token_ids(self) -> list[int]:
        """The colon ends a turn."""
        return [int(self.tokenizer.convert_tokens_to_ids(":"))]

    async def extract_tool_calls(self, responses_ids: list[int], tools: Any = None) -> tuple[str, list[FunctionCall]]:
        """Return the text and the call in it, if it ends in one."""
        text = self.tokenizer.decode(responses_ids)
        found = _CALL.search(text)
        if found is None:
            return text, []
        arguments = {"left": int(found[1]), "right": int(found[2])}
        return text, [FunctionCall(name="add", arguments=json.dumps(arguments))]
