"""Law 13: evaluating an "updated" model whose weights equal the base is an error."""

from __future__ import annotations

import pytest

from selectune.delta import applied
from selectune.errors import SameModel
from selectune.evaluation import Suite, Task, evaluate
from selectune.models import Model
from selectune.training import train
from training_fixtures import attention, examples, optim, tiny_model


def asked(model: Model) -> Suite:
    return Suite(tasks=(Task(name="q", records=examples(3, pictures=model.is_vision), max_new_tokens=3),))


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_an_updated_model_whose_weights_equal_the_base_is_an_error(family: str) -> None:
    model = tiny_model(family)
    suite = asked(model)
    base = evaluate(model, suite, stage="base")
    with pytest.raises(SameModel, match=r'stage "digits": the model has the same weights as "base" \([0-9a-f]{12}\): nothing was updated'):
        evaluate(model, suite, stage="digits", base=base)
    delta = train(model, attention(model), examples(pictures=model.is_vision), optim(max_steps=1)).delta
    with applied(model, delta) as updated:
        after = evaluate(updated, suite, stage="digits", base=base)
    assert after.model_id == delta.child
    after.check_differs(base)
    with pytest.raises(SameModel):
        evaluate(model, suite, stage="after it was taken back", base=base)


def test_another_copy_of_the_same_weights_is_the_same_model() -> None:
    base = evaluate(tiny_model("llama"), asked(tiny_model("llama")), stage="base")
    with pytest.raises(SameModel):
        evaluate(tiny_model("llama"), asked(tiny_model("llama")), base=base)
