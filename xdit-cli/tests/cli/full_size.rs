//! Commands that read no weights, on checkpoints of 31 and 15 GiB as they are published, in files without contents.
#![cfg(unix)]

use std::os::unix::fs::MetadataExt;

use crate::full_size_files;
use crate::workspace::Workspace;

#[test]
fn a_full_size_checkpoint_is_inspected_and_planned_without_reading_it() {
    let workspace = Workspace::new();
    full_size_files::write("flux-dev", &workspace.path("flux"));
    let shard = workspace.path("flux/transformer/diffusion_pytorch_model-00001-of-00003.safetensors");
    let file = std::fs::metadata(&shard).unwrap();
    assert!(file.len() > 7 << 30 && file.blocks() * 512 < 1 << 20, "{shard:?} is not sparse");

    insta::assert_snapshot!(workspace.ok(&["inspect", "flux"]), @r"
    FluxPipeline in flux

    component       class                            parameters  type               on disk
    scheduler       FlowMatchEulerDiscreteScheduler
    text_encoder    CLIPTextModel                         123 M  bf16            234.72 MiB
    text_encoder_2  T5EncoderModel                       4.76 B  bf16   8.87 GiB in 2 files
    tokenizer       CLIPTokenizer
    tokenizer_2     T5TokenizerFast
    transformer     FluxTransformer2DModel               11.9 B  bf16  22.17 GiB in 3 files
    vae             AutoencoderKL                        83.8 M  bf16            159.87 MiB

    parameters   16.9 B on disk as 31.42 GiB
    memory       44.34 GiB as f32, 22.17 GiB as bf16 (the largest component)
    defaults     1024x1024 pixels, 28 steps, guidance 3.5, 512 tokens
    ");

    let degrees = ["--pipefusion-parallel-degree", "4", "--tensor-parallel-degree", "2"];
    let plan = workspace.plan(&[&["--model", "flux"], &degrees[..]].concat());
    insta::assert_snapshot!(plan, @r"
    pp 4 × tp 2: 4 patches, 1 of 28 steps synchronous
    rank   dp cfg  pp ring ulysses  tp  pictures    blocks    tokens
       0    0   0   0    0       0   0      0..1     0..12      4096
       1    0   0   0    0       0   1      0..1     0..12      4096
       2    0   0   1    0       0   0      0..1    12..27      4096
       3    0   0   1    0       0   1      0..1    12..27      4096
       4    0   0   2    0       0   0      0..1    27..42      4096
       5    0   0   2    0       0   1      0..1    27..42      4096
       6    0   0   3    0       0   0      0..1    42..57      4096
       7    0   0   3    0       0   1      0..1    42..57      4096

    rank  parameters   used once    contexts  keys and values  sent a step
       0    5.06 GiB    5.23 GiB   47.25 MiB       648.00 MiB  pp 54.00 MiB, tp 1.27 GiB
       1    5.06 GiB    5.23 GiB   47.25 MiB       648.00 MiB  pp 54.00 MiB, tp 1.27 GiB
       2    4.64 GiB    3.92 GiB   35.44 MiB       810.00 MiB  pp 54.00 MiB, tp 1.16 GiB
       3    4.64 GiB    3.92 GiB   35.44 MiB       810.00 MiB  pp 54.00 MiB, tp 1.16 GiB
       4    3.16 GiB    1.70 GiB   14.77 MiB       810.00 MiB  pp 54.00 MiB, tp 810.00 MiB
       5    3.16 GiB    1.70 GiB   14.77 MiB       810.00 MiB  pp 54.00 MiB, tp 810.00 MiB
       6    3.17 GiB    1.77 GiB   15.42 MiB       810.00 MiB  pp 1.00 MiB, tp 804.00 MiB
       7    3.17 GiB    1.77 GiB   15.42 MiB       810.00 MiB  pp 1.00 MiB, tp 804.00 MiB
     all   32.07 GiB   12.26 GiB  112.88 MiB         6.01 GiB
    ");

    // Each rank holds an eighth at most: modulations are used once.
    let held = plan.lines().skip_while(|line| !line.contains("parameters")).skip(1);
    for line in held.take(8) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (gib, unit) = (words[1].parse::<f64>().unwrap(), words[2]);
        assert!(unit == "GiB" && gib <= 44.34 / 8.0, "{line}");
    }
}

/// Of 9.2 GiB in f32, two stages use 5.5 GiB in every step: modulations are used once, and the table of positions stays
/// in the file.
#[test]
fn stable_diffusion_3_5_medium() {
    let workspace = Workspace::new();
    full_size_files::write("sd35-medium", &workspace.path("sd3"));
    insta::assert_snapshot!(workspace.ok(&["inspect", "sd3"]), @r"
    StableDiffusion3Pipeline in sd3

    component       class                            parameters  type              on disk
    scheduler       FlowMatchEulerDiscreteScheduler
    text_encoder    CLIPTextModelWithProjection           124 M  bf16           235.84 MiB
    text_encoder_2  CLIPTextModelWithProjection           695 M  bf16             1.29 GiB
    text_encoder_3  T5EncoderModel                       4.76 B  bf16  8.87 GiB in 2 files
    tokenizer       CLIPTokenizer
    tokenizer_2     CLIPTokenizer
    tokenizer_3     T5TokenizerFast
    transformer     SD3Transformer2DModel                2.47 B  bf16             4.60 GiB
    vae             AutoencoderKL                        83.8 M  bf16           159.87 MiB

    parameters   8.13 B on disk as 15.15 GiB
    memory       17.74 GiB as f32, 8.87 GiB as bf16 (the largest component)
    defaults     1024x1024 pixels, 28 steps, guidance 7, 256 tokens
    ");
    let degrees = ["--use-cfg-parallel", "--pipefusion-parallel-degree", "2", "--ulysses-degree", "2"];
    insta::assert_snapshot!(workspace.plan(&[&["--model", "sd3"], &degrees[..]].concat()), @r"
    cfg 2 × pp 2 × ulysses 2: 2 patches, 1 of 28 steps synchronous
    rank   dp cfg  pp ring ulysses  tp  pictures    blocks    tokens
       0    0   0   0    0       0   0      0..1     0..12      2048
       1    0   0   0    0       1   0      0..1     0..12      2048
       2    0   0   1    0       0   0      0..1    12..24      2048
       3    0   0   1    0       1   0      0..1    12..24      2048
       4    0   1   0    0       0   0      0..1     0..12      2048
       5    0   1   0    0       1   0      0..1     0..12      2048
       6    0   1   1    0       0   0      0..1    12..24      2048
       7    0   1   1    0       1   0      0..1    12..24      2048

    rank  parameters   used once    contexts  keys and values  sent a step
       0    2.96 GiB    1.64 GiB   29.53 MiB       599.41 MiB  pp 13.95 MiB, ulysses 587.71 MiB
       1    2.96 GiB    1.64 GiB   29.53 MiB       599.41 MiB  pp 13.95 MiB, ulysses 587.71 MiB
       2    2.49 GiB    1.31 GiB   23.79 MiB       335.41 MiB  cfg 512.00 KiB, pp 512.00 KiB, ulysses 323.71 MiB
       3    2.49 GiB    1.31 GiB   23.79 MiB       335.41 MiB  cfg 512.00 KiB, pp 512.00 KiB, ulysses 323.71 MiB
       4    2.96 GiB    1.64 GiB   29.53 MiB       599.41 MiB  pp 13.95 MiB, ulysses 587.71 MiB
       5    2.96 GiB    1.64 GiB   29.53 MiB       599.41 MiB  pp 13.95 MiB, ulysses 587.71 MiB
       6    2.49 GiB    1.31 GiB   23.79 MiB       335.41 MiB  cfg 512.00 KiB, pp 512.00 KiB, ulysses 323.71 MiB
       7    2.49 GiB    1.31 GiB   23.79 MiB       335.41 MiB  cfg 512.00 KiB, pp 512.00 KiB, ulysses 323.71 MiB
     all    5.45 GiB    2.91 GiB  106.64 MiB         3.65 GiB
    ");
}

/// There are neither texts nor tokenizers. Without a prompt, the plan is that of a picture of no class.
#[test]
fn dit() {
    let workspace = Workspace::new();
    full_size_files::write("dit-xl", &workspace.path("dit"));
    insta::assert_snapshot!(workspace.ok(&["inspect", "dit"]), @r"
    DiTPipeline in dit

    component    class               parameters  type     on disk
    scheduler    DDIMScheduler
    transformer  Transformer2DModel       750 M  bf16    1.40 GiB
    vae          AutoencoderKL           83.7 M  bf16  159.56 MiB

    parameters   833 M on disk as 1.55 GiB
    memory       2.79 GiB as f32, 1.40 GiB as bf16 (the largest component)
    defaults     512x512 pixels, 50 steps, guidance 4
    ");
    let degrees = ["--use-cfg-parallel", "--pipefusion-parallel-degree", "2"];
    insta::assert_snapshot!(workspace.plan(&[&["--model", "dit"], &degrees[..]].concat()), @r"
    cfg 2 × pp 2: 2 patches, 1 of 50 steps synchronous
    rank   dp cfg  pp ring ulysses  tp  pictures    blocks    tokens
       0    0   0   0    0       0   0      0..1     0..14      1024
       1    0   0   1    0       0   0      0..1    14..28      1024
       2    0   1   0    0       0   0      0..1     0..14      1024
       3    0   1   1    0       0   0      0..1    14..28      1024

    rank  parameters   used once    contexts  keys and values  sent a step
       0  851.13 MiB  512.37 MiB   18.46 MiB       126.00 MiB  pp 4.50 MiB
       1  851.19 MiB  528.70 MiB   18.90 MiB       126.00 MiB  cfg 64.00 KiB, pp 64.00 KiB
       2  851.13 MiB  512.37 MiB   18.46 MiB       126.00 MiB  pp 4.50 MiB
       3  851.19 MiB  528.70 MiB   18.90 MiB       126.00 MiB  cfg 64.00 KiB, pp 64.00 KiB
     all    1.66 GiB    1.01 GiB   74.71 MiB       504.00 MiB
    ");
}

/// Each rank uses the whole model, which its process holds once, and sends rows in addition to heads.
#[test]
fn sdxl() {
    let workspace = Workspace::new();
    full_size_files::write("sdxl-base", &workspace.path("sdxl"));
    insta::assert_snapshot!(workspace.ok(&["inspect", "sdxl"]), @r"
    StableDiffusionXLPipeline in sdxl

    component       class                        parameters  type     on disk
    scheduler       EulerDiscreteScheduler
    text_encoder    CLIPTextModel                     123 M  bf16  234.72 MiB
    text_encoder_2  CLIPTextModelWithProjection       695 M  bf16    1.29 GiB
    tokenizer       CLIPTokenizer
    tokenizer_2     CLIPTokenizer
    unet            UNet2DConditionModel             2.57 B  bf16    4.78 GiB
    vae             AutoencoderKL                    83.7 M  bf16  159.56 MiB

    parameters   3.47 B on disk as 6.46 GiB
    memory       9.56 GiB as f32, 4.78 GiB as bf16 (the largest component)
    defaults     1024x1024 pixels, 50 steps, guidance 5
    ");
    let degrees = ["--use-cfg-parallel", "--ulysses-degree", "2", "--tensor-parallel-degree", "2"];
    insta::assert_snapshot!(workspace.plan(&[&["--model", "sdxl"], &degrees[..]].concat()), @r"
    cfg 2 × ulysses 2 × tp 2: 1 patch, 50 of 50 steps synchronous
    rank   dp cfg  pp ring ulysses  tp  pictures    blocks    tokens
       0    0   0   0    0       0   0      0..1      0..1      8192
       1    0   0   0    0       0   1      0..1      0..1      8192
       2    0   0   0    0       1   0      0..1      0..1      8192
       3    0   0   0    0       1   1      0..1      0..1      8192
       4    0   1   0    0       0   0      0..1      0..1      8192
       5    0   1   0    0       0   1      0..1      0..1      8192
       6    0   1   0    0       1   0      0..1      0..1      8192
       7    0   1   0    0       1   1      0..1      0..1      8192

    rank  parameters   used once    contexts  keys and values  sent a step
       0    5.40 GiB   95.07 MiB    2.62 MiB              0 B  cfg 128.00 KiB, ulysses 195.00 MiB, tp 600.00 MiB, rows 7.51 MiB
       1    5.40 GiB   95.07 MiB    2.62 MiB              0 B  cfg 128.00 KiB, ulysses 195.00 MiB, tp 600.00 MiB, rows 7.51 MiB
       2    5.40 GiB   95.07 MiB    2.62 MiB              0 B  cfg 128.00 KiB, ulysses 205.00 MiB, tp 600.00 MiB, rows 7.20 MiB
       3    5.40 GiB   95.07 MiB    2.62 MiB              0 B  cfg 128.00 KiB, ulysses 205.00 MiB, tp 600.00 MiB, rows 7.20 MiB
       4    5.40 GiB   95.07 MiB    2.62 MiB              0 B  cfg 128.00 KiB, ulysses 195.00 MiB, tp 600.00 MiB, rows 7.51 MiB
       5    5.40 GiB   95.07 MiB    2.62 MiB              0 B  cfg 128.00 KiB, ulysses 195.00 MiB, tp 600.00 MiB, rows 7.51 MiB
       6    5.40 GiB   95.07 MiB    2.62 MiB              0 B  cfg 128.00 KiB, ulysses 205.00 MiB, tp 600.00 MiB, rows 7.20 MiB
       7    5.40 GiB   95.07 MiB    2.62 MiB              0 B  cfg 128.00 KiB, ulysses 205.00 MiB, tp 600.00 MiB, rows 7.20 MiB
     all    9.49 GiB   95.07 MiB    5.25 MiB              0 B
    ");
}

/// Versions 1.1 and 1.2 differ in the conditions on style and sizes.
#[test]
fn hunyuan() {
    let workspace = Workspace::new();
    full_size_files::write("hunyuan-11", &workspace.path("hunyuan-1.1"));
    full_size_files::write("hunyuan-12", &workspace.path("hunyuan-1.2"));
    insta::assert_snapshot!(workspace.ok(&["inspect", "hunyuan-1.1"]), @r"
    HunyuanDiTPipeline in hunyuan-1.1

    component       class              parameters  type              on disk
    scheduler       DDPMScheduler
    text_encoder    BertModel               352 M  bf16           671.46 MiB
    text_encoder_2  T5EncoderModel         1.67 B  bf16  3.11 GiB in 2 files
    tokenizer       BertTokenizer
    tokenizer_2     T5Tokenizer
    transformer     HunyuanDiT2DModel      1.52 B  bf16             2.82 GiB
    vae             AutoencoderKL          83.7 M  bf16           159.56 MiB

    parameters   3.62 B on disk as 6.75 GiB
    memory       6.22 GiB as f32, 3.11 GiB as bf16 (the largest component)
    defaults     1024x1024 pixels, 50 steps, guidance 5, 256 tokens
    ");
    insta::assert_snapshot!(workspace.ok(&["inspect", "hunyuan-1.2"]), @r"
    HunyuanDiTPipeline in hunyuan-1.2

    component       class              parameters  type              on disk
    scheduler       DDPMScheduler
    text_encoder    BertModel               352 M  bf16           671.46 MiB
    text_encoder_2  T5EncoderModel         1.67 B  bf16  3.11 GiB in 2 files
    tokenizer       BertTokenizer
    tokenizer_2     T5Tokenizer
    transformer     HunyuanDiT2DModel      1.50 B  bf16             2.79 GiB
    vae             AutoencoderKL          83.7 M  bf16           159.56 MiB

    parameters   3.61 B on disk as 6.72 GiB
    memory       6.22 GiB as f32, 3.11 GiB as bf16 (the largest component)
    defaults     1024x1024 pixels, 50 steps, guidance 5, 256 tokens
    ");
    let degrees = ["--use-cfg-parallel", "--pipefusion-parallel-degree", "2", "--ulysses-degree", "2"];
    insta::assert_snapshot!(workspace.plan(&[&["--model", "hunyuan-1.1"], &degrees[..]].concat()), @r"
    cfg 2 × pp 2 × ulysses 2: 2 patches, 1 of 50 steps synchronous
    rank   dp cfg  pp ring ulysses  tp  pictures    blocks    tokens
       0    0   0   0    0       0   0      0..1     0..20      2048
       1    0   0   0    0       1   0      0..1     0..20      2048
       2    0   0   1    0       0   0      0..1    20..40      2048
       3    0   0   1    0       1   0      0..1    20..40      2048
       4    0   1   0    0       0   0      0..1     0..20      2048
       5    0   1   0    0       1   0      0..1     0..20      2048
       6    0   1   1    0       0   0      0..1    20..40      2048
       7    0   1   1    0       1   0      0..1    20..40      2048

    rank  parameters   used once    contexts  keys and values  sent a step
       0    2.39 GiB  429.91 MiB    5.37 MiB       440.00 MiB  pp 220.00 MiB, ulysses 440.00 MiB
       1    2.39 GiB  429.91 MiB    5.37 MiB       440.00 MiB  pp 220.00 MiB, ulysses 440.00 MiB
       2    2.67 GiB  445.04 MiB    5.91 MiB       440.00 MiB  cfg 128.00 KiB, pp 128.00 KiB, ulysses 440.00 MiB
       3    2.67 GiB  445.04 MiB    5.91 MiB       440.00 MiB  cfg 128.00 KiB, pp 128.00 KiB, ulysses 440.00 MiB
       4    2.39 GiB  429.91 MiB    5.37 MiB       440.00 MiB  pp 220.00 MiB, ulysses 440.00 MiB
       5    2.39 GiB  429.91 MiB    5.37 MiB       440.00 MiB  pp 220.00 MiB, ulysses 440.00 MiB
       6    2.67 GiB  445.04 MiB    5.91 MiB       440.00 MiB  cfg 128.00 KiB, pp 128.00 KiB, ulysses 440.00 MiB
       7    2.67 GiB  445.04 MiB    5.91 MiB       440.00 MiB  cfg 128.00 KiB, pp 128.00 KiB, ulysses 440.00 MiB
     all    5.08 GiB  610.49 MiB   22.56 MiB         3.44 GiB
    ");
    // A skip connection crosses the stage between its ends.
    let stages = ["--pipefusion-parallel-degree", "3", "--attn-layer-num-for-pp", "6", "28", "6"];
    insta::assert_snapshot!(workspace.plan(&[&["--model", "hunyuan-1.2"], &stages[..]].concat()), @r"
    pp 3: 3 patches, 1 of 50 steps synchronous
    rank   dp cfg  pp ring ulysses  tp  pictures    blocks    tokens
       0    0   0   0    0       0   0      0..1      0..6      4096
       1    0   0   1    0       0   0      0..1     6..34      4096
       2    0   0   2    0       0   0      0..1    34..40      4096

    rank  parameters   used once    contexts  keys and values  sent a step
       0  736.28 MiB  260.70 MiB    3.22 MiB       528.00 MiB  pp 308.00 MiB
       1    3.54 GiB  427.20 MiB   15.04 MiB         2.41 GiB  pp 44.00 MiB
       2  827.27 MiB  275.84 MiB    4.30 MiB       528.00 MiB  pp 256.00 KiB
     all    5.07 GiB  537.16 MiB   22.56 MiB         3.44 GiB
    ");
}

/// Sixteen frames of 512 × 512 pixels. Only spatial blocks, half of all, exchange tokens: a rank sends half of its share of
/// queries, keys, values and results, 14 · 4 · 4096 · 1152 numbers of four bytes.
#[test]
fn latte() {
    let workspace = Workspace::new();
    full_size_files::write("latte", &workspace.path("latte-1"));
    insta::assert_snapshot!(workspace.ok(&["inspect", "latte-1"]), @r"
    LattePipeline in latte-1

    component     class                    parameters  type              on disk
    scheduler     DDIMScheduler
    text_encoder  T5EncoderModel               4.76 B  bf16  8.87 GiB in 2 files
    tokenizer     T5Tokenizer
    transformer   LatteTransformer3DModel      1.06 B  bf16             1.97 GiB
    vae           AutoencoderKL                83.7 M  bf16           159.56 MiB

    parameters   5.90 B on disk as 11.00 GiB
    memory       17.74 GiB as f32, 8.87 GiB as bf16 (the largest component)
    defaults     512x512 pixels, 50 steps, guidance 7.5
    ");
    insta::assert_snapshot!(workspace.ok(&["inspect", "latte-1", "--temporal-decoder"]), @r"
    LattePipeline in latte-1

    component             class                         parameters  type              on disk
    scheduler             DDIMScheduler
    text_encoder          T5EncoderModel                    4.76 B  bf16  8.87 GiB in 2 files
    tokenizer             T5Tokenizer
    transformer           LatteTransformer3DModel           1.06 B  bf16             1.97 GiB
    vae_temporal_decoder  AutoencoderKLTemporalDecoder      97.7 M  bf16           186.43 MiB

    parameters   5.92 B on disk as 11.02 GiB
    memory       17.74 GiB as f32, 8.87 GiB as bf16 (the largest component)
    defaults     512x512 pixels, 50 steps, guidance 7.5
    ");
    let degrees = ["--use-cfg-parallel", "--pipefusion-parallel-degree", "2", "--ulysses-degree", "2"];
    let plan = workspace.plan(&[&["--model", "latte-1", "--temporal-decoder"], &degrees[..]].concat());
    insta::assert_snapshot!(plan, @r"
    cfg 2 × pp 2 × ulysses 2: 2 patches, 1 of 50 steps synchronous
    rank   dp cfg  pp ring ulysses  tp  pictures    blocks    tokens
       0    0   0   0    0       0   0      0..1     0..28      8192
       1    0   0   0    0       1   0      0..1     0..28      8192
       2    0   0   1    0       0   0      0..1    28..56      8192
       3    0   0   1    0       1   0      0..1    28..56      8192
       4    0   1   0    0       0   0      0..1     0..28      8192
       5    0   1   0    0       1   0      0..1     0..28      8192
       6    0   1   1    0       0   0      0..1    28..56      8192
       7    0   1   1    0       1   0      0..1    28..56      8192

    rank  parameters   used once    contexts  keys and values  sent a step
       0    1.94 GiB   59.67 MiB    1.54 MiB      1008.00 MiB  pp 36.00 MiB, ulysses 1008.00 MiB
       1    1.94 GiB   59.67 MiB    1.54 MiB      1008.00 MiB  pp 36.00 MiB, ulysses 1008.00 MiB
       2    1.94 GiB   59.67 MiB    1.54 MiB      1008.00 MiB  cfg 512.00 KiB, pp 512.00 KiB, ulysses 1008.00 MiB
       3    1.94 GiB   59.67 MiB    1.54 MiB      1008.00 MiB  cfg 512.00 KiB, pp 512.00 KiB, ulysses 1008.00 MiB
       4    1.94 GiB   59.67 MiB    1.54 MiB      1008.00 MiB  pp 36.00 MiB, ulysses 1008.00 MiB
       5    1.94 GiB   59.67 MiB    1.54 MiB      1008.00 MiB  pp 36.00 MiB, ulysses 1008.00 MiB
       6    1.94 GiB   59.67 MiB    1.54 MiB      1008.00 MiB  cfg 512.00 KiB, pp 512.00 KiB, ulysses 1008.00 MiB
       7    1.94 GiB   59.67 MiB    1.54 MiB      1008.00 MiB  cfg 512.00 KiB, pp 512.00 KiB, ulysses 1008.00 MiB
     all    3.89 GiB   59.67 MiB    6.15 MiB         7.88 GiB
    ");
}
