"""Tiny checkpoints with random weights and a byte tokenizer, made once a session."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fla_mesa.data import synthetic
from fla_mesa.models import MesaNetConfig, MesaNetForCausalLM

BYTES = 257  # 256 bytes in order, and the end


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Ids are bytes. The byte-level alphabet maps printable bytes to themselves and the others to code points from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbol = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE({symbol[byte]: byte for byte in range(256)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def llama(vocab_size: int = BYTES) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=2048,
            initializer_range=0.3,  # sharp enough that argmax and likelihoods differ between inputs
            bos_token_id=None,
            eos_token_id=min(256, vocab_size - 1),
        )
    ).eval()


def mesanet(vocab_size: int = BYTES) -> MesaNetForCausalLM:
    torch.manual_seed(0)
    model = MesaNetForCausalLM(
        MesaNetConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            num_hidden_layers=2,
            num_heads=2,
            head_dim=16,
            bos_token_id=None,
            eos_token_id=min(256, vocab_size - 1),
            initializer_range=0.3,
        )
    )
    return model.eval()


@pytest.fixture(scope="session")
def llama_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "llama"
    llama().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def mesanet_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "mesanet"
    mesanet().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def suite_checkpoint(tmp_path_factory):
    """A model of numbers, whose tokenizer records a small MQAR."""
    suite = synthetic.get("mqar:vocab_size=64,length=32,num_pairs=2,test=6")
    path = tmp_path_factory.mktemp("checkpoints") / "mqar"
    mesanet(suite.vocab_size).save_pretrained(path)
    synthetic.number_tokenizer(suite).save_pretrained(path)
    return path
