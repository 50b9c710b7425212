//! The options for the sizes and places that some models take as inputs.

use clap::Args;
use xdit_core::pipeline::MicroConditions;
use xdit_core::{Error, Result};

/// Sizes and places, each two numbers of pixels.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Sizes as inputs of the model (Stable Diffusion XL, HunyuanDiT 1.1)")]
pub struct MicroConditionArgs {
    /// Size of the original picture; small ones give blurred pictures [default: the size of the picture; for HunyuanDiT
    /// 1024 1024].
    #[arg(long, num_args = 1..=2, value_delimiter = ',', value_names = ["HEIGHT", "WIDTH"])]
    pub original_size: Option<Vec<usize>>,
    /// Corner of the crop from it [default: 0 0, which centres objects].
    #[arg(long, num_args = 1..=2, value_delimiter = ',', value_names = ["TOP", "LEFT"])]
    pub crops_coords_top_left: Option<Vec<usize>>,
    /// Size after the crop [default: the size of the picture].
    #[arg(long, num_args = 1..=2, value_delimiter = ',', value_names = ["HEIGHT", "WIDTH"])]
    pub target_size: Option<Vec<usize>>,
    /// Original size for the negative branch of guidance, used with a negative target size [default: that of the
    /// picture].
    #[arg(long, num_args = 1..=2, value_delimiter = ',', value_names = ["HEIGHT", "WIDTH"])]
    pub negative_original_size: Option<Vec<usize>>,
    /// Corner of the crop for the negative branch [default: 0 0].
    #[arg(long, num_args = 1..=2, value_delimiter = ',', value_names = ["TOP", "LEFT"])]
    pub negative_crops_coords_top_left: Option<Vec<usize>>,
    /// Target size for the negative branch, used with a negative original size [default: that of the picture].
    #[arg(long, num_args = 1..=2, value_delimiter = ',', value_names = ["HEIGHT", "WIDTH"])]
    pub negative_target_size: Option<Vec<usize>>,
}

impl MicroConditionArgs {
    /// The given values, and for the others those of `old`.
    ///
    /// # Errors
    /// If an option has a single value.
    pub fn or(&self, old: Option<&MicroConditions>) -> Result<MicroConditions> {
        let pair = |name: &str, given: &Option<Vec<usize>>, old| match given.as_deref() {
            None => Ok(old),
            Some(&[first, second]) => Ok(Some([first, second])),
            Some(values) => Err(Error::usage(format!("`--{name}` has {} of two values", values.len()))
                .hint(format!("give two numbers, such as `--{name} 1024 768`"))),
        };
        let old = old.copied().unwrap_or_default();
        Ok(MicroConditions {
            original_size: pair("original-size", &self.original_size, old.original_size)?,
            crops_coords_top_left: pair(
                "crops-coords-top-left",
                &self.crops_coords_top_left,
                old.crops_coords_top_left,
            )?,
            target_size: pair("target-size", &self.target_size, old.target_size)?,
            negative_original_size: pair(
                "negative-original-size",
                &self.negative_original_size,
                old.negative_original_size,
            )?,
            negative_crops_coords_top_left: pair(
                "negative-crops-coords-top-left",
                &self.negative_crops_coords_top_left,
                old.negative_crops_coords_top_left,
            )?,
            negative_target_size: pair(
                "negative-target-size",
                &self.negative_target_size,
                old.negative_target_size,
            )?,
        })
    }
}
