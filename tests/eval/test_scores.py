"""lm-eval's numbers are the numbers: three ways to bits per byte, choices by argmax, and nothing depends on batching."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from lm_eval import simple_evaluate
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from fla_mesa.data import synthetic
from fla_mesa.eval.harness.model import FlaMesaLM
from fla_mesa.eval.harness.tasks import Tasks

END = 256


def run(lm, task, *include, limit=None, **metadata):
    """lm-eval's results of one task and its samples."""
    manager = Tasks(include, metadata, include_defaults=False)
    results = simple_evaluate(lm, tasks=[task], task_manager=manager, limit=limit, bootstrap_iters=0)
    return results["results"][task], results["samples"][task]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    """Five documents of 200 bytes, some of them not ASCII."""
    import json

    texts = [Path(__file__).read_text()[start : start + 200] for start in (0, 700, 1500, 2100)]
    texts.append("äöü€" * 50)
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file, texts


def losses_by_hand(model, ids):
    """Nats of each token of `ids` but the first."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
    return F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


def test_three_ways_to_bits_per_byte(text_checkpoint, text_file, tmp_path):
    file, texts = text_file
    by_lm_eval = run(FlaMesaLM(str(text_checkpoint), device="cpu"), "heldout_bits_per_byte", text=str(file))[0]

    model = AutoModelForCausalLM.from_pretrained(text_checkpoint).eval()
    documents = [[END, *text.encode()] for text in texts]
    total_bytes = sum(len(text.encode()) for text in texts)
    by_hand = sum(losses_by_hand(model, ids).sum().item() for ids in documents) / math.log(2) / total_bytes

    # The Trainer averages over tokens, here bytes; documents are padded to one length, and the padding is not scored.
    width = max(map(len, documents))
    rows = {
        "input_ids": [ids + [0] * (width - len(ids)) for ids in documents],
        "labels": [ids + [-100] * (width - len(ids)) for ids in documents],
    }
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", per_device_eval_batch_size=5, disable_tqdm=True
    )
    trainer = Trainer(model=model, args=arguments, eval_dataset=Dataset.from_dict(rows))
    by_trainer = trainer.evaluate()["eval_loss"] / math.log(2)

    assert by_lm_eval["bits_per_byte,none"] == pytest.approx(by_hand, rel=2e-3)
    assert by_trainer == pytest.approx(by_hand, rel=2e-3)
    assert by_hand > 1


def test_multiple_choice_is_the_argmax_of_the_likelihoods(text_checkpoint, local_tasks, questions):
    result, samples = run(FlaMesaLM(str(text_checkpoint), device="cpu"), "local_choice", local_tasks)
    model = AutoModelForCausalLM.from_pretrained(text_checkpoint).eval()
    chosen = []
    for item in questions:
        context = item["question"].encode()
        likelihoods = [
            -losses_by_hand(model, [*context, *f" {choice}".encode()])[len(context) - 1 :].sum().item()
            for choice in item["choices"]
        ]
        chosen.append(int(np.argmax(likelihoods)))
    right = np.mean([choice == item["answer"] for choice, item in zip(chosen, questions, strict=True)])
    assert result["acc,none"] == pytest.approx(right)
    by_document = {sample["doc"]["question"]: sample["acc"] for sample in samples}
    assert by_document == {
        item["question"]: float(c == item["answer"]) for item, c in zip(questions, chosen, strict=True)
    }


def test_suite_score_is_that_of_the_suite(suite_checkpoint):
    result, samples = run(
        FlaMesaLM(str(suite_checkpoint), device="cpu", batch_size=4), "recorded_suite", pretrained=str(suite_checkpoint)
    )
    suite = synthetic.get("mqar:vocab_size=64,length=32,num_pairs=2,test=6")
    ((task, rows),) = suite.generate("test")
    model = AutoModelForCausalLM.from_pretrained(suite_checkpoint).eval()
    with torch.no_grad():
        predictions = model(torch.tensor(rows["input_ids"])).logits.argmax(-1).numpy()
    assert result["acc,none"] == pytest.approx(task.metric(predictions, rows)["accuracy"])
    assert [sample["acc"] for sample in samples] == pytest.approx(task.scores(predictions, rows).tolist())


def test_a_task_asks_with_the_checkpoint_s_vocabulary_and_its_own_length(suite_checkpoint):
    _, samples = run(
        FlaMesaLM(str(suite_checkpoint), device="cpu", batch_size=8),
        "mqar_64x4",
        limit=20,
        pretrained=str(suite_checkpoint),
    )
    ids = np.array([sample["doc"]["input_ids"] for sample in samples])
    assert ids.shape == (20, 64)
    assert 32 < ids.max() < 64
    assert all(sum(label != -100 for label in sample["doc"]["labels"]) == 4 for sample in samples)


def test_loss_by_position_is_the_loss_by_hand(text_checkpoint, text_file):
    file, texts = text_file
    lm = FlaMesaLM(str(text_checkpoint), device="cpu", batch_size=3)
    result, samples = run(lm, "heldout_loss_by_position", text=str(file), positions=90, pretrained=str(text_checkpoint))
    encoded = [text.encode() for text in texts]
    blocks = [list(text[start : start + 90]) for text in encoded for start in range(0, len(text) - 89, 90)]
    assert len(samples) == len(blocks) > 5
    model = AutoModelForCausalLM.from_pretrained(text_checkpoint).eval()
    losses = torch.stack([losses_by_hand(model, block) for block in blocks])  # [blocks, 89]: positions 1 to 89
    assert result["loss,none"] == pytest.approx(losses.mean().item(), rel=1e-4)
    for first, last in ((1, 15), (16, 31), (32, 63), (64, 89)):
        assert result[f"loss_{first}_{last},none"] == pytest.approx(losses[:, first - 1 : last].mean().item(), rel=1e-4)
    assert {key.split(",")[0] for key in result if "loss_" in key and "stderr" not in key} == {
        "loss_1_15", "loss_16_31", "loss_32_63", "loss_64_89"
    }  # fmt: skip


@pytest.mark.parametrize("task", ["local_choice", "local_generation"])
def test_batching_and_padding_side_change_no_score_on_text(text_checkpoint, local_tasks, task):
    """One at a time, in batches of two sizes, padded on either side: answers of models with a gap between first and second."""
    responses = []
    for batch_size, side in ((1, "right"), (2, "left"), (5, "right")):
        lm = FlaMesaLM(str(text_checkpoint), device="cpu", batch_size=batch_size)
        lm.tokenizer.padding_side = side
        result, samples = run(lm, task, local_tasks)
        responses.append((result, [sample["filtered_resps"] for sample in samples]))
    for result, answers in responses[1:]:
        if task == "local_generation":
            assert answers == responses[0][1]
        else:
            likelihoods = [
                [[answer[0] for answer in document] for document in answers] for answers in (answers, responses[0][1])
            ]
            assert np.allclose(*likelihoods, rtol=1e-4)
            assert result["acc,none"] == responses[0][0]["acc,none"]
    assert len({str(answer) for answer in responses[0][1]}) > 1


def test_batching_order_changes_no_score_on_sequences(suite_checkpoint):
    suite = synthetic.get("mqar:vocab_size=64,length=32,num_pairs=2,test=6")
    texts = [" ".join(map(str, ids)) for ids in suite.generate("test")[0][1]["input_ids"].tolist()]
    texts = [text if i % 2 else " ".join(text.split()[:20]) for i, text in enumerate(texts)]  # two lengths

    class Request:
        def __init__(self, text):
            self.args = (text,)

    def answers(order, batch_size):
        lm = FlaMesaLM(str(suite_checkpoint), device="cpu", batch_size=batch_size)
        requests = [Request(texts[i]) for i in order]
        tokens, losses = lm.greedy_next_tokens(requests), lm.next_token_losses(requests)
        assert [len(row) for row in tokens] == [len(texts[i].split()) for i in order]
        assert [len(row) for row in losses] == [len(texts[i].split()) - 1 for i in order]
        back = np.argsort(order)
        return [tokens[i] for i in back], [losses[i] for i in back]

    tokens, losses = answers([0, 1, 2, 3, 4, 5], 1)
    for order, batch_size in (([0, 1, 2, 3, 4, 5], 4), ([5, 2, 0, 4, 1, 3], 6)):
        other_tokens, other_losses = answers(order, batch_size)
        assert other_tokens == tokens
        assert all(np.allclose(a, b, rtol=1e-4) for a, b in zip(losses, other_losses, strict=True))


def test_needles_are_scored_by_the_whole_answer(llama_checkpoint):
    lm = FlaMesaLM(str(llama_checkpoint), device="cpu", batch_size=2)
    _, samples = run(lm, "own_haystack_niah_2", length=400, samples=3, pretrained=str(llama_checkpoint))
    for sample in samples:
        text = sample["doc"]["context"] + sample["doc"]["answer"]
        assert len(text) == 400
        assert text.count(sample["doc"]["answer"].strip()) == 2
    model = AutoModelForCausalLM.from_pretrained(llama_checkpoint).eval()
    doc = samples[0]["doc"]
    context = list(doc["context"].encode())
    expected = -losses_by_hand(model, [*context, *doc["answer"].encode()])[len(context) - 1 :].sum().item()
    assert samples[0]["filtered_resps"][0][0] == pytest.approx(expected, rel=1e-4)
