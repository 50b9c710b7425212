//! The options for clips, the sequences of pictures that some models make.

use clap::Args;

/// The frames of a clip.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Clips (Latte)")]
pub struct ClipArgs {
    /// Number of frames [default: the model's].
    #[arg(long, alias = "video-length", value_name = "FRAMES")]
    pub num_frames: Option<usize>,
    /// Frames shown in a second; it does not change the frames [default: 8].
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    pub fps: Option<f32>,
    /// Make each frame by itself, without attention to the others [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        hide_possible_values = true)]
    pub no_enable_temporal_attentions: Option<bool>,
    /// Number of frames that are decoded together, which take memory together; a temporal decoder makes them fit each other
    /// [default: 14 with a temporal decoder, otherwise 1].
    #[arg(long, value_name = "FRAMES")]
    pub decode_chunk_size: Option<usize>,
}
