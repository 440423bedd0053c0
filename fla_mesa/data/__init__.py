"""Text and synthetic data as blocks of tokens. Knows no model.

`load_data(DataRequest(spec=...))` is the one door. A new named source is a function from `DataRequest` to `Splits`,
made known by `register_source("name", function)` in a module that is imported here.
"""

from fla_mesa.data import synthetic
from fla_mesa.data.packing import Corpus, TokenBlocks, Tokens, tokenize
from fla_mesa.data.sources import DataRequest, Splits, load_data, register_source
from fla_mesa.data.sources import names as source_names
from fla_mesa.data.synthetic import source as _suite
from fla_mesa.data.tokenizer import byte_tokenizer

for _name in synthetic.suites():
    register_source(_name, _suite.load)

__all__ = [
    "Corpus",
    "DataRequest",
    "Splits",
    "TokenBlocks",
    "Tokens",
    "byte_tokenizer",
    "load_data",
    "register_source",
    "source_names",
    "tokenize",
]
