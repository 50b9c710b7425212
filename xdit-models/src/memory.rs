//! Checks before a run that its memory can be had.

use xdit_core::{Error, Result};

/// Checks that `pictures` of `size`, height and width, can be decoded together: their largest layers, of `channels` channels in
/// `bytes` each, are there twice, as input and output, on `shares` ranks that divide the rows. Nothing is known if
/// `free_bytes` is `None`.
///
/// # Errors
/// If they cannot. A run that comes near the limit is not refused.
pub fn check_decoding(
    (pictures, size): (usize, [usize; 2]),
    (channels, bytes): (usize, usize),
    shares: usize,
    free_bytes: Option<u64>,
) -> Result<()> {
    let factors = size.into_iter().chain([pictures, channels, bytes]);
    let needed = factors.map(|n| n as u64).fold(2, u64::saturating_mul);
    let needed = needed / shares.max(1) as u64;
    match free_bytes {
        Some(free) if needed > free => {
            let [height, width] = size;
            let (needed, free) = (in_gb(needed), in_gb(free));
            let (what, hint) = match pictures {
                1 => ("a picture".to_owned(), ""),
                _ => (format!("{pictures} frames"), "fewer frames together with `--decode-chunk-size`, "),
            };
            Err(Error::usage(format!(
                "decoding {what} of {width}x{height} takes at least {needed} of memory, and {free} are free"
            ))
            .hint(format!("decode {hint}tile by tile with `--vae-tiling`, or choose a smaller size")))
        }
        _ => Ok(()),
    }
}

/// A warning, if weights of `needed` bytes are more than the free memory.
pub fn warning(needed: u64, free_bytes: Option<u64>) -> Option<String> {
    let free = free_bytes.filter(|free| needed > *free)?;
    Some(format!(
        "the weights take {}, and {} of memory are free: the run may be slow, or end for lack of memory; `--dtype bf16` takes half",
        in_gb(needed),
        in_gb(free)
    ))
}

fn in_gb(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_fit_is_refused_before_the_run() {
        let check = |shares, free| check_decoding((1, [2048, 1024]), (128, 4), shares, free);
        assert!(check(1, Some(2 << 30)).is_ok() && check(1, None).is_ok() && check(2, Some(1 << 30)).is_ok());
        assert_eq!(
            check(1, Some((2 << 30) - 1)).unwrap_err().to_string(),
            "decoding a picture of 1024x2048 takes at least 2.1 GB of memory, and 2.1 GB are free\n\
             hint: decode tile by tile with `--vae-tiling`, or choose a smaller size"
        );
        assert!(check_decoding((1, [usize::MAX; 2]), (1, 1), 1, Some(u64::MAX - 1)).is_err());
        assert_eq!(
            check_decoding((14, [512, 512]), (128, 4), 1, Some(3 << 30)).unwrap_err().to_string(),
            "decoding 14 frames of 512x512 takes at least 3.8 GB of memory, and 3.2 GB are free\n\
             hint: decode fewer frames together with `--decode-chunk-size`, tile by tile with `--vae-tiling`, or choose a smaller size"
        );
        assert_eq!(warning(5, Some(5)), None);
        assert!(
            warning(24_000_000_000, Some(8 << 30))
                .unwrap()
                .starts_with("the weights take 24.0 GB, and 8.6 GB")
        );
    }
}
