"""An encoder: loaded with its tokenizer, pooled to one vector a text, made trainable in part, named by its digest."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import unicodedata
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from trainer import registry

ADAPTERS = ("lora", "adalora")
TOKENS = 32  # of a text; what is longer says nothing more
BATCH = 64
UNKNOWN_SHARE = 0.05  # of a catalogue's tokens, above which it is not read
PIECES = 0.7  # a character, above which words are spelt out
PIECES_HAN = 1.2  # the same where a character is a word or half of one
SAMPLED = 1_000  # texts
REMEDY = (
    "choose one that was trained on this language or on many, with --set encoder=NAME: "
    "intfloat/multilingual-e5-small, sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2 or xlm-roberta-base"
)
HASHED_DIM = 256
DIGEST = "digest"  # a file with the name of a folder's vectors, where the weights are kept
KEPT = (".json", ".txt", ".model", ".safetensors")  # of an encoder's files; nothing that is unpickled


def load(encoder: str) -> tuple[Any, Any]:
    """Tokenizer and model in float32, on the GPU where there is one; a tokenizer without padding pads with its end."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    if tokenizer.pad_token is None:  # GPT-2: no position is ever looked at that the mask leaves out
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    model = transformers.AutoModel.from_pretrained(encoder, dtype=torch.float32).eval()
    return tokenizer, model.to("cuda" if torch.cuda.is_available() else "cpu")


def tokens(tokenizer: Any, said: Sequence[str]) -> list[list[int]]:
    """The ids of each text, cut at `TOKENS`."""
    made: list[list[int]] = tokenizer(list(said), truncation=True, max_length=TOKENS)["input_ids"]
    return made


def padded(tokenizer: Any, ids: list[list[int]], device: str) -> Any:
    """One batch of texts' ids [n, longest] with its mask; to a GPU it goes from pinned memory, beside other work."""
    import torch

    longest = max(1, *map(len, ids))
    made = torch.full((len(ids), longest), int(tokenizer.pad_token_id))
    mask = torch.zeros((len(ids), longest), dtype=torch.long)
    for i, one in enumerate(ids):
        made[i, : len(one)] = torch.tensor(one, dtype=torch.long)
        mask[i, : len(one)] = 1
    batch = {"input_ids": made, "attention_mask": mask}
    if device != "cpu":
        batch = {name: value.pin_memory().to(device, non_blocking=True) for name, value in batch.items()}
    return batch


def pooled(model: Any, batch: Any) -> Any:
    """Mean of the token states under the mask, unit length: [n, d]."""
    import torch

    states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
    mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
    return torch.nn.functional.normalize(mean, dim=-1)


def half_is_faster(tokenizer: Any, model: Any) -> bool:
    """Whether bfloat16 saves a quarter of the time here, tried on one batch; on a GPU it always does."""
    import torch

    if model.device.type != "cpu":
        return True
    batch = padded(
        tokenizer, tokens(tokenizer, ["sixteen words of which most are short and some are longer"] * BATCH), "cpu"
    )
    took = []
    for half in (False, True, False, True):  # each once to get ready
        begun = time.process_time()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            pooled(model, batch)
        took.append(time.process_time() - begun)
    return took[3] < 0.75 * took[2]


def broken_up(tokenizer: Any, said: Sequence[str]) -> str | None:
    """What is wrong where the tokenizer does not know the script of these texts, with the remedy; None where it does.

    Many unknown tokens mean that different texts look alike; many pieces a character that words are spelt out.
    """
    chosen = list(said)[:: max(1, len(said) // SAMPLED)][:SAMPLED]
    characters = "".join("".join(text.split()) for text in chosen)
    if not characters:
        return None
    ids = [i for one in tokenizer(chosen, add_special_tokens=False)["input_ids"] for i in one]
    unknown = sum(i == tokenizer.unk_token_id for i in ids) / max(len(ids), 1) if tokenizer.unk_token else 0.0
    if tokenizer.unk_token_id == tokenizer.eos_token_id:  # GPT-2 names its end as the unknown and never needs it
        unknown = 0.0
    han = sum(unicodedata.name(c, "").startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL")) for c in characters)
    expected = PIECES_HAN * han + PIECES * (len(characters) - han)
    if unknown <= UNKNOWN_SHARE and len(ids) <= expected:
        return None
    return (
        f"the encoder's tokenizer breaks this catalogue up ({unknown:.0%} of its tokens unknown, "
        f"{len(ids) / len(characters):.1f} pieces a character), so texts say little to the model: {REMEDY}"
    )


def trainable(base: Any, settings: Any, steps: int) -> Any:
    """The encoder with what a TuneSettings trains made trainable, and nothing else; adapters lie around its layers.

    Raises ValueError where `frozen` names no weights or leaves none to train.
    """
    import torch

    if settings.mode in ADAPTERS:
        model = _adapted(base, settings, steps)
    else:
        model = base.requires_grad_(settings.mode == "full")
        if settings.mode == "top":
            stack = max((m for m in base.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
            for layer in stack[-settings.layers :]:
                layer.requires_grad_(True)
        for part in base.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = settings.dropout
    names = [name for name, _ in base.named_parameters()]
    for word in settings.frozen:
        if not any(word in name for name in names):
            some = ", ".join(names[:3])
            raise ValueError(f"tune.frozen = {word!r} is in no name of the encoder's weights, which are {some}, …")
    for name, weight in base.named_parameters():
        if any(word in name for word in settings.frozen):
            weight.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"tune.frozen = {','.join(settings.frozen)} leaves nothing to train: freeze less")
    return model


def _adapted(base: Any, settings: Any, steps: int) -> Any:
    import peft
    from transformers.pytorch_utils import Conv1D

    parts = dict(base.named_modules())
    shape: dict[str, Any] = {
        "lora_alpha": settings.alpha, "lora_dropout": settings.dropout, "target_modules": "all-linear",
        "fan_in_fan_out": any(isinstance(part, Conv1D) for part in parts.values()),  # GPT-2's linear layers
    }  # fmt: skip
    if any("pooler" in name for name in parts):
        shape["exclude_modules"] = r".*pooler.*"  # the vectors do not pass through it
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")  # of models that mix both kinds
        if settings.mode == "lora":
            return peft.get_peft_model(base, peft.LoraConfig(r=settings.rank, **shape))
        config = peft.AdaLoraConfig(
            init_r=max(settings.rank + 1, settings.rank * 3 // 2), target_r=settings.rank, tinit=steps // 10,
            tfinal=steps // 2, deltaT=max(1, steps // 50), total_step=max(steps, 2), **shape,
        )  # fmt: skip
        return peft.get_peft_model(base, config)


def encoder_of(version: Path | None, shared: Path, default: str | None) -> str | None:
    """The encoder that a version was trained with: one of the shared folder, else the one that the settings name."""
    if version is not None:
        named = msgspec.json.decode((version / "config.json").read_bytes())["encoder"]
        kept = shared / "encoders" / Path(named).name
        if kept.is_dir():
            return str(kept)
    return default


def digest(encoder: str | None) -> str:
    """What names an encoder's vectors: a hash of its weights (of its name, where it comes from a hub)."""
    if encoder is None:
        return f"hashed-{HASHED_DIM}"
    if (named := Path(encoder) / DIGEST).is_file():
        return named.read_text(encoding="ascii").strip()
    made = hashlib.blake2b(digest_size=8)
    weights = sorted(Path(encoder).glob("*.safetensors")) or sorted(Path(encoder).glob("pytorch_model*.bin"))
    for path in weights:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                made.update(block)
    if not weights:
        made.update(encoder.encode())
    return made.hexdigest()


def keep(encoder: str, shared: Path) -> Path:
    """The encoder in the shared folder, copied there where it is not yet: its versions are whole without its source."""
    path = shared / "encoders" / (name := digest(encoder))
    if path.is_dir():
        return path
    temporary = path.with_name(f".{uuid.uuid4().hex}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    if list(Path(encoder).glob("*.safetensors")):
        for file in sorted(Path(encoder).iterdir()):
            if file.suffix in KEPT:
                shutil.copyfile(file, temporary / file.name)
    else:  # from a hub, or pickled
        for part in load(encoder):
            part.save_pretrained(temporary)
    (temporary / DIGEST).write_text(name, encoding="ascii")
    registry.settle(temporary, path)
    return path
