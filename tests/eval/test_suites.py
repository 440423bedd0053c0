"""Each suite of `fla-mesa eval` from its name to its averages, at tiny size, on stand-ins with the fields of the real data sets."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pytest
from lm_eval.tasks._index import TaskIndex
from wonderwords import RandomWord

from fla_mesa.data import scrambled_words
from fla_mesa.eval.harness import paper_tasks
from fla_mesa.eval.harness.command import main
from fla_mesa.eval.harness.model import FlaMesaLM
from fla_mesa.eval.harness.per_token import add_accuracy_per_token
from fla_mesa.eval.harness.results import Evaluation
from fla_mesa.eval.harness.side_by_side import compare
from fla_mesa.eval.harness.suites import LEARNT, SUITES, Suite, suite
from fla_mesa.eval.harness.tasks import Tasks

OPTIONS = {"text": ["A", "B b", "C", "D"], "label": ["A", "B", "C", "D"]}
PROBLEMS = [{"question": "Who?", "answer": "A", "options": ["I", "you", "he", "she"]}] * 2
ANSWER = {"context": "[DOC] [TLE] The cat is grey. The cat is", "question": "The cat is", "answers": ["grey", "gray"]}
# By data set: a document with the fields that lm-eval or this package reads.
STAND_INS = {
    "EleutherAI/lambada_openai": {"text": "The owl saw the mouse and ate the mouse"},
    "Rowan/hellaswag": {
        "ctx_a": "A man sits.", "ctx_b": "he", "activity_label": "Sitting", "endings": ["sits.", "runs away.", "is.", "x."], "label": "1"
    },
    "EleutherAI/race": {"article": "I am here.", "problems": str(PROBLEMS), "answers": "", "question": ""},
    "baber/piqa": {"goal": "Boil water", "sol1": "Heat it.", "sol2": "Cool it for long.", "label": 0},
    "allenai/winogrande": {"sentence": "The owl ate the mouse as _ was hungry.", "option1": "owl", "option2": "mouse", "answer": "1"},
    "allenai/ai2_arc": {"question": "Which?", "choices": OPTIONS, "answerKey": "B"},
    "lighteval/siqa": {"context": "He ran.", "question": "Why?", "answerA": "fear", "answerB": "for joy", "answerC": "so", "label": "2"},
    "aps/super_glue": {"passage": "Water is wet.", "question": "is water wet", "label": 1},
    "allenai/openbookqa": {"question_stem": "The sun is", "choices": OPTIONS, "answerKey": "C"},
    "LSDSem/story_cloze": {
        **{f"input_sentence_{i}": f"Sentence {i}." for i in range(1, 5)},
        "sentence_quiz1": "So it ends.", "sentence_quiz2": "No.", "answer_right_ending": 2,
    },
    **{f"hazyresearch/based-{name}": {"text": "Name: owl\nDiet: mice\nName:", "value": "owl"} for name in ("fda", "squad", "swde-v2")},
    **{f"hazyresearch/based_{name}": ANSWER for name in ("triviaqa", "nq_2048", "drop")},
}  # fmt: skip
FOLDERS = {
    "lambada",
    "hellaswag",
    "race",
    "piqa",
    "winogrande",
    "arc",
    "siqa",
    "boolq",
    "openbookqa",
    "storycloze",
    "swde",
    "fda",
}
FOLDERS |= {"squad_completion"}


@pytest.fixture
def data(monkeypatch):
    """Data sets of the hub by name, and an index of no more of lm-eval's files than the suites name."""

    def load(path, name=None, **_):
        if path not in STAND_INS:
            raise ConnectionError(f"Couldn't reach {path!r} on the Hub (OfflineModeIsEnabled)")
        rows = datasets.Dataset.from_list([STAND_INS[path]] * 3)
        return datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), rows))

    find = TaskIndex._iter_yaml_files
    of_suites = staticmethod(
        lambda root: (path for path in find(root) if root.name != "tasks" or FOLDERS & {*path.relative_to(root).parts})
    )
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(TaskIndex, "_iter_yaml_files", of_suites)
    return STAND_INS


def evaluated(suite_name, checkpoints, folder, *flags):
    """The rows of the table, as (task, metric): {checkpoint: value}, and what was skipped."""
    arguments = ["--checkpoint", *map(str, checkpoints), "--suite", suite_name, "--limit", "2", "--device", "cpu"]
    assert main([*arguments, "--output_path", str(folder), "--batch_size", "2", *flags]) == 0
    found = json.loads((folder / "comparison.json").read_text())
    rows = {
        (row["task"], row["metric"]): {name: value["value"] for name, value in row["values"].items()}
        for row in found["rows"]
    }
    return rows, found


def test_zero_shot_has_both_averages(data, llama_checkpoint, mesanet_checkpoint, tmp_path):
    rows, found = evaluated("paper-zeroshot", [llama_checkpoint, mesanet_checkpoint], tmp_path)
    assert found["skipped"] == {}
    for part, tasks in suite("paper-zeroshot").parts.items():
        (metric,) = [metric for task, metric in rows if task == f"paper-zeroshot: {part}"]
        assert metric == f"average over {len(tasks)}"
        for name in ("llama", "mesanet"):
            scores = [rows.get((task, "acc_per_token"), rows[task, "acc"])[name] for task in tasks]
            assert rows[f"paper-zeroshot: {part}", metric][name] == pytest.approx(np.mean(scores))
    # All but LAMBADA are multiple choice, and there is a right answer by each of the two rules.
    assert sum(metric == "acc_per_token" for _, metric in rows) == len(suite("paper-zeroshot").tasks) - 1


def test_recall_asks_for_completions_in_the_paper_s_context(data, llama_checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(data, "hazyresearch/based_drop")
    rows, found = evaluated("paper-recall", [llama_checkpoint], tmp_path)
    assert {metric for _, metric in rows} == {"contains", "average over 5 of 6"}
    assert found["max_length"] == {"llama": 2048}
    assert "'hazyresearch/based_drop' on the Hub" in found["skipped"]["llama"]["drop_completion"]
    assert "HF_HOME" in found["skipped"]["llama"]["drop_completion"]
    assert "average over 5 of 6" in capsys.readouterr().out


def test_completions_end_where_the_answer_belongs():
    prompt = paper_tasks.completion_prompt(ANSWER)
    assert prompt == "The cat is grey. The cat is"
    assert paper_tasks.contains_answer(ANSWER, [" GREY, I think"]) == {"contains": 1.0}
    assert paper_tasks.contains_answer(ANSWER, [" green"]) == {"contains": 0.0}


def test_few_shots(llama_checkpoint, tmp_path):
    small = ["--metadata", "samples=1", "prefixes=2", "--model_args", "max_length=2500,truncation=True"]
    arguments = ["--checkpoint", str(llama_checkpoint), "--suite", "paper-fewshot", "--device", "cpu", *small]
    assert main([*arguments, "--batch_size", "6", "--output_path", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*/results_*.json")
    found = json.loads(file.read_text())
    assert set(found["results"]) == set(suite("paper-fewshot").tasks) and found["skipped"] == {}
    assert {name: count["effective"] for name, count in found["n-samples"].items()} == {
        name: 1 if name.endswith("_0shot") else 2 for name in found["results"]
    }


@pytest.mark.parametrize("kind", scrambled_words.KINDS)
def test_scrambled_words(kind):
    words = ["casino", "important", "breezy", "reason", "candle", "yellow", "letters", "window"]
    some, more = (scrambled_words.documents(kind, words, shots, 2, 3, 0) for shots in (1, 3))
    assert len(some) == len(more) == 6
    for short, long in zip(some, more, strict=True):
        assert short.word == long.word
        asked = short.prompt.splitlines()[-1]
        assert asked == long.prompt.splitlines()[-1] and asked.endswith(" =")
        assert asked[:-2] != short.word
        if kind != "random_insertion":
            assert sorted(asked[:-2]) == sorted(short.word)
        if kind == "mid_word_2_anagrams":
            assert (asked[:2], asked[-4:-2]) == (short.word[:2], short.word[-2:])
        # Fewer examples are the beginning of more; a word that is asked for is no example.
        examples = long.prompt.splitlines()[1:-1]
        assert short.prompt.splitlines()[1:-1] == examples[:1] and len(examples) == 3
        assert not any(example.endswith(f"= {word}") for example in examples for _, word, _ in more)
    assert len({each.prompt.rsplit("\n", 1)[0] for each in more}) == 2
    with pytest.raises(ValueError, match=r"10 to show are more than there are, \d"):
        scrambled_words.documents(kind, words, 10, 1, 3, 0)


def test_spread_is_over_groups():
    assert paper_tasks.spread([(0, 1.0), (0, 0.0), (1, 1.0), (1, 1.0)]) == pytest.approx(np.std([0.5, 1], ddof=1))
    assert paper_tasks.spread([(0, 1.0), (0, 0.0)]) == 0


@pytest.fixture
def quick_ruler(monkeypatch):
    """When RULER is imported it fetches what parts sentences, which noise needs none of, and joins all adjectives to all nouns."""
    few = RandomWord()
    few._categories = {kind: words[:50] for kind, words in few._categories.items()}
    monkeypatch.setattr("nltk.download", lambda *_: False)
    monkeypatch.setattr("wonderwords.RandomWord", lambda: few)


def test_needles_by_length(llama_checkpoint, quick_ruler):
    tasks = Tasks(metadata={"pretrained": str(llama_checkpoint), "samples": 2}, include_defaults=False)
    task = tasks.load(["niah_noise_1024"])["tasks"]["niah_noise_1024"]
    docs = list(task.test_docs())
    assert [doc["group"] for doc in docs] == [*range(9), *range(9)]
    for doc in docs:
        assert doc["target"] in doc["prompt"] and doc["prompt"].endswith("mentioned in the provided text is")
        assert 600 < len(doc["prompt"]) < 1024  # a token is a byte here; 128 are left for the answer
    assert paper_tasks.holds_value(docs[0], [f"It is {docs[0]['target'].upper()}."])["acc"] == 1


def test_a_suite_of_needles_has_its_context(data, mesanet_checkpoint, tmp_path, quick_ruler):
    arguments = ["--checkpoint", str(mesanet_checkpoint), "--suite", "paper-needles", "--device", "cpu"]
    assert main([*arguments, "--metadata", "samples=1", "--limit", "1", "--output_path", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*/results_*.json")
    found = json.loads(file.read_text())
    assert set(found["results"]) == {"niah_noise_2048", "niah_noise_4096"}
    assert set(found["skipped"]) == {"niah_essay_2048", "niah_essay_4096"}
    assert found["max_length"] == 4224 and found["cut"] == {}


def test_what_compare_trains_on_is_a_suite_here_as_well():
    assert suite("mqar").tasks[0] == "mqar_64x4" and suite("mqar").averaged
    assert len(suite("mad").tasks) == 6 and suite("regbench").tasks == ("regbench",)
    index = Tasks(include_defaults=False)
    for name in LEARNT:
        assert index.find(suite(name).tasks) == list(suite(name).tasks)


def test_suites_that_do_not_exist_or_go_together(llama_checkpoint, capsys):
    arguments = ["--checkpoint", str(llama_checkpoint), "--suite"]
    assert main([*arguments, "papers"]) == 2
    assert f"suite: allowed are {', '.join(SUITES)}; got 'papers'" in capsys.readouterr().err
    assert main([*arguments, "paper-recall", "--suite", "paper-needles"]) == 2
    assert "paper-recall 2,048, paper-needles 4,224 tokens of context" in capsys.readouterr().err


def test_choices_by_the_likelihood_of_a_token(llama_checkpoint):
    lm = FlaMesaLM(str(llama_checkpoint), device="cpu")

    def scored(likelihoods, target, acc, choices=(" yes", " a long one", " no")):
        row = {
            "arguments": [("Q:", choice) for choice in choices],
            "filtered_resps": [(value, False) for value in likelihoods],
            "target": target,
            "acc": acc,
        }
        results = {"samples": {"t": [row, row]}, "configs": {"t": {"output_type": "multiple_choice"}}}
        results |= {"results": {"t": {}}, "higher_is_better": {"t": {}}}
        add_accuracy_per_token(lm, results)
        return results["results"]["t"].get("acc_per_token,none")

    # 4, 11 and 3 tokens (bytes): by token the second is the likeliest, in all the first.
    for target in (1, "1", " a long one", "a long one"):
        assert scored([-8.0, -11.0, -9.0], target, 0.0) == 1.0
    assert scored([-8.0, -11.0, -9.0], 0, 1.0) == 0.0
    assert scored([-8.0, -11.0, -9.0], "neither", 0.0) is None
    assert scored([-8.0, -11.0, -9.0], 1, 1.0) is None  # lm-eval says otherwise of what is right
    assert scored([-8.0, -7.0], "who knows", 1.0, choices=(" no", " so")) == 1.0


def test_an_average_is_over_what_every_checkpoint_has():
    def evaluation(**scores):
        results = {name: {"acc,none": score, "acc_stderr,none": 0.3} for name, score in scores.items()}
        return Evaluation({"results": results})

    both = {"a": evaluation(t=0.2, u=0.6, v=1.0), "b": evaluation(t=0.4, u=0.8)}
    (row,) = [
        row for row in compare(both, [("s", Suite({"p": ("t", "u", "v")}, averaged=True))]).rows if row.of_a_suite
    ]
    assert (row.task, row.metric) == ("s: p", "average over 2 of 3")
    assert row.values["a"] == pytest.approx((0.4, np.hypot(0.3, 0.3) / 2))
    assert row.values["b"][0] == pytest.approx(0.6)
