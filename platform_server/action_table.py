"""Every action of the operators by its name: REST and MCP are made of this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from platform_server import actions, ci_actions
from platform_server.actions import Action
from platform_server.errors import broken_rule
from platform_server.manager import actions as manager_actions

_TABLES = (actions.ACTIONS, ci_actions.ACTIONS, manager_actions.ACTIONS)
ACTIONS: Mapping[str, Action] = {action.name: action for table in _TABLES for action in table}


def read_params(action: Action, given: Mapping[str, Any]) -> BaseModel:
    """The action's parameters out of a JSON object. Raises Invalid for the first rule that is broken."""
    try:
        return action.params.model_validate(given)
    except ValidationError as error:
        raise broken_rule(error.errors(include_url=False)[0]) from None
