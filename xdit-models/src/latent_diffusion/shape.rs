//! The shape of latents that a user gives.

use xdit_core::{Error, Result};

/// The numbers of pictures and of frames of each, and the height and width, of latents of `shape`, for the model `name` with
/// `channels`, which makes `clips` or pictures.
///
/// # Errors
/// If the latents do not fit the model.
pub fn parts(
    shape: &[usize],
    channels: usize,
    clips: bool,
    name: &str,
) -> Result<(usize, usize, [usize; 2])> {
    match *shape {
        _ if shape.contains(&0) => Err(Error::usage(format!("latents of shape `{shape:?}` hold no picture"))
            .hint("each side is at least 1")),
        [n, c, y, x] if c == channels => Ok((n, 1, [y, x])),
        [_, c, _, _, _] if c == channels && !clips => Err(Error::usage(format!(
            "latents of shape `{shape:?}` are those of clips, and {name} makes pictures"
        ))
        .hint("name the model that made them with `--model`")),
        [n, c, frames, y, x] if c == channels => Ok((n, frames, [y, x])),
        _ => Err(Error::usage(format!("latents of shape `{shape:?}` do not fit this model")).hint(format!(
            "it decodes [n, {channels}, height, width], or [n, {channels}, frames, height, width]"
        ))),
    }
}
