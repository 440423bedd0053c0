"""Synthetic suites that need no download, written from their papers' parameters.

from fla_mesa.data import synthetic
suite = synthetic.get("mqar:vocab_size=256,length=64,num_pairs=4,train=20000")
train, validation = suite.dataset("train"), suite.dataset("validation")     # input_ids, labels

name                            task                                                    paper
mqar                            multi-query associative recall                          arXiv 2312.04927
mad-...                         the six tasks of MAD                                    arXiv 2403.17844
regbench                        regular languages learnt in context                     arXiv 2401.12973
own-haystack-niah-1, -2, -3     single-needle retrieval, with a haystack of our own     after arXiv 2404.06654
"""

# isort: off
from fla_mesa.data.synthetic import (  # noqa: F401 (they register themselves; the order is that of messages)
    mqar,
    in_context_recall,
    fuzzy_recall,
    memorization,
    compression,
    selective_copying,
    regbench,
    own_haystack_niah,
)

# isort: on
from fla_mesa.data.synthetic.registry import register
from fla_mesa.data.synthetic.suite import Suite, get, merge_specs, suites
from fla_mesa.data.synthetic.task import IGNORE, SPLITS, Task
from fla_mesa.data.synthetic.tokenizer import number_tokenizer

__all__ = [
    "IGNORE",
    "SPLITS",
    "Suite",
    "Task",
    "get",
    "merge_specs",
    "number_tokenizer",
    "register",
    "suites",
]
