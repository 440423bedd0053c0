"""The parts of flash-linear-attention that this package uses, and the versions that were tested.

fla's pieces move between releases, its private ones without notice. Each is listed here once, so that a new fla fails by name in
tests/test_fla_api.py rather than somewhere inside a model; the same test finds what the package uses and this file does not list.
Importing this module imports neither fla nor torch.
"""

from __future__ import annotations

import importlib
import re
import warnings

# From the first version that was tried to the next minor version, which was not; the same range stands in pyproject.toml.
OLDEST, BELOW = "0.6.0", "0.7"
HOW_TO_INSTALL = f"pip install 'flash-linear-attention>={OLDEST},<{BELOW}'"

# The value is there, of whatever kind: a kernel, a constant, a base class or a configuration that is used as a whole.
EXISTS = None
# A function that a CPU stand-in replaces: its signature is compared, in full, when the stand-in is put in place.
STAND_IN = "the signature of its stand-in"

# Name -> the parameters of it that are used, in fla's order; whatever else it takes must be optional. (`a.b.C` stands for the constructor.)
USED: dict[str, str | None] = {
    # utilities
    "fla.utils.autotune_cache_kwargs": EXISTS,
    "fla.utils.get_multiprocessor_count": "tensor_idx",
    "fla.utils.input_guard": "fn",
    "fla.utils.tensor_cache": "fn",
    "fla.backends._DISPATCH_DISABLED": EXISTS,
    "fla.backends._function_registries": EXISTS,
    "fla.backends._operation_registries": EXISTS,
    "fla.backends.BaseBackend": EXISTS,
    "fla.backends.BaseBackend.verify": "self function_name args kwargs",
    "fla.backends.dispatch": "entry_point",
    "fla.backends.register": "entry_point backend",
    # pieces of ops
    "fla.ops.utils.chunk_local_cumsum": "g chunk_size reverse scale cu_seqlens output_dtype chunk_indices",
    "fla.ops.utils.prepare_chunk_indices": "cu_seqlens chunk_size",
    "fla.ops.utils.prepare_chunk_offsets": "cu_seqlens chunk_size",
    "fla.ops.utils.constant.RCP_LN2": EXISTS,
    "fla.ops.utils.op.exp": EXISTS,
    "fla.ops.utils.op.exp2": EXISTS,
    # pieces of fla's own Mesa op, which the back end "fla" composes anew
    "fla.ops.common.chunk_h.chunk_bwd_dh": "q k v do h0 dht scale g cu_seqlens chunk_size",
    "fla.ops.common.chunk_o.chunk_fwd_o": "q k v h g scale cu_seqlens chunk_size chunk_indices",
    "fla.ops.mesa_net.chunk_cg_solver_bwd.chunk_mesa_cg_bwd": (
        "dq k h g_local_cumsum beta lamb cu_seqlens chunk_size max_CG_iteration output_dtype chunk_indices"
    ),
    "fla.ops.mesa_net.chunk_h_fwd.chunk_mesa_fwd_h": (
        "k v g beta h_init h_kv_init output_final_state cu_seqlens chunk_size"
    ),
    "fla.ops.mesa_net.chunk_h_kk_intra_bwd.chunk_mesa_net_h_kk_bwd_intra_fn": (
        "k beta g h dh q_star dq dk_beta cu_seqlens chunk_size chunk_indices"
    ),
    "fla.ops.mesa_net.chunk_h_kv_intra_bwd.chunk_mesa_net_h_kv_bwd_intra_fn": (
        "q_star k v beta h_kv dh_kv g do cu_seqlens chunk_size chunk_indices"
    ),
    # kernels that ours are counted beside
    "fla.ops.mesa_net.chunk_cg_solver_bwd.chunk_fwd_mesa_cg_dim64_kernel": EXISTS,
    "fla.ops.mesa_net.chunk_cg_solver_fwd.chunk_fwd_mesa_cg_dim64_kernel": EXISTS,
    "fla.ops.mesa_net.chunk_h_fwd.chunk_mesa_net_fwd_kernel_h": EXISTS,
    "fla.ops.mesa_net.chunk_h_kk_intra_bwd.chunk_mesa_net_h_kk_bwd_intra_kernel": EXISTS,
    "fla.ops.mesa_net.chunk_h_kv_intra_bwd.chunk_mesa_net_h_kv_bwd_intra_kernel": EXISTS,
    "fla.ops.mesa_net.decoding_one_step.mesa_net_decoding_one_step_kernel": EXISTS,
    # ops
    "fla.ops.delta_rule.chunk_delta_rule": STAND_IN,
    "fla.ops.delta_rule.fused_recurrent_delta_rule": STAND_IN,
    "fla.ops.gated_delta_rule.chunk_gated_delta_rule": STAND_IN,
    "fla.ops.gated_delta_rule.fused_recurrent_gated_delta_rule": STAND_IN,
    "fla.ops.gla.chunk_gla": STAND_IN,
    "fla.ops.gla.fused_recurrent_gla": STAND_IN,
    "fla.ops.hgrn.chunk_hgrn": STAND_IN,
    "fla.ops.hgrn.fused_recurrent_hgrn": STAND_IN,
    "fla.ops.kda.chunk_kda": STAND_IN,
    "fla.ops.kda.fused_recurrent_kda": STAND_IN,
    "fla.ops.kda.gate.fused_kda_gate": STAND_IN,
    "fla.ops.mesa_net.chunk_mesa_net": STAND_IN,
    "fla.ops.mesa_net.mesa_net_decoding_one_step": STAND_IN,
    "fla.ops.simple_gla.chunk_simple_gla": STAND_IN,
    "fla.ops.simple_gla.fused_chunk_simple_gla": STAND_IN,
    "fla.ops.simple_gla.fused_recurrent_simple_gla": STAND_IN,
    "fla.ops.simple_gla.parallel_simple_gla": STAND_IN,
    "fla.ops.utils.cumsum.chunk_global_cumsum": STAND_IN,
    # modules
    "fla.modules.FusedCrossEntropyLoss": "ignore_index reduction logit_softcapping inplace_backward",
    "fla.modules.FusedLinearCrossEntropyLoss": "ignore_index logit_softcapping reduction use_l2warp",
    "fla.modules.FusedRMSNormGated": "hidden_size eps",
    "fla.modules.FusedRMSNormGated.forward": "self x g",
    "fla.modules.GatedMLP": "hidden_size hidden_ratio intermediate_size hidden_act fuse_swiglu",
    "fla.modules.GatedMLP.forward": "self x kwargs",
    "fla.modules.RMSNorm": "hidden_size eps dtype",
    "fla.modules.RMSNorm.forward": "self x",
    "fla.modules.RotaryEmbedding": "dim",
    "fla.modules.RotaryEmbedding.forward": "self q k seqlen_offset cu_seqlens max_seqlen",
    "fla.modules.ShortConvolution": "hidden_size kernel_size bias activation",
    "fla.modules.ShortConvolution.forward": "self x cache output_final_state cu_seqlens",
    "fla.modules.activations.ops.logsigmoid_bwd": STAND_IN,
    "fla.modules.activations.ops.logsigmoid_fwd": STAND_IN,
    "fla.modules.activations.powglu": EXISTS,
    "fla.modules.activations.swiglu": EXISTS,
    "fla.modules.activations.ops.powglu_fwd": STAND_IN,
    "fla.modules.activations.ops.powglu_fwdbwd": STAND_IN,
    "fla.modules.activations.ops.sigmoid_bwd": STAND_IN,
    "fla.modules.activations.ops.sigmoid_fwd": STAND_IN,
    "fla.modules.activations.ops.swiglu_fwd": STAND_IN,
    "fla.modules.activations.ops.swiglu_fwdbwd": STAND_IN,
    "fla.modules.activations.ops.swiglu_linear": STAND_IN,
    "fla.modules.activations.ops.swish_bwd": STAND_IN,
    "fla.modules.activations.ops.swish_fwd": STAND_IN,
    "fla.modules.causal_conv1d.causal_conv1d": "x weight bias initial_state output_final_state activation cu_seqlens",
    "fla.modules.causal_conv1d.ops.causal_conv1d_bwd": STAND_IN,
    "fla.modules.causal_conv1d.ops.causal_conv1d_fwd": STAND_IN,
    "fla.modules.causal_conv1d.ops.causal_conv1d_update": STAND_IN,
    "fla.modules.causal_conv1d.ops.causal_conv1d_update_states": STAND_IN,
    "fla.modules.fused_cross_entropy.ops.FusedCrossEntropyLoss": EXISTS,
    "fla.modules.fused_cross_entropy.ops.FusedCrossEntropyLoss.forward": STAND_IN,
    "fla.modules.fused_cross_entropy.ops.cross_entropy_bwd": STAND_IN,
    "fla.modules.fused_cross_entropy.ops.cross_entropy_fwd": STAND_IN,
    "fla.modules.fused_cross_entropy.ops.cross_entropy_loss": (
        "logits target label_smoothing logit_scale lse_square_scale logit_softcapping ignore_index inplace_backward process_group"
    ),
    "fla.modules.fused_linear_cross_entropy.ops.fused_linear_cross_entropy_bwd": STAND_IN,
    "fla.modules.fused_linear_cross_entropy.ops.fused_linear_cross_entropy_fwd": STAND_IN,
    "fla.modules.fused_linear_cross_entropy.ops.logsumexp_fwd": STAND_IN,
    "fla.modules.norm.fused_norm_gate.layer_norm_gated_bwd": STAND_IN,
    "fla.modules.norm.fused_norm_gate.layer_norm_gated_fwd": STAND_IN,
    "fla.modules.norm.l2norm.l2norm": "x",
    "fla.modules.norm.l2norm.l2norm_bwd": STAND_IN,
    "fla.modules.norm.l2norm.l2norm_fwd": STAND_IN,
    "fla.modules.norm.layernorm.group_norm": "x weight bias eps is_rms_norm num_groups",
    "fla.modules.norm.layernorm.layer_norm_bwd": STAND_IN,
    "fla.modules.norm.layernorm.layer_norm_fwd": STAND_IN,
    "fla.modules.norm.layernorm_gated.layernorm_fn": STAND_IN,
    "fla.modules.norm.layernorm_gated.rmsnorm_fn": STAND_IN,
    "fla.modules.rotary.rotary_embedding": "x cos sin",
    "fla.modules.rotary.ops.rotary_embedding_fwdbwd": STAND_IN,
    # layers
    "fla.layers.attn.Attention": (
        "hidden_size num_heads num_kv_heads qkv_bias window_size rope_theta max_position_embeddings layer_idx"
    ),
    "fla.layers.attn.flash_attn_func": EXISTS,
    "fla.layers.attn.flash_attn_varlen_func": EXISTS,
    "fla.layers.mamba2.Mamba2": EXISTS,
    "fla.layers.mamba2.Mamba2.forward": STAND_IN,
    "fla.layers.mesa_net.chunk_mesa_net": EXISTS,
    "fla.layers.mesa_net.mesa_net_decoding_one_step": EXISTS,
    "fla.layers.utils.get_layer_cache": "module past_key_values",
    "fla.layers.utils.index_first_axis": EXISTS,
    "fla.layers.utils.pad_input": "hidden_states indices batch_size seq_len",
    "fla.layers.utils.update_layer_cache": "module past_key_values kwargs",
    # models
    "fla.models.DeltaNetConfig": EXISTS,
    "fla.models.GLAConfig": EXISTS,
    "fla.models.GatedDeltaNetConfig": EXISTS,
    "fla.models.KDAConfig": EXISTS,
    "fla.models.Mamba2Config": EXISTS,
    "fla.models.MesaNetConfig": EXISTS,
    "fla.models.RetNetConfig": EXISTS,
    "fla.models.TransformerConfig": EXISTS,
    "fla.models.cache_utils.Cache": EXISTS,
    "fla.models.configuration_utils.get_attention_spec": "attn layer_idx",
    "fla.models.configuration_utils.parse_attention_config": "attn num_hidden_layers",
    "fla.models.generation_utils.FLAUnsupportedCacheGenerationMixin": EXISTS,
    "fla.models.mesa_net.configuration_mesa_net.MesaNetConfig": EXISTS,
    "fla.models.mesa_net.configuration_mesa_net.MesaNetConfig.model_type": EXISTS,
    "fla.models.modeling_utils.FLAForCausalLM": "config",
    "fla.models.modeling_utils.FLAForCausalLM._compute_logits_and_loss": (
        "self hidden_states labels logits_to_keep shift_labels num_items_in_batch fuse_linear_cross_entropy use_l2warp"
    ),
    "fla.models.modeling_utils.FLAModel": "config",
    "fla.models.modeling_utils.FLAPreTrainedModel": "config",
    "fla.models.modeling_utils.FLAPreTrainedModel._init_weights": "self module",
    "fla.models.utils.FLAGenerationMixin": EXISTS,
    "fla.models.utils.FLAGenerationMixin.prepare_inputs_for_generation": "self past_key_values",
    "fla.models.utils.Cache": EXISTS,
    "fla.models.utils.Cache.from_legacy_cache": EXISTS,
    "fla.models.utils.Cache.get_seq_length": "self layer_idx",
    "fla.models.utils.Cache.update": "self recurrent_state attn_state conv_state layer_idx offset cache_kwargs",
}


def require_supported_fla() -> None:
    """Checks that a supported version of flash-linear-attention is installed.

    Raises:
        ImportError: It is not.
    """
    needed = f"fla_mesa needs flash-linear-attention >= {OLDEST}, < {BELOW}"
    try:
        with warnings.catch_warnings():
            # Without an accelerator that is nothing to warn of: there are stand-ins.
            warnings.filterwarnings("ignore", message="Triton is not supported on current platform")
            fla = importlib.import_module("fla")
    except ImportError as error:
        raise ImportError(f"{needed}, which cannot be imported ({error}). Install it with: {HOW_TO_INSTALL}") from error
    found = getattr(fla, "__version__", "of unknown version")
    if not _numbers(OLDEST) <= _numbers(found) < _numbers(BELOW):
        raise ImportError(f"{needed}, but {found} is installed. Install a supported version with: {HOW_TO_INSTALL}")


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version: "0.6.1.dev3+cpu" -> (0, 6, 1); () if it does not start with numbers."""
    leading = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()
