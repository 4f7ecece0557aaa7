"""What signatures are made and verified with: one folder or file, a `Trust`."""

from supply_chain.trust.embedded.create import init_embedded
from supply_chain.trust.embedded.services import running
from supply_chain.trust.trust import Trust, load_trust

__all__ = ["Trust", "init_embedded", "load_trust", "running"]
