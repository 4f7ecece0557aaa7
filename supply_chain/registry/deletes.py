"""Deleting by digest (OCI distribution specification, Content Management)."""

from __future__ import annotations

from supply_chain.registry.transport import Transport


async def delete(transport: Transport, path: str, what: str) -> bool:
    """Delete what `path` names below the repository; False when it is not there.

    Repeating it is harmless, so it is retried like a read. Raises Rejected, AccessDenied, Unavailable.
    """
    answer = await transport.call(
        "DELETE",
        transport.url(path),
        f"deletion of {what}",
        # 202 is the specification's; some registries say the others.
        ok=(202, 200, 204, 404),
        scopes=transport.scopes("delete"),
    )
    return answer.status != 404
