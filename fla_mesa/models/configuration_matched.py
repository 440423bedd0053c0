"""Configuration of the matched family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fla_mesa.layers.matched import RULES
from fla_mesa.layers.matched.attention import SoftmaxRule
from fla_mesa.models.configuration_mesanet import MesaNetConfig
from fla_mesa.models.settings_table import COUNT, POSITIVE, setting

# What every model of a comparison is given, whether its rule has a use for it or not.
_OF_THE_MODEL = {"hidden_size", "num_heads", "head_dim", "norm_eps"}


class MatchedConfig(MesaNetConfig):
    """A MesaNet with another recurrence rule (arXiv 2506.05233, appendix E.1).

    A setting that none of its rules takes (``RULES[name].mixer.settings()``) must keep its default.

    Raises:
        ValueError: A value is out of range, or no rule takes it.
        TypeError: A key is unknown.
    """

    model_type = "mesanet_matched"

    rule: str | Sequence[str] = setting(
        "mesa", None, "A name in fla_mesa.layers.matched.RULES, or several that take turns over the layers."
    )
    recurrence_width: int | None = setting(
        None, COUNT.or_none(), "Width of the recurrence of rg_lru layers, a multiple of num_heads, which is the number of blocks in the "
        "matrices of its gates. None for the one that gives the layer 4 D^2 parameters.",
    )  # fmt: skip
    window_size: int = setting(64, COUNT, "How many tokens a query of a sliding_softmax layer sees, itself included.")
    ridge_ratio: float = setting(0.02, POSITIVE, "Of gka layers: the ridge is this times the Frobenius norm of H.")
    chebyshev_steps: int = setting(30, COUNT, "Iterations of the solver of gka layers.")
    rule_settings: dict[str, Any] | None = setting(
        None, None, "Settings of rules that have no line here, those of plug-ins: {'name': value}."
    )

    def _check_together(self) -> None:
        rules = [self.rule] if isinstance(self.rule, str) else list(self.rule)
        unknown = sorted({str(name) for name in rules} - set(RULES))
        if unknown:
            raise ValueError(f"rule must be among {', '.join(RULES)}; got {', '.join(unknown)}")
        self.rule = rules
        super()._check_together()
        if not 1 <= len(rules) <= self.num_hidden_layers:
            raise ValueError(
                f"rule must name 1 to {self.num_hidden_layers} rules, one a layer at most; got {len(rules)}"
            )
        own = {name for rule in rules for name in RULES[rule].mixer.settings()} - set(type(self).__dataclass_fields__)
        if unknown := sorted(set(self.rule_settings or {}) - own):
            raise ValueError(
                f"rule_settings of {', '.join(rules)} may be {', '.join(sorted(own)) or 'none'}; got {', '.join(unknown)}"
            )
        for name in _settings_without_meaning(rules):
            default, value = type(self).__dataclass_fields__[name].default, getattr(self, name)
            if value != (list(default) if isinstance(default, tuple) else default):
                takers = [other for other in RULES if name in RULES[other].mixer.settings()]
                raise ValueError(
                    f"{name} has no effect on {', '.join(dict.fromkeys(rules))}, only on {', '.join(takers)}: it must be "
                    f"{default!r}; got {value!r}"
                )
        if self.head_dim % 2 and any(issubclass(RULES[name].mixer, SoftmaxRule) for name in rules):
            raise ValueError(f"head_dim must be even for RoPE; got {self.head_dim}")
        if self.recurrence_width is not None and self.recurrence_width % self.num_heads:
            raise ValueError(
                f"recurrence_width must be a multiple of num_heads = {self.num_heads}; got {self.recurrence_width}"
            )

    def _convolves(self) -> bool:
        optional = super()._convolves()
        of_layers = [RULES[name].mixer.settings() for name in self.rule]
        # RG-LRU always has its convolution.
        return any("conv_size" in own and (optional or "use_short_conv" not in own) for own in of_layers)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in :class:`MesaNetConfig`; ``softmax`` in old files is now ``softmax_matched``."""
        if "transformers_version" in config_dict and "window_size" not in config_dict:
            config_dict = _brought_up_to_date(config_dict)
        return super().from_dict(config_dict, **kwargs)

    def rule_of(self, layer_idx: int) -> str:
        """The rule of a layer."""
        return self.rule[layer_idx % len(self.rule)]


def _settings_without_meaning(rules: Sequence[str]) -> list[str]:
    """Settings of some rule that none of these rules uses."""
    taken = [RULES[name].mixer.settings() for name in rules]
    all_settings = set().union(*(rule.mixer.settings() for rule in RULES.values()))
    return sorted(all_settings & set(MatchedConfig.__dataclass_fields__) - set().union(*taken) - _OF_THE_MODEL)


def _brought_up_to_date(saved: dict[str, Any]) -> dict[str, Any]:
    """Updates a file from before the paper's softmax attention existed and before unused settings were refused."""
    rules = saved.get("rule", "mesa")
    rules = [
        "softmax_matched" if name == "softmax" else name for name in ([rules] if isinstance(rules, str) else rules)
    ]
    meaningless = _settings_without_meaning([name for name in rules if name in RULES])
    return {**{name: value for name, value in saved.items() if name not in meaningless}, "rule": rules}
