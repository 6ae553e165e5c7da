"""The scores of models of others are those of single statements, whatever way they are computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from megatron_kis.common.errors import InputError, JobError
from megatron_kis.common.terms import SPLITS
from megatron_kis.huggingface import ModelAnswers, probe_model
from megatron_kis.probes.questions import QuestionSet, read_questions
from megatron_kis.probes.scoring import RULES
from tests.megatron_kis.huggingface.conftest import Asked
from tests.megatron_kis.huggingface.models import PLAIN, ROWS, TREES, make_model, one_at_a_time

STATEMENT = RULES.index("statement")


@pytest.fixture(scope="module")
def questions(asked: Asked) -> QuestionSet:
    return read_questions(asked.questions, dict.fromkeys(SPLITS))


def differences(answers: ModelAnswers, model: Any, questions: QuestionSet) -> float:
    """The largest difference to single statements: of the right option, and of its lead over the others."""
    alone = one_at_a_time(model, questions)
    right = [question.answer for question in questions.questions]
    scores = np.array([own[answer] for own, answer in zip(alone, right, strict=True)])
    others = [np.delete(own, answer) for own, answer in zip(alone, right, strict=True)]
    lead = scores - [own.max() for own in others]
    mean_lead = scores - [own.mean() for own in others]
    result = answers.result
    found = np.stack([result.scores, result.margins, result.mean_margins])[:, :, STATEMENT]
    return float(np.abs(found - [scores, lead, mean_lead]).max())


@pytest.mark.parametrize("kind", TREES)
def test_a_model_that_takes_trees_is_asked_in_trees(kind: str, questions: QuestionSet) -> None:
    model = make_model(kind, TREES[kind])
    answers = probe_model(model, None, questions)
    assert (answers.computed["computed"], answers.computed["because"]) == ("prefix trees", "")
    assert differences(answers, model, questions) < 1e-4
    assert answers.result.scores[:, STATEMENT].std() > 1


@pytest.mark.parametrize("kind", PLAIN)
def test_a_model_that_does_not_is_asked_in_plain_rows(kind: str, questions: QuestionSet) -> None:
    few = QuestionSet(questions.header, questions.questions[:6])
    model = make_model(kind, PLAIN[kind])
    answers = probe_model(model, None, few)
    assert answers.computed["computed"] == "plain rows"
    reason = "sliding_window is 5" if "sliding_window" in PLAIN[kind] else "no attention_mask and position_ids"
    assert reason in answers.computed["because"]
    assert differences(answers, model, few) < 1e-4


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
def test_a_model_that_ignores_the_mask_or_the_positions_is_found_out(ignored: str, questions: QuestionSet) -> None:
    class Careless(type(make_model("llama", TREES["llama"]))):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None) -> Any:
            given = {"attention_mask": attention_mask, "position_ids": position_ids, ignored: None}
            return super().forward(input_ids=input_ids, **given)

    model = make_model("llama", TREES["llama"])
    model.__class__ = Careless
    answers = probe_model(model, None, questions)
    assert "does not keep to a 4-D mask and positions" in answers.computed["because"]
    assert differences(answers, model, questions) < 1e-4


def test_a_model_that_refuses_the_mask_is_asked_all_the_same(questions: QuestionSet) -> None:
    model = make_model("llama", TREES["llama"])
    forward = model.forward

    def two_dimensions(
        input_ids: Any, attention_mask: Any = None, position_ids: Any = None, use_cache: bool = False
    ) -> Any:
        if attention_mask is not None:
            raise ValueError("expected a mask of 2 dimensions")
        return forward(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)

    model.forward = two_dimensions
    answers = probe_model(model, None, questions)
    assert answers.computed["because"] == ("the model takes no 4-D mask (ValueError: expected a mask of 2 dimensions)")
    assert differences(answers, model, questions) < 1e-4


class Recurrent(torch.nn.Module):
    """A model of a loop of one's own: tokens to logits, and nothing else."""

    def __init__(self, *, backwards: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(ROWS, 16)
        self.body = torch.nn.GRU(16, 16, batch_first=True, bidirectional=backwards)
        self.output = torch.nn.Linear(32 if backwards else 16, ROWS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.output(self.body(self.table(tokens) * 3)[0])
        return logits


def test_any_module_is_asked(questions: QuestionSet) -> None:
    model = Recurrent().train()
    answers = probe_model(model, None, questions)
    assert differences(answers, model, questions) < 1e-4
    assert answers.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert answers.record()["computed"] == "plain rows"
    assert all(module.training for module in model.modules())


def test_a_model_is_left_as_it_was(questions: QuestionSet) -> None:
    model = make_model("gpt2", TREES["gpt2"])
    model.transformer.h[0].train()
    before = {name: module.training for name, module in model.named_modules()}
    probe_model(model, None, questions)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["llama", "phi"])
def test_the_size_of_a_pass_and_the_trees_change_no_score(kind: str, questions: QuestionSet) -> None:
    model = make_model(kind, TREES[kind])
    whole = probe_model(model, None, questions).result
    small = probe_model(model, None, questions, batch_tokens=1).result
    plain = probe_model(model, None, questions, trees=False)
    np.testing.assert_allclose(small.scores, whole.scores, rtol=0, atol=1e-4)
    np.testing.assert_allclose(plain.result.scores, whole.scores, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(plain.result.generated, whole.generated)
    assert plain.computed["because"] == "prefix trees were not wanted"


def test_an_output_layer_of_another_type_is_used_as_it_is(questions: QuestionSet) -> None:
    model = make_model("llama", TREES["llama"])
    exact = probe_model(model, None, questions).result.scores[:, STATEMENT]
    model.bfloat16()
    model.lm_head.float()
    model.lm_head.register_forward_pre_hook(lambda _, given: (given[0].float(),))
    found = probe_model(model, None, questions).result.scores[:, STATEMENT]
    assert np.abs(found - exact).mean() < 1
    packed = make_model("llama", TREES["llama"])
    packed.lm_head = _Packed(packed.lm_head.weight.detach())
    answers = probe_model(packed, None, questions)
    np.testing.assert_allclose(answers.result.scores[:, STATEMENT], exact, rtol=0, atol=1e-4)


class _Packed(torch.nn.Module):
    """An output layer whose weight is no matrix of numbers, as those of quantized models."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = weight.view(torch.uint8)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.weight.view(torch.float32).T


def test_what_is_no_causal_model_is_refused(questions: QuestionSet) -> None:
    with pytest.raises(InputError, match="not a causal model: later tokens change its predictions"):
        probe_model(Recurrent(backwards=True), None, questions)
    with pytest.raises(InputError, match=r"has token .* and the model knows 16"):
        probe_model(torch.nn.Sequential(torch.nn.Embedding(ROWS, 16)), None, questions)
    with pytest.raises(InputError, match="gives dict; logits"):
        probe_model(_Returning({}), None, questions)
    with pytest.raises(InputError, match=r"gives \(3,\) for tokens of \(1, 4\)"):
        probe_model(_Returning(torch.zeros(3)), None, questions)
    with pytest.raises(InputError, match=r"cannot be called with tokens alone \(TypeError: .* logits \[rows"):
        probe_model(_NeedingMore(), None, questions)


class _Returning(torch.nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, tokens: torch.Tensor) -> Any:
        return self.value


class _NeedingMore(torch.nn.Module):
    def forward(self, input_ids: torch.Tensor, decoder_input_ids: torch.Tensor) -> Any:
        return decoder_input_ids


def test_scores_that_are_no_numbers_are_refused(questions: QuestionSet) -> None:
    model = make_model("llama", TREES["llama"])
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(JobError, match=r"not finite in torch\.float32"):
        probe_model(model, None, questions)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_a_shorter_type_is_asked_in_trees_too(dtype: torch.dtype, questions: QuestionSet) -> None:
    model = make_model("llama", TREES["llama"])
    exact = probe_model(model, None, questions).result.scores[:, STATEMENT]
    answers = probe_model(model.to(dtype), None, questions)
    assert answers.computed["computed"] == "prefix trees"
    assert np.abs(answers.result.scores[:, STATEMENT] - exact).mean() < 1


def test_a_state_that_passes_from_branch_to_branch_is_found_in_a_shorter_type(questions: QuestionSet) -> None:
    class Hybrid(type(make_model("llama", TREES["llama"]))):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None) -> Any:
            table = self.get_input_embeddings()(input_ids)
            before = table.float().cumsum(1) - table  # whatever the mask says
            given = {"attention_mask": attention_mask, "position_ids": position_ids}
            return super().forward(inputs_embeds=(table + 0.005 * before).to(table), **given)

    model = make_model("llama", TREES["llama"])
    model.__class__ = Hybrid
    answers = probe_model(model.bfloat16(), None, questions)
    assert "other branches change scores of tokens by" in answers.computed["because"]


def test_questions_that_do_not_fit_are_refused(questions: QuestionSet) -> None:
    short = make_model("gpt2", {**TREES["gpt2"], "n_positions": 16})
    with pytest.raises(InputError, match=r"questions are longer than 16 tokens.* a model with more positions"):
        probe_model(short, None, questions)
    few = make_model("llama", TREES["llama"])
    few.resize_token_embeddings(100)
    with pytest.raises(InputError, match="the model knows 100; make the questions with the tokenizer of this model"):
        probe_model(few, None, questions)
    with pytest.raises(InputError, match=r"^questions: no questions$"):
        probe_model(few, None, QuestionSet(questions.header, ()))
    with pytest.raises(InputError, match="batch_tokens: is 0"):
        probe_model(few, None, questions, batch_tokens=0)
