"""A registry client: the OCI distribution specification 1.1 on httpx and anyio."""

from supply_chain.registry.client import Repository, open_repository
from supply_chain.registry.credentials import Credential, Credentials, DockerCredentials, GivenCredentials
from supply_chain.registry.manifests import Document
from supply_chain.registry.referrers import Referrer
from supply_chain.registry.retry import Policy
from supply_chain.registry.uploads import How, read_bytes, read_file

__all__ = (
    "Credential",
    "Credentials",
    "DockerCredentials",
    "Document",
    "GivenCredentials",
    "How",
    "Policy",
    "Referrer",
    "Repository",
    "open_repository",
    "read_bytes",
    "read_file",
)
