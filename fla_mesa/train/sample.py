"""Samples text from a model that a run has saved."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from fla_mesa.train.progress import no_bars


def sample(folder: Path, prompt: str, *, new_tokens: int = 250, temperature: float = 0.8, seed: int = 42) -> str:
    """`prompt` and its continuation by the model saved in `folder`; the same for the same seed.

    Raises what transformers raises if there is no model in `folder`.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with no_bars():
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
    if torch.accelerator.is_available():
        model = model.to(torch.device(str(torch.accelerator.current_accelerator())))  # pyright: ignore[reportArgumentType]
    set_seed(seed)
    tokens = tokenizer(prompt, return_tensors="pt").to(model.device)
    with torch.no_grad():
        made = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
            **tokens, max_new_tokens=new_tokens, do_sample=True, temperature=temperature
        )
    return tokenizer.decode(made[0], skip_special_tokens=True)
