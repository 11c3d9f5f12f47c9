"""Integrity and people: keys, a signed policy, what people sign of an update, signed heads, and signed checkpoints.

Everything here is about bytes and signatures and knows no registry; `registry.standing` asks it what an event log is worth. What is about
signed checkpoints is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from selectune.governance.documents import Document, Envelope, seal
from selectune.governance.heads import SignedHead, Witness, read_head, verify_head
from selectune.governance.keys import PrivateKey, PublicKey, key_folder, new_key, public_path, read_private, read_public
from selectune.governance.policy import Person, Policy, Rule, check_successor
from selectune.governance.statements import (
    Approval,
    Motion,
    Revocation,
    Target,
    approve,
    check_approval,
    check_motion,
    check_revocation,
    meaning,
    move,
    revoke,
)
from selectune.offers import offering

if TYPE_CHECKING:
    from selectune.governance.bundles import Signed, sign_folder, verify_folder

__all__ = [
    "Approval",
    "Document",
    "Envelope",
    "Motion",
    "Person",
    "Policy",
    "PrivateKey",
    "PublicKey",
    "Revocation",
    "Rule",
    "Signed",
    "SignedHead",
    "Target",
    "Witness",
    "approve",
    "check_approval",
    "check_motion",
    "check_revocation",
    "check_successor",
    "key_folder",
    "meaning",
    "move",
    "new_key",
    "public_path",
    "read_head",
    "read_private",
    "read_public",
    "revoke",
    "seal",
    "sign_folder",
    "verify_folder",
    "verify_head",
]

__getattr__ = offering(__name__, {"bundles": ("Signed", "sign_folder", "verify_folder")})
