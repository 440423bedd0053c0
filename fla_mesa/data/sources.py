"""Named sources of data: the values of `--data`.

    @register_source("recall")
    def recall(request: DataRequest) -> Splits: ...

`--data recall` and `--data recall:settings` are then that function's, here or from a plug-in.
"""

from collections.abc import Callable
from typing import TypeVar

from fla_mesa.data import regression, synthetic
from fla_mesa.data.request import DataRequest, Splits
from fla_mesa.data.synthetic.source import load as load_suite
from fla_mesa.data.text import load_text
from fla_mesa.data.text_stream import load_stream
from fla_mesa.errors import UserError

Loader = Callable[[DataRequest], Splits]
Decorated = TypeVar("Decorated", bound=Loader)

_REGISTERED: dict[str, Loader] = {regression.NAME: regression.load_regression}


def register_source(name: str) -> Callable[[Decorated], Decorated]:
    """Decorator of a function from a request to its data, under a name of its own. Raises ValueError if the name is taken."""

    def add(loader: Decorated) -> Decorated:
        if name in names():
            raise ValueError(f"name: {name!r} is already a source")
        _REGISTERED[name] = loader
        return loader

    return add


def names() -> list[str]:
    """Names of all registered sources; every synthetic suite is one."""
    return ["stdlib", *synthetic.suites(), *_REGISTERED]


def load_data(request: DataRequest) -> Splits:
    """Reads, checks and tokenizes the requested data and cuts it into blocks.

    `spec` is, in this order: the name of a source, which settings may follow after a colon; a file or folder; the name of a data set on
    the Hugging Face hub. Validation is `request.validation`, else the data's own validation split, else a fixed part that is held out.
    With `request.streaming` nothing but what is held out is read here.

    Raises:
        UserError: A file or an option is at fault; the message names it.
    """
    name = request.spec.partition(":")[0]
    if request.streaming is not None:
        if name in names():
            raise UserError(f"streaming: does not apply to --data {name}, which is not read as a stream")
        return load_stream(request)
    if name in synthetic.suites():
        return load_suite(request)
    return _REGISTERED.get(name, load_text)(request)
