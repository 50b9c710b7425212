//! `xdit decode`: pictures from latents.

use xdit_core::device::{check_dtype, default_dtype, find};
use xdit_core::pipeline::LoadOptions;
use xdit_core::{Error, Result};

use crate::args::{ComputeArgs, DecodeArgs, Dtype, OutputType};
use crate::model::{Place, locate};
use crate::output::{Outputs, check_format, decode_latents, encode, is_standard, write_file};
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
        return Err(
            Error::usage("decoded latents are pictures").hint("name a `.png`, `.jpg` or `.webp` file")
        );
    }
    let latents = decode_latents(&args.latents)?;
    let shape = latents.shape().to_vec();
    // Latents carry no seeds.
    let outputs = Outputs::plan(args.output.as_deref(), output_type, &vec![0; shape[0]])?;
    let mut progress = Progress::new(shape[0], args.quiet);
    if let Some(warning) = outputs.warning() {
        xdit_core::Observer::warn(&mut progress, &warning);
    }
    let folder = locate(&args.model, Place::from(&args.files), &mut progress)?;
    let options = LoadOptions { variant: args.files.variant.clone(), ..LoadOptions::new(device, dtype) };
    let pipeline = xdit_models::open(&folder, &options)?;
    pipeline.decode(&latents, args.vae_tiling, args.decode_chunk_size, &mut |index, frames| {
        check_format(output_type, [frames[0].height, frames[0].width], Some(frames.len()))?;
        let path = outputs.path(index);
        let bytes = encode(output_type, &frames, None);
        if is_standard(path) {
            return print_bytes(&bytes);
        }
        write_file(path, &bytes)?;
        print(&format!("{}\n", path.display()))
    })
}
