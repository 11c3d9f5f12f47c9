"""Every error that selectune raises on purpose.

::

    SelectuneError                      something a person must know
    ├── InputError (ValueError)         what the user gave is wrong                      exit code 2
    │   ├── RecipeError                 a recipe has faults; the message lists all of them
    │   ├── NoMatch (LookupError)       a pattern or a name matches nothing
    │   ├── TiedSelection               a tied weight was selected without `tie: allow`
    │   ├── QuantisedSelection          weights that are held in too few bits to be trained
    │   ├── DataError                   a record, an image or a split cannot be used
    │   ├── ModelError                  a model cannot be loaded or mapped
    │   ├── DeltaError                  a delta file is damaged, or does not fit
    │   │   └── WrongParent             a delta for another parent
    │   ├── ResumeError                 a checkpoint of another recipe, other data or another selection
    │   ├── RegistryError               an unknown id or name, a move that is not allowed
    │   │   ├── Overtaken               somebody else's event came first, again and again
    │   │   ├── Collected               a version whose bytes `gc` has taken
    │   │   ├── ObjectMissing           an object that is not there
    │   │   ├── ObjectDamaged           an object whose bytes are not those that its name says
    │   │   └── HistoriesDiffer         two registries of which neither goes on where the other ends
    │   ├── KeyFileError                a key file that cannot be used
    │   ├── DocumentError               a policy, a signed document or a bundle that is not written as it must be
    │   ├── MissingPackage (ImportError)    an optional package is needed
    │   ├── StorageError (OSError)      a disk is full, a folder cannot be written
    │   ├── DoesNotFit (MemoryError)    a training takes more memory than there is
    │   └── NotYet (NotImplementedError)    known, wanted, not built
    ├── CheckFailed                     a check said no                                  exit code 1
    │   ├── SelectionViolated (RuntimeError)    something outside the selection moved, or something inside did not
    │   ├── SameModel                   an "updated" model whose weights equal the base
    │   ├── Diverged (ArithmeticError)  the loss is not a finite number
    │   ├── Alarmed (RuntimeError)      a rule of `watch` stopped a training
    │   ├── LooksSpent                  a set of test records has judged as many updates as the gate allows
    │   ├── VerifyFailed                the registry is not what its hashes say
    │   │   ├── EventEdited             an event that its hash does not fit, or that does not follow the one before
    │   │   ├── EventMalformed          an event that no version of selectune writes
    │   │   │   └── UnknownKind         an event of a kind that this version does not know
    │   │   ├── LogCut                  a log without events that are known to have been there
    │   │   └── Oversize                an object or a log larger than is taken from elsewhere
    │   └── Untrusted                   a signature, an approval or the policy says no
    │       ├── BadSignature            a signature that does not fit what it is said to sign
    │       │   └── OtherBytes          a signature of a folder that fits, over files that are others now
    │       ├── UnknownKey              a key that the policy does not have, or another than the one that was asked for
    │       ├── RevokedKey              a key that the policy has revoked
    │       ├── WrongRole               a person without the role that this needs
    │       ├── WrongMeaning            an approval of another update, or for another name
    │       ├── StaleApproval           the record is not what it was when it was approved
    │       ├── OwnApproval             an author approves an update of theirs
    │       ├── NotApproved             approvals are missing
    │       ├── NotSigned               a move without a signature, where the policy wants one
    │       ├── VerdictRefused          the gate's word is none that the policy lets this name have
    │       ├── RevokedVersion          an update that was revoked
    │       ├── PolicyRefused           a policy that no administrator of the one before it has signed
    │       └── ClockApart              two clocks tell times that are too far apart
    ├── Stopped                         a signal; the state was written                  exit code 130
    └── ProcessLost (RuntimeError)      another process of a training is gone            exit code 1
"""

from __future__ import annotations


def plain(text: str) -> str:
    r"""The text with what cannot be printed written out: nothing in it moves a cursor, colours a terminal or turns how it is read.

    Ends of lines stay, and the narrow space between a number and its unit.

    >>> plain("red \x1b[31m")
    'red \\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in "\n\N{NARROW NO-BREAK SPACE}" else one.encode("unicode_escape").decode() for one in text
    )


class SelectuneError(Exception):
    """What is wrong, where, and what to do next, in one message.

    >>> str(InputError('"atention" is no preset', where="recipe.yaml: select[0]", then="Did you mean attention?"))
    'recipe.yaml: select[0]: "atention" is no preset. Did you mean attention?'
    """

    exit_code = 3

    def __init__(self, what: str, *, where: str | None = None, then: str | None = None) -> None:
        # Messages quote what strangers wrote, and are printed in terminals.
        self.what = what = plain(what)
        self.where = where = where and plain(where)
        self.then = then = then and plain(then)
        message = f"{where}: {what}" if where else what
        if then:
            message = f"{message.rstrip('.')}. {then}" if not message.endswith("\n") else f"{message}{then}"
        super().__init__(message)


class InputError(SelectuneError, ValueError):
    """What the user gave is wrong."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe has faults; the message lists every one of them."""


class NoMatch(InputError, LookupError):
    """A pattern or a name matches nothing."""


class TiedSelection(InputError):
    """A tied weight was selected without `tie: allow`."""


class QuantisedSelection(InputError):
    """Weights were selected that are held in too few bits to be trained."""


class DataError(InputError):
    """A record, an image or a split cannot be used."""


class ModelError(InputError):
    """A model cannot be loaded or mapped."""


class DeltaError(InputError):
    """A delta file is damaged, or does not fit the model."""


class WrongParent(DeltaError):
    """A delta that was made for another parent."""


class ResumeError(InputError):
    """A checkpoint of another recipe, other data or another selection."""


class RegistryError(InputError):
    """An unknown id or name, or a move that is not allowed."""


class Overtaken(RegistryError):
    """Somebody else's event came first, as often as was tried."""


class Collected(RegistryError):
    """A version whose bytes `gc` has taken: the log knows it, and nothing can load it."""


class ObjectMissing(RegistryError):
    """An object that is not there."""


class ObjectDamaged(RegistryError):
    """An object whose bytes are not those that its name says."""


class HistoriesDiffer(RegistryError):
    """Two registries of which neither goes on where the other ends."""


class KeyFileError(InputError):
    """A key file cannot be read, opened or written, or others may read it."""


class DocumentError(InputError):
    """A policy, a signed document or a bundle is not written as it must be."""


class MissingPackage(InputError, ImportError):
    """An optional package is needed; the message says how to install it."""


class StorageError(InputError, OSError):
    """A disk is full, or a folder cannot be written."""


class DoesNotFit(InputError, MemoryError):
    """A training takes more memory than there is; the message says what makes it smaller."""


class NotYet(InputError, NotImplementedError):
    """Known and wanted, not built yet."""


class CheckFailed(SelectuneError):
    """A check said no."""

    exit_code = 1


class SelectionViolated(CheckFailed, RuntimeError):
    """Something outside the selection moved, or something inside it did not."""


class SameModel(CheckFailed):
    """An "updated" model whose weights equal the base's."""


class Diverged(CheckFailed, ArithmeticError):
    """The loss or a gradient is not a finite number."""


class Alarmed(CheckFailed, RuntimeError):
    """A rule of the recipe's `watch` stopped a training; what it had learned was written, where there is a folder for it."""


class LooksSpent(CheckFailed):
    """A set of test records has judged as many updates as the gate's `looks` allow."""


class VerifyFailed(CheckFailed):
    """The registry is not what its hashes say."""


class EventEdited(VerifyFailed):
    """An event that its hash does not fit, or that does not follow the one before it."""


class EventMalformed(VerifyFailed):
    """An event that no version of selectune writes: other fields, other types, a name that is none."""


class UnknownKind(EventMalformed):
    """An event of a kind that this version does not know: what it means cannot be checked."""


class LogCut(VerifyFailed):
    """A log without events that are known to have been there."""


class Oversize(VerifyFailed):
    """An object or a log that is larger than is taken from elsewhere."""


class Untrusted(CheckFailed):
    """A signature, an approval or the policy says no."""


class BadSignature(Untrusted):
    """A signature does not fit what it is said to sign."""


class OtherBytes(BadSignature):
    """A folder's signature is whole, and the folder's files are not those that were signed."""


class UnknownKey(Untrusted):
    """A key that the policy does not have, or another than the one that was asked for."""


class RevokedKey(Untrusted):
    """A key that the policy has revoked; nothing that it signed counts any more."""


class WrongRole(Untrusted):
    """The person has not the role that this needs."""


class WrongMeaning(Untrusted):
    """A signed approval says another update, another name or another role than it is used for."""


class StaleApproval(Untrusted):
    """The record is not what it was when it was approved."""


class OwnApproval(Untrusted):
    """An author approves an update of theirs, and the policy does not let one person do both."""


class NotApproved(Untrusted):
    """Approvals are missing that the policy asks for."""


class NotSigned(Untrusted):
    """A move without a signature, and the policy wants moves signed."""


class VerdictRefused(Untrusted):
    """The gate's word on an update is none that the policy lets this name have."""


class RevokedVersion(Untrusted):
    """An update that was revoked: it is neither loaded nor given a name."""


class PolicyRefused(Untrusted):
    """A policy that no administrator of the one before it has signed, or that does not follow it."""


class ClockApart(Untrusted):
    """Two clocks tell times that are further apart than the policy allows."""


class Stopped(SelectuneError):
    """A signal arrived; the state was written and the message says how to go on."""

    exit_code = 130


class ProcessLost(SelectuneError, RuntimeError):
    """Another process of a training is gone; what was written last is kept."""

    exit_code = 1
