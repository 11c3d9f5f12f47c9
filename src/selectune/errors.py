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
    │   ├── MissingPackage (ImportError)    an optional package is needed
    │   ├── StorageError (OSError)      a disk is full, a folder cannot be written
    │   └── NotYet (NotImplementedError)    known, wanted, not built
    ├── CheckFailed                     a check said no                                  exit code 1
    │   ├── SelectionViolated (RuntimeError)    something outside the selection moved, or something inside did not
    │   ├── SameModel                   an "updated" model whose weights equal the base
    │   ├── Diverged (ArithmeticError)  the loss is not a finite number
    │   ├── Alarmed (RuntimeError)      a rule of `watch` stopped a training
    │   └── VerifyFailed                the registry is not what its hashes say
    ├── Stopped                         a signal; the state was written                  exit code 130
    └── ProcessLost (RuntimeError)      another process of a training is gone            exit code 1
"""

from __future__ import annotations


class SelectuneError(Exception):
    """What is wrong, where, and what to do next, in one message.

    >>> str(InputError('"atention" is no preset', where="recipe.yaml: select[0]", then="Did you mean attention?"))
    'recipe.yaml: select[0]: "atention" is no preset. Did you mean attention?'
    """

    exit_code = 3

    def __init__(self, what: str, *, where: str | None = None, then: str | None = None) -> None:
        self.what = what
        self.where = where
        self.then = then
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


class MissingPackage(InputError, ImportError):
    """An optional package is needed; the message says how to install it."""


class StorageError(InputError, OSError):
    """A disk is full, or a folder cannot be written."""


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


class VerifyFailed(CheckFailed):
    """The registry is not what its hashes say."""


class Stopped(SelectuneError):
    """A signal arrived; the state was written and the message says how to go on."""

    exit_code = 130


class ProcessLost(SelectuneError, RuntimeError):
    """Another process of a training is gone; what was written last is kept."""

    exit_code = 1
