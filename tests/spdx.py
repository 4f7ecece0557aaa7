"""SPDX's own parser, validator and list of licenses, as tests ask them."""

from __future__ import annotations

import json
import re
from functools import cache


def problems(document: bytes) -> list[str]:
    """What spdx-tools finds wrong with an SPDX document in JSON."""
    from spdx_tools.spdx.parser.jsonlikedict.json_like_dict_parser import JsonLikeDictParser
    from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

    parser = JsonLikeDictParser()  # type: ignore[no-untyped-call]
    parsed = parser.parse(json.loads(document))
    return [message.validation_message for message in validate_full_spdx_document(parsed)]


@cache
def license_names() -> frozenset[str]:
    """The identifiers of SPDX's licenses and exceptions."""
    from license_expression import get_spdx_licensing  # type: ignore[import-untyped]

    return frozenset(get_spdx_licensing().known_symbols)


def unknown_licenses(expression: str) -> list[str]:
    """What SPDX has no name for in an expression, which its library must be able to read."""
    from license_expression import get_spdx_licensing

    get_spdx_licensing().parse(expression, strict=False)
    names = set(re.sub("[()]", " ", expression).split()) - {"AND", "OR", "WITH"} - license_names()
    return sorted(name for name in names if not name.startswith("LicenseRef-"))
