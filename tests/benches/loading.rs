//! How long a rank takes to load its share of a FLUX transformer of some 4 GB, and how much memory: against reading the
//! file, and against the bytes that it keeps.
//!
//! `cargo bench -p xdit-tests --bench loading`. Every case is a process of its own, for its peak of memory is the
//! process'.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use burn::tensor::DType;
use serde_json::json;
use xdit_comm::{Comm, LaunchOptions, run_ranks};
use xdit_core::Result;
use xdit_core::checkpoint::Checkpoint;
use xdit_core::config::Config;
use xdit_core::link::HostLink;
use xdit_core::placement::Share;
use xdit_core::placement::TensorShare;
use xdit_core::weights::Weights;
use xdit_models::flux::{Flux, FluxConfig};
use xdit_models::latent_diffusion::{Published, TransformerConfig};
use xdit_models::sharding::Sharded;
use xdit_tests::device;

const MIB: f64 = 1048576.0;
const DOUBLE: usize = 3;
const SINGLE: usize = 7;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().position(|argument| argument == "--case") {
        Some(at) => case(Path::new(&arguments[at + 1]), &arguments[at + 2], &arguments[at + 3]),
        None => all(),
    }
}

fn all() {
    let dir = std::env::temp_dir().join("xdit-bench-loading");
    write(&dir);
    println!("reading the file      {:6.2} s", read(&dir.join("diffusion_pytorch_model.safetensors")));
    println!("{:20}  {:>6}  {:>11}  {:>11}  {:>5}", "case", "time", "kept", "peak RSS", "ratio");
    for dtype in ["f32", "bf16"] {
        for share in ["whole", "pp4", "tp2", "pp4tp2"] {
            let this = std::env::current_exe().expect("this program has a path");
            let status = Command::new(this).args(["--case"]).arg(&dir).args([share, dtype]).status();
            assert!(status.expect("this program runs").success());
        }
    }
    fs::remove_dir_all(dir).expect("the folder was made above");
}

/// Loads one share and says what it took.
fn case(dir: &Path, share: &str, dtype: &str) {
    let dir = dir.to_owned();
    let (stages, degree) =
        (if share.starts_with("pp4") { 4 } else { 1 }, if share.ends_with("tp2") { 2 } else { 1 });
    let dtype = if dtype == "f32" { DType::F32 } else { DType::BF16 };
    let start = Instant::now();
    let before = peak();
    let ranks = run_ranks(degree, &LaunchOptions::default(), move |world: Comm| -> Result<_> {
        if world.rank() > 0 {
            return Ok(None);
        }
        let config = FluxConfig::read(Config::read(&dir.join("config.json"))?)?;
        let files = Checkpoint::open(&dir, "diffusion_pytorch_model", None)?;
        let blocks = (DOUBLE + SINGLE) / stages;
        let tensor = (world.size() > 1).then(|| TensorShare { link: HostLink::new(world.clone()) });
        let share = Share { blocks: 0..if stages == 1 { DOUBLE + SINGLE } else { blocks }, tensor };
        let weights = Weights::new(files, &device(), dtype).of_share(share, config.all_placements());
        let model = Flux::load(&config, &weights)?;
        Ok(Some((model, weights.taken_bytes())))
    });
    let ranks = ranks.unwrap_or_else(|error| panic!("{error}"));
    let time = start.elapsed().as_secs_f64();
    let kept = ranks.iter().flatten().map(|(_, bytes)| *bytes as f64).sum::<f64>() / MIB;
    let grown = peak() - before;
    let name = format!("{share}, {dtype:?}");
    println!("{name:20}  {time:5.2} s  {kept:7.0} MiB  {grown:7.0} MiB  {:5.3}", grown / kept);
}

/// The most memory that this process has had resident, in MiB.
fn peak() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux tells of processes");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux tells the peak");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("a number") / 1024.0
}

/// Seconds to read a file.
fn read(path: &Path) -> f64 {
    let (start, mut buffer) = (Instant::now(), vec![0; 1 << 20]);
    let mut file = File::open(path).expect("written before");
    while file.read(&mut buffer).expect("the disk is fine") > 0 {}
    start.elapsed().as_secs_f64()
}

/// Writes a transformer of FLUX's width with few blocks, in bf16.
fn write(dir: &Path) {
    let config = json!({
        "_class_name": "FluxTransformer2DModel",
        "guidance_embeds": true,
        "num_layers": DOUBLE,
        "num_single_layers": SINGLE,
    });
    let keep = |name: &str| match name.split('.').collect::<Vec<_>>()[..] {
        ["transformer_blocks", index, ..] => index.parse::<usize>().is_ok_and(|index| index < DOUBLE),
        ["single_transformer_blocks", index, ..] => index.parse::<usize>().is_ok_and(|index| index < SINGLE),
        _ => true,
    };
    fs::create_dir_all(dir).expect("a temporary folder");
    let path: PathBuf = dir.join("diffusion_pytorch_model.safetensors");
    xdit_tests::full_size::write_component("flux-dev", "transformer", &path, keep);
    fs::write(dir.join("config.json"), config.to_string()).expect("room for a file");
    // Values, not holes: reading is to cost what it costs.
    fill(&path);
}

fn fill(path: &Path) {
    use std::io::{Seek, SeekFrom, Write};
    let mut file = File::options().write(true).open(path).expect("written before");
    let length = file.metadata().expect("written before").len();
    let header = (1 << 20) as u64;
    let piece: Vec<u8> =
        (0..1 << 20).map(|index: u32| if index % 2 == 1 { 0x3c } else { index as u8 }).collect();
    file.seek(SeekFrom::Start(header)).expect("within the file");
    let mut at = header;
    while at < length {
        let n = piece.len().min((length - at) as usize);
        file.write_all(&piece[..n]).expect("room for the values");
        at += n as u64;
    }
    file.sync_all().expect("room for the values");
}
