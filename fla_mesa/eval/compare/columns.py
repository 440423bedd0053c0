"""What a comparison reports of a model. A column is one function and what is said above it, here or in a plug-in:

    @column("weights at zero", digits(3), better=LESS)
    def zeros(run):
        return ...

Its name is its name in report.json; it appears in the tables, and finished runs that lack it are measured when the comparison goes on.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from fla_mesa.eval.measure import quality, speed, squared_error
from fla_mesa.eval.measure.trained import Trained, Value
from fla_mesa.layers.solver import Solver, mesa_layers
from fla_mesa.report.tables import LESS, MORE, Spread, Text, change, digits, percent, size, whole

BATCHES = (1, 8)
DECODED = 32  # tokens a sequence
SOLVED = 8192  # tokens on which other solvers are tried

Figures = Mapping[str, Spread] | list[float] | None  # of a model: by key ("" for a single one), or a curve


@dataclass(frozen=True)
class Column:
    """A figure of a model.

    Attributes:
        name: Its name in report.json and measured.json.
        heading: Of its column; ``{}`` stands for the key where it has several values.
        text: How a value is written.
        function: The figure of a run: a number; several by key; a curve, which has no column; or None where it does not apply.
        better: ``LESS``, ``MORE`` or None.
        measured: Whether it takes the model: it is then measured in a process of its own and stored. Others are read off the run.
        over_seeds: What becomes of several runs: "spread", "median", or "first" (only one is measured).
        table: "quality", "solver" or "speed".
        unless: Names of columns beside which it is not shown.
        fresh: Whether it is measured before the others, in a process that has loaded nothing: of memory.
        shown: Of several values, which have a column, by their keys and the training length.
    """

    name: str
    heading: str
    text: Text
    function: Callable[[Trained], Value]
    better: str | None = None
    measured: bool = True
    over_seeds: str = "spread"
    table: str = "quality"
    unless: tuple[str, ...] = ()
    fresh: bool = False
    shown: Callable[[list[str], int], list[str]] = lambda keys, length: keys

    def of(self, run: Trained) -> Value:
        """The figure of a run; None if it does not apply or has not been measured."""
        return run.measured.get(self.name) if self.measured else self.function(run)

    def over(self, runs: Sequence[Trained]) -> Figures:
        """The figures of a model's runs, or their mean curve; None if a run has none."""
        found = [self.of(run) for run in (runs[:1] if self.over_seeds == "first" else runs)]
        if self.over_seeds == "median":
            found = [value for value in found if value is not None]
        if not found or any(value is None for value in found):
            return None
        if isinstance(found[0], list):
            return [statistics.fmean(at) for at in zip(*found, strict=True)]  # pyright: ignore[reportArgumentType]
        by_key = [value if isinstance(value, dict) else {"": value} for value in found]
        merge = (lambda values: Spread(statistics.median(values))) if self.over_seeds == "median" else Spread.of
        return {key: merge([value[key] for value in by_key]) for key in by_key[0]}  # pyright: ignore


COLUMNS: dict[str, Column] = {}


def column(heading: str, text: Text, **others) -> Callable[[Callable[[Trained], Value]], Column]:
    """Make a function a column of that name; the arguments are those of :class:`Column`."""

    def register(function: Callable[[Trained], Value]) -> Column:
        made = Column(function.__name__, heading, text, function, **others)
        COLUMNS[made.name] = made
        return made

    return register


def missing(measured: Mapping[str, Value], *, first: bool) -> list[str]:
    """Columns that a run still has to be measured for; `first` if it is the first of its model's seeds."""
    wanted = [c for c in COLUMNS.values() if c.measured and (first or c.over_seeds != "first")]
    return [c.name for c in sorted(wanted, key=lambda c: not c.fresh) if c.name not in measured]


# Quality: the same to the last digit when a comparison is run again on the same machine


@column("parameters", whole, measured=False, over_seeds="first")
def parameters(run: Trained) -> Value:
    return run.metrics.parameters


@column("bits per byte", digits(4), better=LESS, measured=False)
def bits_per_byte(run: Trained) -> Value:
    return run.metrics.bits_per_byte


@column("test {}", digits(4), better=MORE, unless=("bits_per_byte",))
def test(run: Trained) -> Value:
    """The score on the test split of a synthetic suite."""
    data = run.test()
    if data is None:
        return None
    with run.precision():
        return quality.score(run.model, data, run.eval_batch)


@column("accuracy", digits(4), better=MORE, measured=False, unless=("bits_per_byte", "test"))
def accuracy(run: Trained) -> Value:
    return run.metrics.accuracy


@column("loss", digits(4), better=LESS, measured=False)
def loss(run: Trained) -> Value:
    return run.metrics.loss


@column("", digits(4))
def loss_by_position(run: Trained) -> Value:
    """Nats at positions 1, 2, ... of blocks that are ``run.extrapolation`` times as long as those of the training.

    It ends before the first position of which the validation data has no token: where there is less of it than a block.
    """
    if not run.is_text:
        return None
    ids, labels = run.validation(times=run.extrapolation)
    with run.precision():
        return (
            quality.loss_by_position(run.model, ids, labels, max(1, run.eval_batch // run.extrapolation)).curve or None
        )


# In-context regression: what is measured against the least error that can be expected


def _errors(run: Trained) -> squared_error.Errors | None:
    """The errors on the test split; None for a model that reads tokens."""
    if run.regression is None:
        return None
    with run.precision():
        return squared_error.measure(run.model, run.regression, run.eval_batch)


@column("error over the optimum", change, better=LESS)
def error_over_optimum(run: Trained) -> Value:
    """The squared error that is not the optimum's own, as a share of that."""
    found = _errors(run)
    return None if found is None else float(found.excess.mean() / found.optimal.mean())


@column("", digits(4))
def squared_error_by_position(run: Trained) -> Value:
    found = _errors(run)
    return None if found is None else found.own.tolist()


@column("", digits(4))
def optimal_error_by_position(run: Trained) -> Value:
    """The squared error of the closed-form optimum on the same sequences."""
    return None if run.regression is None else squared_error.optimal(run.regression).tolist()


def _first_and_latest(keys: list[str], length: int) -> list[str]:
    return [keys[0], *(key for key in keys[1:] if int(key.partition("-")[2]) >= length // 2)]


@column("loss at {}", digits(3), better=LESS, measured=False, shown=_first_and_latest)
def loss_in_ranges(run: Trained) -> Value:
    """Ranges of positions, doubling up to the training length, then beyond it."""
    curve = run.measured.get("loss_by_position")
    if not isinstance(curve, list):
        return None
    ranges = quality.position_ranges(run.metrics.seq_len)
    while ranges[-1][1] <= len(curve):
        ranges.append((ranges[-1][1], 2 * ranges[-1][1]))
    ranges = [(a, min(b, len(curve) + 1)) for a, b in ranges if a <= len(curve)]
    return {quality.range_name((a, b)): statistics.fmean(curve[a - 1 : b - 1]) for a, b in ranges}


# Is the solver in use, and has it converged? Of models with Mesa layers


def _own_loss(run: Trained, solver: Solver | None = None) -> float:
    """On a part of the validation data, perhaps with other settings of the solver; of vectors, their squared error on the test data."""
    if run.regression is not None:
        with run.precision(), (solver or Solver()).on(run.model):
            return float(squared_error.measure(run.model, run.regression, run.eval_batch).own.mean())
    ids, labels = run.validation(tokens=min(run.tokens, SOLVED))
    with run.precision(), (solver or Solver()).on(run.model):
        return quality.loss_by_position(run.model, ids, labels, run.eval_batch).mean


def _against_own(run: Trained, solver: Solver) -> Value:
    """How much the loss changes with other settings of the solver, as a share of its own."""
    return _own_loss(run, solver) / _own_loss(run) - 1 if mesa_layers(run.model) else None


@column("loss with 0 steps", change, table="solver")
def loss_without_steps(run: Trained) -> Value:
    """The change where nothing is solved: the solver's start, q / diag(H + lamb), alone."""
    return _against_own(run, Solver(backend="diagonal"))


@column("loss with 30 steps", change, table="solver")
def loss_with_30_steps(run: Trained) -> Value:
    """As many as the paper evaluates with, for a model that was trained with other numbers."""
    return _against_own(run, Solver(max_cg_steps=30))


@column("loss solved exactly", change, table="solver")
def loss_solved_exactly(run: Trained) -> Value:
    return _against_own(run, Solver(backend="exact"))


@column("iterations", digits(2), measured=False, table="solver")
def iterations(run: Trained) -> Value:
    """Mean over layers, heads and positions of the validation data, as the training recorded it."""
    return run.metrics.solver.get("cg_iterations")


@column("not converged", percent, measured=False, table="solver")
def not_converged(run: Trained) -> Value:
    """Share of these solves that ended above the tolerance."""
    return run.metrics.solver.get("cg_unsolved")


# Speed and memory, of models that read tokens: measured anew in every comparison


@column("training tokens/s", whole, better=MORE, measured=False, over_seeds="median", table="speed")
def training_tokens_per_second(run: Trained) -> Value:
    return run.metrics.tokens_per_second


@column("prefill tokens/s, batch {}", whole, better=MORE, over_seeds="first", table="speed")
def prefill_tokens_per_second(run: Trained) -> Value:
    """The speed of reading prompts of the training length."""
    return _rates(run, run.metrics.seq_len, lambda prompt: lambda: speed.prefill(run.model, prompt))


@column("decode tokens/s, batch {}", whole, better=MORE, over_seeds="first", table="speed")
def decode_tokens_per_second(run: Trained) -> Value:
    """The speed of writing after a prompt of the training length."""

    def decoding(prompt: torch.Tensor) -> Callable[[], None]:
        continued = speed.prefill(run.model, prompt)
        return lambda: continued.decode(DECODED)

    return _rates(run, DECODED, decoding)


def _rates(run: Trained, tokens: int, work: Callable[[torch.Tensor], Callable[[], object]]) -> Value:
    """Tokens a second, by the size of the batch, of what `work` makes of a prompt: so many tokens of each sequence."""
    if run.regression is not None:
        return None
    found = {}
    with run.precision():
        for batch in BATCHES:
            seconds = speed.median_seconds(work(_random_ids(run.model, batch, run.metrics.seq_len)))
            found[str(batch)] = batch * tokens / seconds
    return found


@column("peak memory of a step", size, better=LESS, over_seeds="first", table="speed", fresh=True)
def training_peak_bytes(run: Trained) -> Value:
    """The growth of the accelerator's memory, or of the process on a CPU."""
    if run.regression is not None:
        return None
    with run.precision(), speed.peak_memory() as peak:
        model = run.load()
        speed.training_step(model, _random_ids(model, run.train_batch, run.metrics.seq_len))
    return peak.grown


@column("state at {}", size, better=LESS, over_seeds="first", table="speed")
def state_bytes(run: Trained) -> Value:
    """The memory that it takes to continue one sequence, by the number of tokens read."""
    if run.regression is not None:
        return None
    lengths = sorted({run.metrics.seq_len, run.extrapolation * run.metrics.seq_len})
    with run.precision():
        found = {str(n): speed.prefill(run.model, _random_ids(run.model, 1, n)).state_bytes() for n in lengths}
    return None if None in found.values() else found  # pyright: ignore[reportReturnType]


def _random_ids(model: PreTrainedModel, batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.config.vocab_size, (batch, length), generator=generator).to(model.device)
