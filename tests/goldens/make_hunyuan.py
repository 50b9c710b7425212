"""Writes HunyuanDiT's golden data with the reference implementation, in f32 on the CPU.

It needs the environment of `make_pixart.py`.

    python make_hunyuan.py [FOLDER]

It writes the checkpoints (`hunyuan-*/`) and their `cases/` to FOLDER, by default the folder of this script. Nothing is
downloaded, and a second run on the same machine writes equal files.
"""

import io
import json
import random
from pathlib import Path

import diffusers
import sentencepiece
import torch
from diffusers import AutoencoderKL, HunyuanDiT2DModel
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import SUPPORTED_SHAPE, map_to_standard_shapes
from transformers import BertConfig, BertModel, BertTokenizer, T5Config, T5EncoderModel

import vocabulary
from checkpoints import randomize, t5_config, vae_config, write_json, write_weights
from make_pixart import prepare
from pipeline_cases import NEGATIVE, PROMPT, Recorder, load, run_both, size, write_case
from text_cases import TEXTS

VERSION = {"_diffusers_version": "0.29.0.dev0"}
# The fixed lengths of both texts in the pipeline.
TEXT_LEN, TEXT_LEN_T5 = 77, 256
PIECES = 880
# f32 differs from f64 by less than this in every case; the tests' tolerances are larger.
MAX_ROUNDING = 2e-5

CHINESE = """
    一只 红色 的 狐狸 坐 在 沙发 上 一个 宇航员 骑 马 白色 的 猫 和 狗 在 花园 里 奔跑 山 水 画 风格 夜晚 的 城市 灯光 蓝色 大海
    金色 阳光 森林 小 木屋 雪 花 古代 宫殿 龙 凤 飞 鸟 月亮 星空 竹林 熊猫 吃 竹子 茶壶 油画 高清 摄影 模糊 低 质量
""".split()
CHINESE_PROMPT = "一只红色的狐狸坐在沙发上，油画风格"
LONG_CHINESE = "，".join("".join(CHINESE[i : i + 9]) for i in range(0, 54, 3))
# Parts of words in BERT's vocabulary, beside all letters, digits and characters.
WORDS = """
    a an the on of in and photo fox cat dog red sofa beside broken tea ##pot sit ##ting ##ing blur ##ry low quality
    high light ##house two three naive cafe zurich
""".split()

TOKEN_TEXTS = TEXTS + [
    CHINESE_PROMPT,
    LONG_CHINESE,
    "鱻龘 rare characters 靐",
    "混合 mixed 文字 text，标点。「」！",
    "１２３ ＡＢＣ 全角",
    "\U00020bb7野家",
]


def transformer_config(layers: int, **changes) -> dict:
    """The published `transformer/config.json` with smaller numbers."""
    config = {
        "_class_name": "HunyuanDiT2DModel",
        "activation_fn": "gelu-approximate",
        "attention_head_dim": 8,
        "cross_attention_dim": 32,
        "cross_attention_dim_t5": 32,
        "hidden_size": 32,
        "in_channels": 4,
        "learn_sigma": True,
        "mlp_ratio": 3.3,
        "norm_type": "layer_norm",
        "num_attention_heads": 4,
        "num_layers": layers,
        "patch_size": 2,
        "pooled_projection_dim": 24,
        "sample_size": 16,
        "text_len": TEXT_LEN,
        "text_len_t5": TEXT_LEN_T5,
    }
    return config | VERSION | changes


def scheduler_config(beta_end: float) -> dict:
    return {
        "_class_name": "DDPMScheduler",
        "beta_end": beta_end,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "dynamic_thresholding_ratio": 0.995,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": False,
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "thresholding": False,
        "timestep_spacing": "leading",
        "trained_betas": None,
        "variance_type": "fixed_small",
    } | VERSION


def bert_config(**changes) -> dict:
    config = {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "classifier_dropout": None,
        "directionality": "bidi",
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 80,
        "model_type": "bert",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "output_past": True,
        "pad_token_id": 0,
        "pooler_fc_size": 768,
        "pooler_num_attention_heads": 12,
        "pooler_num_fc_layers": 3,
        "pooler_size_per_head": 128,
        "pooler_type": "first_token_transform",
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        "transformers_version": "4.41.1",
        "type_vocab_size": 2,
        "use_cache": True,
        "vocab_size": 256,
    }
    return config | changes


def write_bert_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    marks = list("!\"#$%&'()*+,-./:;<=>?@[]_`~，。「」！")
    characters = sorted(set("".join(CHINESE)))
    parts = [*letters, *(f"##{letter}" for letter in letters), *marks, *characters]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(parts), *(word for word in WORDS if word not in parts)]
    assert len(tokens) <= bert_config()["vocab_size"], len(tokens)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    special = {"cls_token": "[CLS]", "mask_token": "[MASK]", "pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    write_json(folder / "special_tokens_map.json", special)
    config = {
        "do_basic_tokenize": True,
        "do_lower_case": True,
        "model_max_length": 77,
        "never_split": None,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "BertTokenizer",
    }
    write_json(folder / "tokenizer_config.json", config | special)


def chinese_sentences(count: int = 3000) -> list[str]:
    rng = random.Random(1)
    return ["".join(rng.sample(CHINESE, rng.randrange(3, 10))) for _ in range(count)]


def sentencepiece_model() -> bytes:
    """The contents of `spiece.model`, trained with the settings of mT5: unknown characters become bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(vocabulary.sentences(3000) + chinese_sentences()),
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES,
        normalization_rule_name="nmt_nfkc",
        character_coverage=1.0,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def write_mt5_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(sentencepiece_model())
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", {role: {"content": token} | flags for role, token in named.items()})
    config = {
        "added_tokens_decoder": {
            str(id): {"content": token, "special": True} | flags for id, token in enumerate(named.values())
        },
        "additional_special_tokens": [],
        "clean_up_tokenization_spaces": True,
        "extra_ids": 0,
        "legacy": True,
        "model_max_length": 1000000000000000019884624838656,
        "sp_model_kwargs": {},
        "tokenizer_class": "T5Tokenizer",
    }
    write_json(folder / "tokenizer_config.json", config | named)


def link(folder: Path, to: str) -> None:
    if not folder.exists():
        folder.symlink_to(to)


def write_checkpoint(
    folder: Path, transformer: dict, scheduler: dict, *, seed: int, variant: str | None, texts: str | None = None
) -> None:
    """Writes one pipeline folder; `texts` is another one with the same text encoders and tokenizers."""
    parts = {
        "feature_extractor": [None, None],
        "requires_safety_checker": True,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "BertModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "BertTokenizer"],
        "tokenizer_2": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "HunyuanDiT2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", {"_class_name": "HunyuanDiTPipeline"} | VERSION | parts)
    write_json(folder / "scheduler/scheduler_config.json", scheduler)

    # The contributions of attention, MLP and skip connections stay comparable to the embedded latents.
    gains = {"to_q": 1.5, "to_k": 1.5, "to_out": 2.0, "ff.net.2": 2.0, "norm1.linear": 0.5, "norm_out.linear": 0.5}
    state = randomize(HunyuanDiT2DModel.from_config(transformer).state_dict(), seed, gains)
    write_json(folder / "transformer/config.json", transformer)
    write_weights(folder / "transformer", "diffusion_pytorch_model", state, variant=variant, shards=1)

    vae = vae_config(**VERSION, block_out_channels=[8, 8, 8, 8], force_upcast=False, scaling_factor=0.13025)
    state = randomize(AutoencoderKL.from_config(vae).state_dict(), seed, {"decoder.conv_out": 0.5})
    write_json(folder / "vae/config.json", vae)
    write_weights(folder / "vae", "diffusion_pytorch_model", state, variant=variant, shards=1)

    if texts is not None:
        for part in ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"]:
            link(folder / part, f"../{texts}/{part}")
        return
    write_bert_tokenizer(folder / "tokenizer")
    write_mt5_tokenizer(folder / "tokenizer_2")
    bert = bert_config()
    state = randomize(BertModel(BertConfig(**bert)).state_dict(), seed, {"query": 1.5, "key": 1.5})
    write_json(folder / "text_encoder/config.json", bert)
    write_weights(folder / "text_encoder", "model", state, variant=None, shards=1)
    mt5 = t5_config(architectures=["T5EncoderModel"], model_type="t5", vocab_size=896)
    state = T5EncoderModel(T5Config(**mt5)).state_dict()
    state.pop("encoder.embed_tokens.weight", None)
    gains = {"SelfAttention.q": mt5["d_kv"] ** -0.5, "relative_attention_bias": 0.5}
    write_json(folder / "text_encoder_2/config.json", mt5)
    write_weights(folder / "text_encoder_2", "model", randomize(state, seed, gains), variant=None, shards=1)


# The options that every case states.
CALL = {
    "prompt": CHINESE_PROMPT,
    "negative_prompt": NEGATIVE,
    "num_inference_steps": 5,
    "guidance_scale": 5.0,
    "num_images_per_prompt": 1,
    "use_resolution_binning": False,
}
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.03, "prediction_type": "v_prediction"}
DDIM = NOISE | {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
DPM = NOISE | {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++", "steps_offset": 1}

# name -> (checkpoint, seed of image 0, call, a scheduler in place of the checkpoint's)
CASES = {
    "hunyuan-11-full": ("hunyuan-11", 51, size(64, 96), {}),
    "hunyuan-11-defaults": ("hunyuan-11", 52, size(32, 48) | {"negative_prompt": "", "num_inference_steps": 50}, {}),
    "hunyuan-11-conditions": (
        "hunyuan-11",
        53,
        size(48, 32) | {"original_size": (480, 640), "target_size": (512, 768), "crops_coords_top_left": (16, 40)},
        {},
    ),
    "hunyuan-11-rescale": ("hunyuan-11", 54, size(48, 48) | {"guidance_rescale": 0.7, "prompt": PROMPT}, {}),
    "hunyuan-11-no-guidance": ("hunyuan-11", 55, size(48, 32) | {"guidance_scale": 1.0}, {}),
    # Not with several pictures of each prompt: the pipeline then uses the masks of other prompts.
    "hunyuan-11-batch": (
        "hunyuan-11",
        56,
        size(32, 32) | {"prompt": [PROMPT, LONG_CHINESE], "negative_prompt": ["模糊", ""]},
        {},
    ),
    "hunyuan-11-images-per-prompt": ("hunyuan-11", 65, size(32, 32) | {"num_images_per_prompt": 2}, {}),
    "hunyuan-11-ddim": ("hunyuan-11", 57, size(32, 64), DDIM),
    "hunyuan-12-full": ("hunyuan-12", 58, size(96, 48), {}),
    "hunyuan-12-dpm": ("hunyuan-12", 60, size(32, 32), DPM),
    "hunyuan-12-rescale": ("hunyuan-12", 59, size(32, 48) | {"guidance_rescale": 0.3}, DDIM),
}


def watch_transformer(recorder: Recorder, model: torch.nn.Module) -> None:
    """Step 0 of the transformer; the batch has the negative prompt first."""

    def inputs(_module, args, kwargs):
        recorder.put("transformer.hidden_states", args[0])
        recorder.put("transformer.timestep", args[1])
        names = ["encoder_hidden_states", "text_embedding_mask", "encoder_hidden_states_t5", "text_embedding_mask_t5"]
        for name in [*names, "image_meta_size"]:
            recorder.put(f"transformer.{name}", kwargs[name])

    def modulation(_module, _inputs, output):
        recorder.put("transformer.time_extra_emb", output)

    recorder.hooks.append(model.register_forward_pre_hook(inputs, with_kwargs=True))
    recorder.hooks.append(model.time_extra_emb.register_forward_hook(modulation))
    recorder.output(model.pos_embed, "transformer.pos_embed")
    for i, block in enumerate(model.blocks):
        recorder.output(block, f"transformer.blocks.{i}")
    recorder.output(model, "transformer.output")


def run_case(root: Path, name: str, checkpoint: str, seed: int, call: dict, scheduler: dict) -> None:
    call = CALL | call
    pipe, pipe64 = load(root / checkpoint), load(root / checkpoint, torch.float64)
    if scheduler:
        kind = getattr(diffusers, scheduler["_class_name"])
        pipe.scheduler, pipe64.scheduler = kind.from_config(scheduler), kind.from_config(scheduler)
    recorder = Recorder()
    if name.endswith("full"):
        watch_transformer(recorder, pipe.transformer)
    tensors, seeds, rounding = run_both(pipe, pipe64, call, seed, recorder)
    assert rounding["latents"] < MAX_ROUNDING, (name, rounding)
    tensors.pop("steps.noise_pred")
    tensors.pop("steps.latents")
    record = {
        "checkpoint": checkpoint,
        "pipeline": type(pipe).__name__,
        "call": call,
        "seeds": seeds,
        "timesteps": [float(t) for t in pipe.scheduler.timesteps],
        "rounding": rounding,
        "tensors": {key: list(tensor.shape) for key, tensor in sorted(tensors.items())},
    }
    if scheduler:
        record["scheduler"] = scheduler
    print(name, rounding)
    write_case(root / "cases", name, record, tensors)


def write_tables(root: Path) -> None:
    """Token ids, and standard sizes."""
    folder = root / "hunyuan-11"
    bert = BertTokenizer.from_pretrained(folder / "tokenizer")
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer_2/spiece.model"))
    tokens = [
        # Sentencepiece itself: the fast tokenizer has no byte fallback.
        {"text": text, "bert": bert(text).input_ids, "mt5": [*pieces.encode(text), pieces.eos_id()]}
        for text in TOKEN_TEXTS
    ]
    rng = random.Random(0)
    sizes = [(64 + rng.randrange(2000), 64 + rng.randrange(2000)) for _ in range(80)]
    sizes += [(16, 4096), (4096, 16), (1024, 1000), (1100, 1100), (1152, 1152), *SUPPORTED_SHAPE]
    standard = []
    for wanted in sizes:
        height, width = (side // 16 * 16 for side in wanted)
        found = (height, width)
        if found not in SUPPORTED_SHAPE:
            width, height = map_to_standard_shapes(width, height)
            found = (int(height), int(width))
        standard.append({"size": [*wanted], "standard": [*found]})
    for name, value in {"hunyuan-tokens": tokens, "hunyuan-sizes": standard}.items():
        (root / "cases" / f"{name}.json").write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    root = prepare(__doc__.splitlines()[0])
    write_checkpoint(root / "hunyuan-11", transformer_config(8), scheduler_config(0.03), seed=61, variant=None)
    write_checkpoint(
        root / "hunyuan-12",
        transformer_config(6, use_style_cond_and_image_meta_size=False),
        scheduler_config(0.018),
        seed=62,
        variant="fp16",
        texts="hunyuan-11",
    )
    write_tables(root)
    for name, (checkpoint, seed, call, scheduler) in CASES.items():
        run_case(root, name, checkpoint, seed, call, scheduler)


if __name__ == "__main__":
    main()
