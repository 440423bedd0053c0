"""TRL's SFTTrainer and PEFT's LoRA as they come: the loss that is reported is the model's own, and every adapter moves."""

import copy

import pytest
import torch

from fla_mesa.models import MesaNetConfig, MesaNetForCausalLM, zoo

TOKENS = {"vocab_size": 64, "bos_token_id": 62, "eos_token_id": 62, "pad_token_id": 63, "max_position_embeddings": 64}
# Documents of unlike lengths, so that padding or packing has something to do.
ROWS = [torch.randint(0, 62, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (20, 7, 13, 16)]


def capped_model(name: str = "mesanet"):
    """Logits as large as the cap, which then matters."""
    torch.manual_seed(0)
    if name == "hybrid":
        attn = {"layers": [1], "num_heads": 2}
        config = MesaNetConfig(hidden_size=32, num_hidden_layers=2, num_heads=2, head_dim=16, attn=attn, **TOKENS)
        model = MesaNetForCausalLM(config)
    else:
        model = zoo.build(name, "2x32", **TOKENS)
    if hasattr(model.config, "logit_soft_cap"):
        model.config.logit_soft_cap = 1.0
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model


def own_loss(model) -> float:
    """The mean over all targets of all documents, each read alone."""
    with torch.no_grad():
        losses = [model(torch.tensor([row]), labels=torch.tensor([row])).loss * (len(row) - 1) for row in ROWS]
    return float(sum(losses) / sum(len(row) - 1 for row in ROWS))


def trained(tmp_path, model, peft_config=None, **options):
    """SFTTrainer after one step of no size, and after it: the loss that it reported, and the model."""
    pytest.importorskip("trl", reason="needs the extra `integrations`")
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    vocabulary = {**{f"w{i}": i for i in range(62)}, "<eos>": 62, "<pad>": 63}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    args = SFTConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=len(ROWS),
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
        **{"max_length": 64, "learning_rate": 0.0, "gradient_checkpointing": False, **options},
    )
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict({"input_ids": ROWS}),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="w0"
        ),
        peft_config=peft_config,
    )
    trainer.train()
    (loss,) = (entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return loss, trainer.model


SETTINGS = {
    "default": {},
    "nll": {"loss_type": "nll"},
    "gradient checkpointing": {"loss_type": "nll", "gradient_checkpointing": True},
    "padding-free": {"loss_type": "nll", "padding_free": True, "max_length": None},
    "padding-free, default loss": {"padding_free": True, "max_length": None},
    "packing": {"loss_type": "nll", "packing": True},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_trl_reports_the_models_own_loss(tmp_path, setting):
    for name in ("mesanet", "hybrid"):
        model = capped_model(name)
        want = own_loss(copy.deepcopy(model).train())
        got, _ = trained(tmp_path, model, **SETTINGS[setting])
        assert got == pytest.approx(want, rel=1e-5), name


LORA = ["mesanet", "hawk_mesa", "matched-transformer", "gla", "transformer", "xlstm"]


@pytest.mark.parametrize("name", LORA)
def test_lora_on_all_linear_layers_moves_every_adapter(name):
    peft = pytest.importorskip("peft", reason="needs the extra `integrations`")
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", r=2, init_lora_weights=False)
    model, x = peft.get_peft_model(zoo.build(name, "2x32", **TOKENS), config).train(), torch.tensor([ROWS[0]])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2, eps=1e-30)
    before = {path: p.detach().clone() for path, p in model.named_parameters() if p.requires_grad}
    assert sum("lora_B" in path for path in before) >= 8
    model(input_ids=x, labels=x).loss.backward()
    optimizer.step()
    after = dict(model.named_parameters())
    assert not [path for path, p in before.items() if torch.equal(after[path], p)]


def test_peft_itself_refuses_the_output_projection_of_mamba2():
    peft = pytest.importorskip("peft", reason="needs the extra `integrations`")
    config = peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", r=2)
    with pytest.raises(ValueError, match="'out_proj' is incompatible with Mamba-based models"):
        peft.get_peft_model(zoo.build("mamba2", "2x32", **TOKENS), config)


def test_trl_trains_lora(tmp_path):
    peft = pytest.importorskip("peft", reason="needs the extra `integrations`")
    config = peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", r=2)
    model = capped_model()
    want = own_loss(copy.deepcopy(model).train())
    got, tuned = trained(tmp_path, model, peft_config=config, learning_rate=1e-2)
    assert got == pytest.approx(want, rel=1e-5)
    assert all(bool(p.abs().max() > 0) for path, p in tuned.named_parameters() if "lora_B" in path)
