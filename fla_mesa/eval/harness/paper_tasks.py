"""Tasks of the paper's appendix L (arXiv 2506.05233) that lm-eval lacks or has in another form.

triviaqa_completion, nq_completion_512 (1024, 2048), drop_completion
    Recall (arXiv 2402.18668): a text that ends where the answer belongs. lm-eval's triviaqa, nq_open and drop are questions.
scrambled_KIND_Nshot
    Scrambled words (arXiv 2005.14165) after N solved ones.
niah_noise_LENGTH, niah_essay_LENGTH
    RULER's single needle (arXiv 2404.06654), of all nine kinds of key and value.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import datasets
import numpy as np

from fla_mesa.data import scrambled_words
from fla_mesa.errors import mistakes_of
from fla_mesa.eval.harness.text_tasks import Splits, number
from fla_mesa.models.checkpoint import tokenizer_for

Config = dict[str, object]
Document = Mapping[str, object]
Score = Callable[[Document, Sequence[str]], Mapping[str, object]]

_COMPLETIONS = {
    "triviaqa_completion": "hazyresearch/based_triviaqa",
    **{f"nq_completion_{tokens}": f"hazyresearch/based_nq_{tokens}" for tokens in (512, 1024, 2048)},
    "drop_completion": "hazyresearch/based_drop",
}
SHOTS = (0, 1, 10, 100)
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
_HAYSTACKS = {"noise": "repeat", "essay": "essay"}  # the paper's names and RULER's
_KINDS = ("words", "numbers", "uuids")  # of keys, and of values
_GENERATED = 128  # tokens that RULER leaves for the answer


def paper_tasks() -> dict[str, Config]:
    """Configurations, as lm-eval's task files hold them, by name."""
    made = [_completion(name, data) for name, data in _COMPLETIONS.items()]
    for kind, shots in itertools.product(scrambled_words.KINDS, SHOTS):
        source = {"custom_dataset": scrambled_documents, "metadata": {"version": 1, "kind": kind, "shots": shots}}
        made.append(_in_groups(f"scrambled_{kind}_{shots}shot", matches_word, 16, ["\n"], source))
    for haystack, tokens in itertools.product(_HAYSTACKS, LENGTHS):
        settings = {"version": 1, "haystack": haystack, "tokens": tokens}
        source = {"custom_dataset": needle_documents, "metadata": settings}
        made.append(_in_groups(f"niah_{haystack}_{tokens}", holds_value, _GENERATED, [], source))
    return {str(config["task"]): config for config in made}


def _completion(name: str, data: str) -> Config:
    return {
        **_generation(name, contains_answer, 48, ["\n"]),
        "dataset_path": data,
        "test_split": "validation",
        "doc_to_text": completion_prompt,
        "doc_to_target": "{{answers[0]}}",
        "metric_list": [{"metric": "contains", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }


def _in_groups(name: str, score: Score, tokens: int, until: Sequence[str], source: Config) -> Config:
    """A task whose documents are made here and come in groups (of a prefix, of a kind), with the spread over these."""
    return {
        **_generation(name, score, tokens, until),
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{target}}",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "std", "aggregation": spread, "higher_is_better": None},
        ],
        **source,
    }


def _generation(name: str, score: Score, tokens: int, until: Sequence[str]) -> Config:
    """An answer of so many tokens at most, which ends at one of `until`."""
    how = {"until": list(until), "max_gen_toks": tokens, "do_sample": False, "temperature": 0.0}
    own = {"task": name, "process_results": score, "generation_kwargs": how}
    return {"output_type": "generate_until", "num_fewshot": 0, **own}


def completion_prompt(doc: Document) -> str:
    """The text of a document and the beginning of a sentence that its answer completes."""
    question = str(doc["question"]).strip()
    context = re.sub(r"\[(?:PAR|DOC|TLE)\]", "", str(doc["context"])).strip()  # TriviaQA's marks
    while question and context.lower().endswith(question.lower()):
        context = context[: -len(question)]
    return f"{context.strip().strip('.')}. {question}"


def contains_answer(doc: Document, results: Sequence[str]) -> dict[str, float]:
    """Whether one of the answers stands in what was generated, in capitals or not."""
    answers: Sequence[str] = doc["answers"]  # pyright: ignore[reportAssignmentType]
    return {"contains": float(any(answer.lower() in results[0].lower() for answer in answers))}


def scrambled_documents(**settings: object) -> Splits:
    """lm-eval's `custom_dataset`, of words of the package wonderwords, 5 to 14 letters long.

    Settings that are read: kind and shots, which the task fixes; samples, the words asked for (200); prefixes (10); seed (0).
    """
    from wonderwords import RandomWord

    drawn = RandomWord().filter(word_min_length=5, word_max_length=14, regex="[a-z]+")
    samples, prefixes, seed = (
        number(settings, *each) for each in (("samples", 200, 1), ("prefixes", 10, 1), ("seed", 0, 0))
    )
    kind, shots = str(settings["kind"]), number(settings, "shots", 0, 0)
    with mistakes_of(ValueError, prefix="scrambled words: "):
        made = scrambled_words.documents(kind, sorted(set(drawn)), shots, prefixes, samples, seed)
    rows = [{"prompt": each.prompt, "target": each.word, "group": each.prefix} for each in made]
    return {"test": datasets.Dataset.from_list(rows)}


def matches_word(doc: Document, results: Sequence[str]) -> dict[str, object]:
    """Whether what was generated is the word, and nothing else."""
    right = float(results[0].strip() == doc["target"])
    return {"acc": right, "std": (doc["group"], right)}


def needle_documents(**settings: object) -> Splits:
    """lm-eval's `custom_dataset`, made by lm-eval's own RULER.

    Settings that are read: haystack and tokens (with the 128 for the answer), which the task fixes; samples of each of the nine kinds of
    key and value (100); tokenizer or else pretrained, which says whose tokens.
    """
    from lm_eval.tasks.ruler.niah_utils import TEMPLATE
    from lm_eval.tasks.ruler.prepare_niah import generate_samples, get_haystack

    tokenizer = tokenizer_for(settings, "niah")
    haystack = _HAYSTACKS[str(settings["haystack"])]
    tokens, samples = number(settings, "tokens", 0, 1), number(settings, "samples", 100, 1)
    made = [
        generate_samples(
            get_haystack(haystack),
            tokenizer,
            max_seq_length=tokens,
            template=TEMPLATE,
            type_haystack=haystack,
            type_needle_k=key,
            type_needle_v=value,
            num_samples=samples,
            tokens_to_generate=_GENERATED,
        )
        for key, value in itertools.product(_KINDS, _KINDS)
    ]
    rows = [
        {"prompt": f"{sample['input']} {sample['gen_prefix']}", "target": sample["outputs"][0], "group": kind}
        for of_each in zip(*made, strict=False)
        for kind, sample in enumerate(of_each)
    ]
    return {"test": datasets.Dataset.from_list(rows)}


def holds_value(doc: Document, results: Sequence[str]) -> dict[str, object]:
    """Whether the needle's value stands in what was generated."""
    right = float(str(doc["target"]).lower() in results[0].lower())
    return {"acc": right, "std": (doc["group"], right)}


def spread(items: Sequence[tuple[int, float]]) -> float:
    """The standard deviation, over groups, of the mean score of a group; 0 for a single one."""
    groups: dict[int, list[float]] = defaultdict(list)
    for group, score in items:
        groups[group].append(score)
    means = [np.mean(scores) for scores in groups.values()]
    return float(np.std(means, ddof=1)) if len(means) > 1 else 0.0
