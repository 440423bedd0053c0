"""Text and synthetic data as blocks of tokens. Knows nothing about models.

`load_data(DataRequest(spec=...))` is the one door. A new named source is a function from `DataRequest` to `Splits` under
`@register_source("name")`; a new synthetic task a file with a class under `@synthetic.register("name", ...)`.
"""

from fla_mesa.data import regression, synthetic
from fla_mesa.data.block_stream import BlockStream
from fla_mesa.data.packing import Corpus, TokenBlocks, Tokens, tokenize
from fla_mesa.data.request import DataRequest, Splits, Streaming
from fla_mesa.data.sources import load_data, register_source
from fla_mesa.data.sources import names as source_names
from fla_mesa.data.tokenizer import byte_tokenizer

__all__ = [
    "BlockStream",
    "Corpus",
    "DataRequest",
    "Splits",
    "Streaming",
    "TokenBlocks",
    "Tokens",
    "byte_tokenizer",
    "load_data",
    "register_source",
    "regression",
    "source_names",
    "synthetic",
    "tokenize",
]
