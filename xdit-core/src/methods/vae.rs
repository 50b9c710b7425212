//! Rows: each rank holds some rows of an image. The parallel VAE splits it so from the latents to the picture, and a UNet
//! in each step.
//!
//! Nothing is approximated. Convolutions take the neighbours' rows where a rank's own end, and zeros at the border of
//! the image only; group norms merge the moments of all ranks; attention passes keys and values around.

use std::sync::Arc;

use burn::tensor::Tensor;
use xdit_kernels::{Affine, Conv2d, Moments};

use crate::attention::{Qkv, scale};
use crate::link::{Link, Place};
use crate::methods::keys::{Keys, Kv};
use crate::methods::ring::Ring;
use crate::rows::{Rows, Whole};

/// The rows of one rank among those of the ranks of a link, the first of which has the topmost.
#[derive(Clone, Debug)]
pub struct SplitRows {
    link: Arc<dyn Link>,
    ring: Ring,
    /// Rows of each rank, at the resolution of the input.
    shares: Vec<usize>,
}

impl SplitRows {
    /// Creates this rank's rows among those of the ranks of `link`; rank `i` has `shares[i]` rows.
    ///
    /// # Panics
    /// If the number of shares is not the number of ranks, or if a share has no rows.
    pub fn new(link: Arc<dyn Link>, shares: Vec<usize>) -> Self {
        assert_eq!(shares.len(), link.size(), "a share for each rank");
        assert!(!shares.contains(&0), "a rank without rows has none to give to its neighbours: {shares:?}");
        Self { ring: Ring::new(link.clone()), link, shares }
    }

    /// The number of items of each rank, if this rank has `own` and all rows have equally many.
    fn of_each(&self, own: usize) -> Vec<usize> {
        let share = self.shares[self.link.rank()];
        self.shares.iter().map(|theirs| own * theirs / share).collect()
    }

    /// `x` between the last `above` rows of the rank above and the first `below` rows of the one below, where there
    /// are such ranks.
    fn with_halo(&self, x: Tensor<4>, [above, below]: [usize; 2]) -> Tensor<4> {
        let [b, c, rows, cols] = x.dims();
        assert!(rows >= above.max(below), "{rows} rows are too few to give {above} and {below} of them");
        let (mut sends, mut receives) = (Vec::new(), Vec::new());
        let [up, down] = self.neighbours();
        for (neighbour, taken, given) in [(up, above, 0..below), (down, below, rows - above..rows)] {
            let Some(neighbour) = neighbour else { continue };
            if !given.is_empty() {
                sends.push((neighbour, x.clone().narrow(2, given.start, given.len())));
            }
            if taken > 0 {
                receives.push((neighbour, Place::of(&x).slot([b, c, taken, cols])));
            }
        }
        let takes_from_above = up.is_some() && above > 0;
        let mut parts = self.link.exchange(sends, receives).wait();
        parts.insert(usize::from(takes_from_above), x);
        Tensor::cat(parts, 2)
    }

    /// The ranks above and below.
    fn neighbours(&self) -> [Option<usize>; 2] {
        let rank = self.link.rank();
        [rank.checked_sub(1), Some(rank + 1).filter(|&below| below < self.link.size())]
    }
}

impl Rows for SplitRows {
    /// # Panics
    /// If the convolution neither keeps rows nor divides or doubles their number, or if it upsamples and adds a
    /// residual.
    fn conv(
        &self,
        conv: &Conv2d,
        x: Tensor<4>,
        norm: Option<&Affine>,
        residual: Option<Tensor<4>>,
    ) -> Tensor<4> {
        let [top, bottom, left, right] = conv.padding;
        let [_, _, kernel, _] = conv.weight.dims();
        let doubled = if conv.upsample { 2 } else { 1 };
        let rows = x.dims()[2] * doubled;
        assert!(rows.is_multiple_of(conv.stride), "{rows} rows in steps of {}", conv.stride);
        // With a stride, the kernel may end before the padding at the bottom does.
        let used = kernel.checked_sub(conv.stride + top).filter(|used| *used <= bottom);
        let bottom = used.expect("a convolution that keeps rows, but for its stride");
        assert!(residual.is_none() || !conv.upsample, "no autoencoder adds a residual as it upsamples");
        if [top, bottom] == [0, 0] {
            return Whole.conv(conv, x, norm, residual);
        }
        // Where there is a neighbour, its rows stand for the padding. They double, too, so there may be more than
        // the padding had, and the result has rows that are the neighbour's.
        let halo = [top, bottom].map(|padding| padding.div_ceil(doubled));
        let [up, down] = self.neighbours();
        let padding = [up.map_or(top, |_| 0), down.map_or(bottom, |_| 0), left, right];
        let y = Whole.conv(&Conv2d { padding, ..conv.clone() }, self.with_halo(x, halo), norm, residual);
        if !conv.upsample {
            return y;
        }
        y.narrow(2, up.map_or(0, |_| halo[0] * doubled - top), rows)
    }

    fn moments(&self, x: Tensor<4>, groups: usize) -> Moments {
        let Moments { count, mean, deviation } = Whole.moments(x, groups);
        let [b, groups] = mean.dims();
        let shapes = vec![[2 * b, groups]; self.link.size()];
        let arrived = self.link.all_gather(Tensor::cat(vec![mean, deviation], 0), &shapes).wait();
        let of_rank = |(both, count): (Tensor<2>, usize)| Moments {
            count,
            mean: both.clone().narrow(0, 0, b),
            deviation: both.narrow(0, b, b),
        };
        let moments = arrived.into_iter().zip(self.of_each(count)).map(of_rank);
        moments.reduce(Moments::merge).expect("the moments of this rank at least")
    }

    fn attend(&self, pixels: Qkv) -> Tensor<4> {
        let (scale, tokens) = (scale(&pixels.q), self.of_each(pixels.k.dims()[1]));
        let keys = Keys::new(None, Kv { k: pixels.k, v: pixels.v });
        self.ring.attend(pixels.q, None, keys, &tokens, scale).0
    }
}
