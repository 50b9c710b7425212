//! `xdit decode`: pictures from latents.

use std::path::PathBuf;

use xdit_core::device::{check_dtype, default_dtype, find};
use xdit_core::pipeline::{LoadOptions, Request, check};
use xdit_core::{Error, Result};

use crate::args::{ComputeArgs, DecodeArgs, Dtype, OutputType};
use crate::model::{Place, locate};
use crate::output::{
    FRAMES_PER_SECOND, Outputs, check_format, check_frames, decode_latents, encode, is_standard, write_files,
};
use crate::progress::Progress;
use crate::{print, print_bytes, threads};

/// Runs `xdit decode`.
///
/// # Errors
/// If the options are not valid, the latents do not fit the model, or a file cannot be written.
pub fn run(args: &DecodeArgs) -> Result<()> {
    let ComputeArgs { dtype, device: name, threads } = &args.compute;
    threads::start(*threads)?;
    let device = find(name)?;
    let dtype = dtype.unwrap_or_else(|| Dtype::of(default_dtype(&device))).burn();
    check_dtype(&device, name, dtype)?;
    let output_type =
        args.output_type.or_else(|| OutputType::of(args.output.as_deref()?)).unwrap_or_default();
    if output_type == OutputType::Latent {
        return Err(Error::usage("decoded latents are pictures")
            .hint("name a `.png`, `.jpg`, `.webp`, `.gif` or `.mp4` file"));
    }
    let request = Request { fps: args.fps, decode_chunk_size: args.decode_chunk_size, ..Request::new("") };
    check(&request)?;
    let latents = decode_latents(&args.latents)?;
    let shape = latents.shape().to_vec();
    let (frames, is_clip) = if shape.len() == 5 { (shape[2], true) } else { (1, false) };
    for (option, is_given) in
        [("--fps", args.fps.is_some()), ("--decode-chunk-size", args.decode_chunk_size.is_some())]
    {
        if is_given && !is_clip {
            let shown = args.latents.display();
            return Err(Error::usage(format!(
                "`{option}` is for clips, and the latents in `{shown}` are those of pictures"
            ))
            .hint("leave it out"));
        }
    }
    let fps = args.fps.unwrap_or(FRAMES_PER_SECOND);
    // Latents carry no seeds.
    let outputs = Outputs::plan(args.output.as_deref(), output_type, &vec![0; shape[0]])?;
    let split = outputs.splits_clips();
    let together = if split { 1 } else { frames };
    check_frames(output_type, together, fps)?;
    outputs.check(frames)?;
    let mut progress = Progress::new(shape[0], args.quiet);
    if let Some(warning) = outputs.warning() {
        xdit_core::Observer::warn(&mut progress, &warning);
    }
    let folder = locate(&args.model, Place::from(&args.files), &mut progress)?;
    let options = LoadOptions {
        variant: args.files.variant.clone(),
        temporal_decoder: args.files.temporal_decoder.unwrap_or_default(),
        ..LoadOptions::new(device, dtype)
    };
    let pipeline = xdit_models::open(&folder, &options)?;
    pipeline.decode(&latents, args.vae_tiling, args.decode_chunk_size, &mut |index, frames| {
        check_format(output_type, [frames[0].height, frames[0].width], together, fps)?;
        let path = outputs.path(index);
        if is_standard(path) {
            return print_bytes(&encode(output_type, &frames, fps, None));
        }
        let paths = outputs.files(index, frames.len())?;
        let files: Vec<_> =
            frames.chunks(together).map(|frames| encode(output_type, frames, fps, None)).collect();
        write_files(paths.iter().map(PathBuf::as_path).zip(files.iter().map(Vec::as_slice)))?;
        paths.iter().try_for_each(|path| print(&format!("{}\n", path.display())))
    })
}
