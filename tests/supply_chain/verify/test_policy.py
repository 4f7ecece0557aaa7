"""Whose signature counts: exactly, or by a regexp of the whole text; how a certificate names its signer."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import pytest
from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from pipelines.errors import UsageError
from supply_chain.errors import OtherSigner, VerificationError
from supply_chain.verify.policy import Signer, SignerPolicy, signer_of, signer_policy

WORKFLOW = "https://git.example/org/os/.gitea/workflows/image.yml@refs/heads/main"
ISSUER = "https://git.example/api/actions/oidc"
ISSUER_OLD = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
ISSUER_NEW = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
USER_NAME = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.7")
URI = x509.UniformResourceIdentifier(WORKFLOW)


def identity_regexp(regexp: str) -> SignerPolicy:
    return signer_policy(identity_regexp=regexp, issuer=ISSUER)


def test_exact_rules_take_only_the_same_text() -> None:
    policy = signer_policy(identity=WORKFLOW, issuer=ISSUER)
    policy.check(Signer(WORKFLOW, ISSUER))
    for signer in (Signer(WORKFLOW + "s", ISSUER), Signer(WORKFLOW, ISSUER + "/"), Signer(ISSUER, WORKFLOW)):
        with pytest.raises(OtherSigner) as refused:
            policy.check(signer)
        assert refused.value.signer == str(signer)
        assert refused.value.found in (signer.identity, signer.issuer)


def test_an_exact_rule_is_no_regexp() -> None:
    with pytest.raises(OtherSigner):
        signer_policy(identity=".+", issuer=ISSUER).check(Signer(WORKFLOW, ISSUER))


TRICKS = {
    "prefix": "https://evil.example/?https://git.example/org/os",
    "suffix": "https://git.example/org/os.evil.example",
    "newline before": "https://evil.example/\nhttps://git.example/org/os",
    "newline after": "https://git.example/org/os\n",
    "newline and more": "https://git.example/org/os\nhttps://evil.example/",
    "dot": "https://gitXexample/org/os",
    "case": "https://GIT.example/org/os",
    "other branch of the alternative": "https://git.example/org/os-and-more",
}


@pytest.mark.parametrize("identity", TRICKS.values(), ids=TRICKS)
@pytest.mark.parametrize(
    "regexp",
    [
        r"https://git\.example/org/os",
        r"^https://git\.example/org/os$",
        r"(?m)^https://git\.example/org/os$",
        r"https://git\.example/org/os|https://git\.example/org/kernel",
    ],
)
def test_a_regexp_means_the_whole_text(regexp: str, identity: str) -> None:
    identity_regexp(regexp).check(Signer("https://git.example/org/os", ISSUER))
    with pytest.raises(OtherSigner):
        identity_regexp(regexp).check(Signer(identity, ISSUER))


def test_both_rules_must_be_met_by_regexps_too() -> None:
    policy = signer_policy(
        identity_regexp=r"https://git\.example/.+", issuer_regexp=r"https://git\.example/.+"
    )
    policy.check(Signer(WORKFLOW, ISSUER))
    with pytest.raises(OtherSigner, match="expected the issuer to match https"):
        policy.check(Signer(WORKFLOW, "https://evil.example"))


BAD_REGEXPS = {
    "empty": ("", "found 0"),
    "matches nothing at all": (".*", "also matches nothing at all"),
    "empty alternative": (r"https://git\.example/|", "also matches nothing at all"),
    "not a regexp": ("(", "missing )"),
    "backreference": (r"(a)\1", "invalid escape"),
    "look-ahead": (r"(?!evil).+", "invalid"),
    "grows without bound": ("((a{999}){999}){999}", "invalid repetition"),
    "too long": ("a" * 2049, "found 2049"),
}


@pytest.mark.parametrize(("regexp", "message"), BAD_REGEXPS.values(), ids=BAD_REGEXPS)
def test_refuses_the_regexp(regexp: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError) as refused:
        identity_regexp(regexp)
    assert message in refused.value.what
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("regexp", ["(a+)+b", "(a|aa)+b", "(.*)*(.*)*(.*)*b", "(a?){200}a{200}"])
def test_no_regexp_hangs(regexp: str) -> None:
    # Backtracking would take longer than the universe is old.
    with pytest.raises((OtherSigner, UsageError)):
        identity_regexp(regexp).check(Signer("a" * 2000, ISSUER))


@pytest.mark.parametrize(
    "options",
    [
        {"issuer": ISSUER},
        {"identity": WORKFLOW},
        {"identity": WORKFLOW, "identity_regexp": ".+", "issuer": ISSUER},
        {"identity": WORKFLOW, "issuer": ISSUER, "issuer_regexp": ".+"},
        {"identity": "", "issuer": ISSUER},
        {"identity": WORKFLOW, "issuer": ""},
        {"identity": "\udcff", "issuer": ISSUER},
        {"identity_regexp": "\udcff", "issuer": ISSUER},
        {"identity": WORKFLOW, "issuer_regexp": "\n.*"},
        {},
    ],
)
def test_nobody_is_trusted_by_default(options: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        signer_policy(**options)


def certificate(names: Sequence[x509.GeneralName] = (URI,), **issuers: bytes) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "test")]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(minutes=10))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
    )
    for name, content in issuers.items():
        oid = {"old": ISSUER_OLD, "new": ISSUER_NEW}[name]
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, content), critical=False)
    return builder.sign(key, hashes.SHA256())


NEW = asn1.encode_der(ISSUER)

SIGNERS = {
    "workflow": ([URI], WORKFLOW),
    "mail": ([x509.RFC822Name("admin@example.org")], "admin@example.org"),
    "user name": ([x509.OtherName(USER_NAME, asn1.encode_der("admin!example"))], "admin!example"),
}


@pytest.mark.parametrize(("names", "identity"), SIGNERS.values(), ids=SIGNERS)
@pytest.mark.parametrize(
    "issuers", [{"new": NEW}, {"old": ISSUER.encode()}, {"new": NEW, "old": ISSUER.encode()}]
)
def test_reads_the_signer(names: list[x509.GeneralName], identity: str, issuers: dict[str, bytes]) -> None:
    assert signer_of(certificate(names, **issuers)) == Signer(identity, ISSUER)


UNCLEAR = {
    "two names": ([URI, x509.RFC822Name("admin@example.org")], {"new": NEW}, "found 2"),
    "host name": ([x509.DNSName("git.example")], {"new": NEW}, "found DNSName"),
    "other kind of name": ([x509.OtherName(ISSUER_OLD, NEW)], {"new": NEW}, "found OtherName"),
    "user name that is no text": ([x509.OtherName(USER_NAME, b"\x02\x01\x07")], {"new": NEW}, "UTF8String"),
    "no issuer": ([URI], {}, "expected one issuer, found none"),
    "issuers that differ": ([URI], {"new": NEW, "old": b"https://evil"}, "found https://evil and"),
    "issuer that is no DER": ([URI], {"new": ISSUER.encode()}, "UTF8String"),
    "issuer of another DER type": ([URI], {"new": b"\x13" + NEW[1:]}, "UTF8String"),
    "bytes after the DER": ([URI], {"new": NEW + b"\x00"}, "UTF8String"),
    "issuer that is no UTF-8": ([URI], {"old": b"\xff"}, "UTF-8"),
    "empty issuer": ([URI], {"old": b""}, "printable"),
    "newline in the issuer": ([URI], {"old": ISSUER.encode() + b"\n"}, "printable"),
    "nul in the issuer": ([URI], {"old": ISSUER.encode() + b"\x00.evil"}, "printable"),
    "issuer written right to left": ([URI], {"old": "\u202ehttps".encode()}, "printable"),
}  # fmt: skip


@pytest.mark.parametrize(("names", "issuers", "message"), UNCLEAR.values(), ids=UNCLEAR)
def test_refuses_an_unclear_signer(
    names: list[x509.GeneralName], issuers: dict[str, bytes], message: str
) -> None:
    with pytest.raises(VerificationError, match="signing certificate") as refused:
        signer_of(certificate(names, **issuers))
    assert message in refused.value.what
